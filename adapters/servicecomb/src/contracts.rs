//! The port for contracts: schemas of service center, each with a name and a text.
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use chassis_core::{
    BoxError,
    contracts::{
        Contract, ContractEntry, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing,
        OPENAPI_JSON, OPENAPI_YAML,
    },
};
use http::Method;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::task::spawn_blocking;

use crate::{
    client::{Client, Failure, Query},
    entry::{self, ServiceKey, hexadecimal},
    service::{NO_SERVICE, ensure_service, find_service},
    settings::ServiceCombConfig,
};

/// Contracts as schemas of ServiceComb service center, where go-chassis and the Java chassis keep theirs.
///
/// A text of OpenAPI is a schema as it is. Any other content is a `data:` URL (RFC 2397) in base64, with its media
/// type. A contract of an environment has a name that begins with `chassis-x-`, the environment in hexadecimal digits, and a
/// hyphen: the environment of service center is that of the settings. [`ServiceCombRegistry`](crate::ServiceCombRegistry) has
/// this port if its settings say `contracts: true`; on its own it is for programs with another registry.
///
/// ```no_run
/// use chassis_core::contracts::{ContractOwner, Contracts};
/// use chassis_servicecomb::{ServiceCombConfig, ServiceCombContracts};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let contracts = ServiceCombContracts::new(ServiceCombConfig::at("10.0.0.5:30100"))?;
/// let api = contracts.fetch(&ContractOwner::new("stock", "1.4.0"), "api").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ServiceCombContracts {
    client: Client,
    config: ServiceCombConfig,
}

/// A schema, as service center lists it; or with its text alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Schema {
    #[serde(default)]
    schema_id: String,
    #[serde(default)]
    summary: Option<String>,
    #[serde(default)]
    schema: String,
}

const SERVICES: &str = "/v4/{project}/registry/microservices";
const SCHEMAS: &str = "/v4/{project}/registry/microservices/{service}/schemas";
const SCHEMA: &str = "/v4/{project}/registry/microservices/{service}/schemas/{schema}";
/// The number of the error that says that a schema does not exist.
const NO_SCHEMA: u32 = 400_016;
/// A parameter is malformed, for this server and at this moment; schemas of this service can't be changed; there are as
/// many as allowed.
const REFUSED: [u32; 3] = [400_001, 400_015, 400_100];
/// From so many bytes on a contract is not hashed on a thread that serves calls.
const LONG: usize = 16 << 10;
/// The longest name of a schema.
const MAX_ID: usize = 160;
/// So many versions of a service are asked for their schemas.
const MAX_VERSIONS: usize = 50;
/// The beginning of the name of a schema of an environment.
const ENVIRONMENT: &str = "chassis-x-";

// === impl ServiceCombContracts ===

impl ServiceCombContracts {
    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: ServiceCombConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(config.connection()?)?;
        Ok(ServiceCombContracts { client, config })
    }

    pub(crate) fn on(client: &Client, config: &ServiceCombConfig) -> Self {
        ServiceCombContracts { client: client.clone(), config: config.clone() }
    }

    fn key(&self, of: &ContractOwner) -> Result<ServiceKey, ContractsError> {
        let name = entry::name(&of.service)
            .map_err(|error| ContractsError::new(ContractsErrorKind::Invalid, error.to_string()))?;
        Ok(ServiceKey::new(&self.config, name, &of.version))
    }

    /// The id of a service. `None`: it is not registered.
    async fn id(&self, of: &ContractOwner) -> Result<Option<String>, ContractsError> {
        find_service(&self.client, &self.key(of)?).await.map_err(|failure| self.error(failure))
    }

    /// The schemas of a service that are contracts of `environment`, by the names of the contracts.
    async fn schemas(&self, service: &str, environment: &str) -> Result<Vec<ContractEntry>, ContractsError> {
        #[derive(Deserialize)]
        struct Schemas {
            #[serde(default)]
            schemas: Option<Vec<Schema>>,
        }
        let query = Query::get(SCHEMAS).param("service", service);
        let answer = match self.client.send(&query).await {
            Ok(answer) => answer,
            Err(failure) if failure.code == NO_SERVICE => return Ok(Vec::new()),
            Err(failure) => return Err(self.error(failure)),
        };
        let listed: Schemas = answer.read("list of schemas").map_err(|failure| self.error(failure))?;
        let entry = |Schema { schema_id, summary, .. }: Schema| {
            // A schema that was named with its service, but whose text never came, has no summary.
            let summary = summary.filter(|summary| !summary.is_empty())?;
            let name = name_of(&schema_id, environment)?;
            Some(ContractEntry { name: name.to_owned(), etag: summary })
        };
        let mut entries: Vec<_> = listed.schemas.unwrap_or_default().into_iter().filter_map(entry).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn error(&self, failure: Failure) -> ContractsError {
        let kind = match failure.code {
            NO_SCHEMA | NO_SERVICE => ContractsErrorKind::NotFound,
            code if REFUSED.contains(&code) => ContractsErrorKind::Refused,
            401_000..=401_999 | 403_000..=403_999 => ContractsErrorKind::Refused,
            _ => ContractsErrorKind::Unavailable,
        };
        ContractsError::new(kind, format!("{}: {failure}", self.client.name()))
    }
}

#[async_trait]
impl Contracts for ServiceCombContracts {
    fn name(&self) -> String {
        self.client.name()
    }

    /// Registers the service, if it is not there yet.
    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError> {
        of.check(contracts)?;
        let ids = contracts.iter().map(|contract| id_of(&contract.name, &of.environment));
        let ids = ids.collect::<Result<Vec<_>, _>>()?;
        let service = match self.id(of).await? {
            Some(id) => id,
            None => {
                let registered = ensure_service(&self.client, &self.key(of)?).await;
                registered.map_err(|failure| self.error(failure))?
            }
        };
        let there = self.schemas(&service, &of.environment).await?;
        for (contract, id) in contracts.iter().zip(ids) {
            let is_there = there.iter().find(|entry| entry.name == contract.name);
            let Some((text, summary)) = to_send(existing, is_there, || hashed(contract)).await? else {
                continue;
            };
            let query =
                Query::new(Method::PUT, SCHEMA).param("service", service.as_str()).param("schema", id);
            let body = json!({ "schema": text, "summary": summary });
            self.client.send(&query.body(body)).await.map_err(|failure| self.error(failure))?;
        }
        Ok(())
    }

    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Service {
            service_id: String,
            #[serde(default)]
            app_id: String,
            service_name: String,
            #[serde(default)]
            environment: String,
            #[serde(default)]
            version: String,
        }
        #[derive(Deserialize)]
        struct Services {
            #[serde(default)]
            services: Option<Vec<Service>>,
        }
        let key = self.key(&ContractOwner::new(service, ""))?;
        let answer = self.client.send(&Query::get(SERVICES)).await.map_err(|failure| self.error(failure))?;
        let all: Services = answer.read("list of services").map_err(|failure| self.error(failure))?;
        let is_it = |service: &Service| {
            (&service.app_id, &service.service_name, &service.environment)
                == (&key.app, &key.name, &key.environment)
        };
        let mut versions = Vec::new();
        for service in all.services.into_iter().flatten().filter(is_it).take(MAX_VERSIONS) {
            if !self.schemas(&service.service_id, environment).await?.is_empty() {
                versions.push(service.version);
            }
        }
        Ok(versions)
    }

    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        match self.id(of).await? {
            Some(service) => self.schemas(&service, &of.environment).await,
            None => Ok(Vec::new()),
        }
    }

    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        Contract::new(name, OPENAPI_YAML, "x").check()?;
        let id = id_of(name, &of.environment)?;
        let Some(service) = self.id(of).await? else {
            return Err(ContractsError::not_found(of, name));
        };
        let query = Query::get(SCHEMA).param("service", service).param("schema", id);
        let answer = match self.client.send(&query).await {
            Ok(answer) => answer,
            Err(failure) if [NO_SERVICE, NO_SCHEMA].contains(&failure.code) => {
                return Err(ContractsError::not_found(of, name));
            }
            Err(failure) => return Err(self.error(failure)),
        };
        let schema: Schema = answer.read("schema").map_err(|failure| self.error(failure))?;
        let contract = read(name, schema.schema);
        contract.check().map_err(|error| {
            let why = format!("{}: its schema can't be used: {error}", self.client.name());
            ContractsError::new(ContractsErrorKind::Unavailable, why)
        })?;
        Ok(contract)
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

/// The text to send and its hash. `None`: the schema that is there stays.
async fn to_send<F>(
    existing: Existing,
    there: Option<&ContractEntry>,
    hashed: impl FnOnce() -> F,
) -> Result<Option<(String, String)>, ContractsError>
where
    F: Future<Output = Result<(String, String), ContractsError>>,
{
    if existing == Existing::Keep && there.is_some() {
        return Ok(None);
    }
    let (text, summary) = hashed().await?;
    let is_equal = there.is_some_and(|entry| entry.etag == summary);
    Ok((!is_equal).then_some((text, summary)))
}

/// The text of a contract and its hash. A long one is made on a thread that serves no calls.
async fn hashed(contract: &Contract) -> Result<(String, String), ContractsError> {
    let make = |contract: &Contract| {
        let text = written(contract);
        let summary = hexadecimal(&Sha256::digest(&text));
        (text, summary)
    };
    if contract.content.len() < LONG {
        return Ok(make(contract));
    }
    let contract = contract.clone();
    let made = spawn_blocking(move || make(&contract)).await;
    made.map_err(|error| ContractsError::new(ContractsErrorKind::Unavailable, error.to_string()))
}

/// The name of the schema of a contract.
fn id_of(name: &str, environment: &str) -> Result<String, ContractsError> {
    // A plain name that begins so would be taken for one of an environment.
    let id = match environment.is_empty() && !name.starts_with(ENVIRONMENT) {
        true => name.to_owned(),
        false => format!("{ENVIRONMENT}{}-{name}", hexadecimal(environment.as_bytes())),
    };
    match id.len() <= MAX_ID {
        true => Ok(id),
        false => Err(ContractsError::new(
            ContractsErrorKind::Invalid,
            format!("contract `{name}`: with its environment, the name is longer than service center takes"),
        )),
    }
}

/// The name of the contract of a schema, if it is of `environment`.
fn name_of<'a>(id: &'a str, environment: &str) -> Option<&'a str> {
    match id.strip_prefix(ENVIRONMENT) {
        None => environment.is_empty().then_some(id),
        Some(rest) => {
            let (of, name) = rest.split_once('-')?;
            (of == hexadecimal(environment.as_bytes())).then_some(name)
        }
    }
}

/// The media type that a plain text is read with.
fn media_type_of(text: &str) -> &'static str {
    if text.trim_start().starts_with('{') { OPENAPI_JSON } else { OPENAPI_YAML }
}

/// The text of a schema: what would not be read as it is becomes a `data:` URL.
fn written(contract: &Contract) -> String {
    let Contract { media_type, content, .. } = contract;
    let is_plain = |text: &&str| media_type_of(text) == media_type && !text.starts_with("data:");
    match std::str::from_utf8(content).ok().filter(is_plain) {
        Some(text) => text.to_owned(),
        None => format!("data:{media_type};base64,{}", STANDARD.encode(content)),
    }
}

/// The contract of a schema: a text, unless it is a sound `data:` URL.
fn read(name: &str, text: String) -> Contract {
    let url = text.strip_prefix("data:").and_then(|rest| rest.rsplit_once(','));
    let parts =
        url.and_then(|(head, data)| Some((head.strip_suffix(";base64")?, STANDARD.decode(data).ok()?)));
    match parts {
        Some((media_type, content)) => Contract::new(name, media_type, content),
        None => Contract::new(name, media_type_of(&text), Bytes::from(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contracts_are_read_as_they_were_written() {
        for (media_type, content, is_plain) in [
            (OPENAPI_YAML, &b"openapi: 3.1.0"[..], true),
            (OPENAPI_JSON, b" {}", true),
            (OPENAPI_YAML, b"{}", false),
            (OPENAPI_YAML, b"data:a/b;base64,eA==", false),
            (OPENAPI_YAML, b"\xff", false),
            ("a/b; c=\"d,e\"", b"x", false),
        ] {
            let contract = Contract::new("a", media_type, content);
            let text = written(&contract);
            assert_eq!((text.as_bytes() == content, read("a", text)), (is_plain, contract));
        }
        // Texts of other programs.
        for text in ["data:", "data:a/b,x", "data:a/b;base64,?", "swagger: '2.0'"] {
            assert_eq!(read("a", text.to_owned()), Contract::new("a", OPENAPI_YAML, text));
        }
    }

    /// A check each minute of contracts that are there costs no hash.
    #[tokio::test]
    async fn one_that_stays_is_not_hashed() {
        let entry = |etag: &str| ContractEntry { name: "a".to_owned(), etag: etag.to_owned() };
        let never = || async { panic!("it is hashed") };
        assert_eq!(to_send(Existing::Keep, Some(&entry("")), never).await.unwrap(), None);
        for length in [1, LONG, 1 << 20] {
            let contract = Contract::openapi("a", "x".repeat(length));
            let (text, summary) = hashed(&contract).await.unwrap();
            assert_eq!(text.as_bytes(), contract.content);
            assert_eq!(summary, hexadecimal(&Sha256::digest(&contract.content)));
            for (existing, there, is_sent) in [
                (Existing::Keep, None, true),
                (Existing::Replace, None, true),
                (Existing::Replace, Some(entry("other")), true),
                (Existing::Replace, Some(entry(&summary)), false),
            ] {
                let sent = to_send(existing, there.as_ref(), || hashed(&contract)).await.unwrap();
                assert_eq!(sent, is_sent.then(|| (text.clone(), summary.clone())), "{length}");
            }
        }
    }

    #[test]
    fn names_hold_an_environment() {
        for environment in ["", "staging", "π-"] {
            for name in ["a", "a-b", "chassis-x-70-a"] {
                let id = id_of(name, environment).unwrap();
                assert_eq!(name_of(&id, environment), Some(name), "{id}");
                assert_eq!(name_of(&id, "other"), None, "{id}");
            }
        }
        assert_eq!(id_of("a", "").unwrap(), "a");
        assert!(id_of("a", &"x".repeat(80)).is_err());
        assert_eq!(name_of("chassis-x-", ""), None);
    }
}
