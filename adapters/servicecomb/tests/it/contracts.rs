//! Contracts as schemas, and how service center keeps them.
use std::sync::{Arc, Mutex};

use chassis_core::{
    contracts::{Contract, ContractOwner, Contracts, ContractsErrorKind, Existing, OPENAPI_YAML},
    registry::{Instance, Registry},
    testing::contract::contracts::contracts,
};
use chassis_servicecomb::{ServiceCombConfig, ServiceCombContracts, ServiceCombRegistry};
use serde_json::json;
use tokio::{net::TcpListener, time::timeout};

use crate::{
    center::{Center, CenterConfig, needs_stand_in},
    host::ask,
    registry::{PATIENCE, config},
    trials::Ran,
};

trials! {
    the_port_keeps_the_contract
    schemas_are_kept_as_others_keep_theirs
    an_equal_one_is_not_sent_again
    what_is_refused_has_a_kind
    a_request_that_service_center_finds_malformed_is_sent_again_later
    contracts_survive_a_restart_and_come_back_after_a_loss
}

pub(crate) fn port(center: &Center) -> ServiceCombContracts {
    ServiceCombContracts::new(config(center)).unwrap()
}

fn stock() -> ContractOwner {
    ContractOwner::new("stock", "1.4.0")
}

async fn the_port_keeps_the_contract() -> Ran {
    let centers = Mutex::new(Vec::new());
    contracts(async || {
        let center = Center::start().await;
        let port = Arc::new(port(&center));
        centers.lock().unwrap().push(center);
        port as _
    })
    .await;
    Ok(())
}

async fn schemas_are_kept_as_others_keep_theirs() -> Ran {
    let center = Center::start().await;
    let config = config(&center);
    assert!(ServiceCombRegistry::new(config.clone()).unwrap().contracts().is_none(), "off by default");
    let registry = ServiceCombRegistry::new(ServiceCombConfig { contracts: true, ..config }).unwrap();
    let instance = Instance::new("stock", "a").with_address("http", "10.0.0.5:80").with_version("1.4.0");
    let up = registry.register(instance).await.unwrap();
    let port = registry.contracts().unwrap();
    let api = Contract::openapi("api", "swagger: '2.0'");
    let binary = Contract::new("bin", "application/x", vec![0xff]);
    port.publish(&stock(), &[api.clone(), binary], Existing::Replace).await.unwrap();
    let services = center.services();
    let [service] = &services.iter().filter(|it| it["serviceName"] == "stock").collect::<Vec<_>>()[..] else {
        panic!("{services:?}")
    };
    assert_eq!(service["schemas"], json!(["api", "bin"]), "the service that the instance is of");
    let at = format!("/v4/default/registry/microservices/{}/schemas", service["serviceId"].as_str().unwrap());
    let (_, schema) = ask(&center.address, "GET", &format!("{at}/api"), "").await;
    assert_eq!(schema, json!({ "schema": "swagger: '2.0'" }));
    let (_, schema) = ask(&center.address, "GET", &format!("{at}/bin"), "").await;
    assert_eq!(schema, json!({ "schema": "data:application/x;base64,/w==" }));
    // The hash of the text, as go-chassis sends it.
    let (_, listed) = ask(&center.address, "GET", &at, "").await;
    let api_of = listed["schemas"].as_array().unwrap().iter().find(|it| it["schemaId"] == "api");
    assert_eq!(
        api_of.unwrap()["summary"],
        "4c0a434d94e66e232872b544cbd23f7e78f1c0a8b70444f86a814a022c8e1ab9"
    );
    // A schema of a Java service, whose text is not there yet.
    let body = json!({ "schemas": [{ "schemaId": "java" }] }).to_string();
    ask(&center.address, "POST", &at, &body).await;
    let names: Vec<_> = port.list(&stock()).await.unwrap().into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["api", "bin"]);
    assert_eq!(port.fetch(&stock(), "api").await.unwrap().media_type, OPENAPI_YAML);
    up.deregister().await.unwrap();
    assert_eq!(port.versions("stock", "").await.unwrap(), ["1.4.0"], "they outlive the instance");
    Ok(())
}

async fn an_equal_one_is_not_sent_again() -> Ran {
    needs_stand_in()?; // it shows its requests
    let center = Center::start().await;
    let port = port(&center);
    let all = [Contract::openapi("a", "1"), Contract::new("b", "a/b", "1")];
    port.publish(&stock(), &all, Existing::Replace).await.unwrap();
    let puts = || center.log().into_iter().filter(|line| line.starts_with("PUT ")).count();
    assert_eq!(puts(), 2);
    port.publish(&stock(), &all, Existing::Replace).await.unwrap();
    assert_eq!(puts(), 0);
    let changed = [Contract::openapi("a", "2"), all[1].clone()];
    port.publish(&stock(), &changed, Existing::Keep).await.unwrap();
    assert_eq!(puts(), 0);
    port.publish(&stock(), &changed, Existing::Replace).await.unwrap();
    assert_eq!(puts(), 1);
    Ok(())
}

async fn what_is_refused_has_a_kind() -> Ran {
    needs_stand_in()?;
    let quotas = CenterConfig { quotas: [10, 10, 1], ..CenterConfig::default() };
    let center = Center::start_with(quotas).await;
    let port = port(&center);
    let both = [Contract::openapi("a", "1"), Contract::openapi("b", "1")];
    let error = port.publish(&stock(), &both, Existing::Replace).await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Refused, "{error}");
    assert!(error.to_string().contains("no quota to create SCHEMA"), "{error}");
    let long = stock().in_environment("x".repeat(80));
    let error = port.publish(&long, &both, Existing::Replace).await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Invalid, "{error}");
    let locked = CenterConfig { user: Some(("u".to_owned(), "p".to_owned())), ..CenterConfig::default() };
    let locked = Center::start_with(locked).await;
    let error = self::port(&locked).list(&stock()).await.unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Refused, "{error}");
    Ok(())
}

/// It may be one for this version of service center, or for a moment.
async fn a_request_that_service_center_finds_malformed_is_sent_again_later() -> Ran {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let malformed = async || {
        let error = json!({ "errorCode": "400001", "errorMessage": "Invalid parameter(s)" });
        (axum::http::StatusCode::BAD_REQUEST, axum::Json(error))
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(malformed)).await });
    let port = ServiceCombContracts::new(ServiceCombConfig::at(&address)).unwrap();
    let (of, api) = (stock(), [Contract::openapi("a", "1")]);
    let sent = timeout(PATIENCE, port.publish(&of, &api, Existing::Replace)).await;
    let error = sent.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.is_permanent()), (ContractsErrorKind::Refused, false), "{error}");
    Ok(())
}

async fn contracts_survive_a_restart_and_come_back_after_a_loss() -> Ran {
    needs_stand_in()?;
    let mut center = Center::start().await;
    let port = port(&center);
    let api = [Contract::openapi("api", "1")];
    port.publish(&stock(), &api, Existing::Replace).await.unwrap();
    center.kill();
    let error = timeout(PATIENCE, port.fetch(&stock(), "api")).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ContractsErrorKind::Unavailable, "{error}");
    center.run().await;
    let fetched = timeout(PATIENCE, async {
        loop {
            if let Ok(fetched) = port.fetch(&stock(), "api").await {
                return fetched;
            }
        }
    });
    assert_eq!(fetched.await.unwrap(), api[0]);
    center.kill();
    center.forget();
    center.run().await;
    let again =
        timeout(PATIENCE, async { while port.publish(&stock(), &api, Existing::Keep).await.is_err() {} });
    again.await.unwrap();
    assert_eq!(port.fetch(&stock(), "api").await.unwrap(), api[0]);
    Ok(())
}
