//! The service of an entry or of contracts, which may be there already.
use serde::Deserialize;

use crate::{
    client::{Client, Failure, Query},
    entry::ServiceKey,
    link::register_service,
    owner::NO_QUOTA,
};

const EXISTENCE: &str = "/v4/{project}/registry/existence";
/// The number of the error that says that a service does not exist.
pub(crate) const NO_SERVICE: u32 = 400_012;

/// The id of a service. `None`: it is not registered.
pub(crate) async fn find_service(client: &Client, key: &ServiceKey) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Found {
        service_id: String,
    }
    let query = Query::get(EXISTENCE)
        .with("type", "microservice")
        .with("appId", key.app.as_str())
        .with("serviceName", key.name.as_str())
        .with("version", key.version.as_str())
        .with("env", key.environment.as_str());
    match client.send(&query).await {
        Ok(answer) => {
            let found: Found = answer.read("answer about a service")?;
            Ok(Some(found.service_id))
        }
        Err(failure) if failure.code == NO_SERVICE => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Registers a service, unless it is there; its id. With its quota of services used up, service center refuses to register
/// also one that is there.
pub(crate) async fn ensure_service(client: &Client, key: &ServiceKey) -> Result<String, Failure> {
    match register_service(client, key).await {
        Err(failure) if failure.code == NO_QUOTA => find_service(client, key).await?.ok_or(failure),
        registered => registered,
    }
}
