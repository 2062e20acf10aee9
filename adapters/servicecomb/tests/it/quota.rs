//! The quotas of service center: a registration that it refuses is an error of its own kind.
use chassis_core::{
    registry::{Instance, Registry},
    testing::server::until,
};
use chassis_servicecomb::{ServiceCombConfig, ServiceCombRegistry};
use tokio::time::timeout;

use crate::{
    center::{Center, CenterConfig, needs_stand_in},
    registry::PATIENCE,
    trials::Ran,
};

trials! {
    an_instance_without_a_place_is_refused_as_such
    a_service_that_is_there_needs_no_further_place
}

fn registry(center: &Center) -> ServiceCombRegistry {
    // Without pushes there is no consumer, which would be a service too.
    let config = ServiceCombConfig { watch: false, ..ServiceCombConfig::at(&center.address) };
    ServiceCombRegistry::new(config).unwrap()
}

fn stock(service: &str, id: &str) -> Instance {
    Instance::new(service, id).with_address("http", format!("{id}:80"))
}

async fn an_instance_without_a_place_is_refused_as_such() -> Ran {
    needs_stand_in()?;
    let center = Center::start_with(CenterConfig { quotas: [9, 1, 9], ..CenterConfig::default() }).await;
    let registry = registry(&center);
    let first = registry.register(stock("stock", "a")).await.unwrap();
    let error = registry.register(stock("stock", "b")).await.err().unwrap();
    assert!(error.is_quota_exceeded(), "{error}");
    assert!(error.to_string().contains("no quota to create INSTANCE"), "{error}");
    first.deregister().await.unwrap();
    let _second = registry.register(stock("stock", "b")).await.unwrap();
    until(&mut registry.watch("stock").await.unwrap(), &["b"]).await;
    let mut other = Center::start().await;
    let elsewhere = self::registry(&other);
    other.kill();
    let error = timeout(PATIENCE, elsewhere.register(stock("stock", "a"))).await.unwrap().err().unwrap();
    assert!(!error.is_quota_exceeded(), "an outage is another error: {error}");
    Ok(())
}

async fn a_service_that_is_there_needs_no_further_place() -> Ran {
    needs_stand_in()?;
    let center = Center::start_with(CenterConfig { quotas: [1, 9, 9], ..CenterConfig::default() }).await;
    let registry = registry(&center);
    let _first = registry.register(stock("stock", "a")).await.unwrap();
    let _second = registry.register(stock("stock", "b")).await.expect("its service is there");
    let error = registry.register(stock("billing", "a")).await.err().unwrap();
    assert!(error.is_quota_exceeded() && error.to_string().contains("SERVICE"), "{error}");
    Ok(())
}
