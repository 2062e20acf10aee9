//! The port for contracts on registry servers: published at each of them, fetched from the first that has one.
use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use chassis_core::{
    BoxError,
    contracts::{
        Contract, ContractEntry, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing,
    },
};
use chassis_http::RequestBuilder;
use http::{
    Method, StatusCode,
    header::{CONTENT_TYPE, IF_NONE_MATCH},
};
use tokio::task::JoinSet;

use crate::{
    client::{Client, Failure},
    settings::TtlConfig,
    wire::{ListedContract, etag_of},
};

/// Contracts at registry servers.
///
/// Each of them gets all contracts of this process; one that can't be reached gets them when chassis looks for missing ones
/// the next time, once a minute. A publication succeeds if one server has taken it. [`TtlRegistry`](crate::TtlRegistry)
/// has this port if its settings say `contracts: true`; on its own it is for programs with another registry.
///
/// ```no_run
/// use chassis_core::contracts::{ContractOwner, Contracts};
/// use chassis_ttl::{TtlConfig, TtlContracts};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let contracts = TtlContracts::new(TtlConfig::at(["10.0.0.5:8500", "10.0.0.6:8500"]))?;
/// let api = contracts.fetch(&ContractOwner::new("stock", "1.4.0"), "api").await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TtlContracts(Client);

/// The contracts of one request.
#[derive(Clone)]
struct Publication {
    of: ContractOwner,
    contracts: Arc<[Contract]>,
    existing: Existing,
}

const ALL: &str = "/v1/contracts";
const ONE: &str = "/v1/contracts/{name}";

// === impl TtlContracts ===

impl TtlContracts {
    /// Connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`.
    pub fn new(config: TtlConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        Ok(TtlContracts(Client::new(config)?))
    }

    pub(crate) fn on(client: &Client) -> Self {
        TtlContracts(client.clone())
    }

    /// Asks all servers at once; the answers in the order of the servers.
    async fn ask_all<T: Send + 'static, F: Future<Output = Result<T, ContractsError>> + Send + 'static>(
        &self,
        ask: impl Fn(Client, usize) -> F,
    ) -> Vec<Result<T, ContractsError>> {
        let mut asked = JoinSet::new();
        for server in 0..self.0.count() {
            let answer = ask(self.0.clone(), server);
            asked.spawn(async move { (server, answer.await) });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(server, _)| *server);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// The union of the lists of all servers; of a contract that several list, the entry of the first.
    async fn listed(
        &self,
        service: &str,
        version: Option<&str>,
        environment: &str,
    ) -> Result<Vec<ListedContract>, ContractsError> {
        let owned = |text: &str| text.to_owned();
        let (service, version, environment) = (owned(service), version.map(owned), owned(environment));
        let answers = self.ask_all(|client, server| {
            let (service, version, environment) = (service.clone(), version.clone(), environment.clone());
            async move { list(&client, server, &service, version.as_deref(), &environment).await }
        });
        let (mut all, mut failed, mut has_answer) = (BTreeMap::new(), None, false);
        for answer in answers.await {
            match answer {
                Ok(listed) => {
                    has_answer = true;
                    for entry in listed {
                        all.entry((entry.version.clone(), entry.name.clone())).or_insert(entry);
                    }
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if !has_answer => Err(error),
            _ => Ok(all.into_values().collect()),
        }
    }
}

#[async_trait]
impl Contracts for TtlContracts {
    fn name(&self) -> String {
        let servers: Vec<_> = (0..self.0.count()).map(|server| self.0.name(server)).collect();
        format!("ttl at {}", servers.join(", "))
    }

    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError> {
        of.check(contracts)?;
        let publication = Publication { of: of.clone(), contracts: contracts.into(), existing };
        let answers = self.ask_all(|client, server| {
            let publication = publication.clone();
            async move { publication.send(&client, server).await }
        });
        let (mut taken, mut failed) = (false, None);
        for answer in answers.await {
            match answer {
                Ok(()) => taken = true,
                Err(error) => {
                    tracing::debug!(target: "chassis", %error, "contracts are not published at one server");
                    // One that may pass counts more than one that can't.
                    failed = failed.filter(|before: &ContractsError| !before.is_permanent()).or(Some(error));
                }
            }
        }
        match failed {
            Some(error) if !taken => Err(error),
            _ => Ok(()),
        }
    }

    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError> {
        let listed = self.listed(service, None, environment).await?;
        let mut versions: Vec<_> = listed.into_iter().map(|entry| entry.version).collect();
        versions.dedup(); // they are in order
        Ok(versions)
    }

    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        let listed = self.listed(&of.service, Some(&of.version), &of.environment).await?;
        let entry = |ListedContract { name, etag, .. }| ContractEntry { name, etag };
        Ok(listed.into_iter().map(entry).collect())
    }

    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        let mut failed = None;
        // A name that can't be one is not sent: as a part of a path it could lead elsewhere.
        Contract::new(name, "a/b", "x").check()?;
        for server in 0..self.0.count() {
            let with = |request: RequestBuilder| owner(request.param("name", name), of);
            let answer = match self.0.send(server, Method::GET, ONE, with).await {
                Ok(answer) => answer,
                Err(failure) if failure.status == Some(StatusCode::NOT_FOUND) => continue,
                Err(failure) => {
                    failed = failed.or(Some(error(failure)));
                    continue;
                }
            };
            let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
            let media_type = media_type.unwrap_or_default().to_owned();
            let contract = match answer.bytes().await {
                Ok(content) => Contract::new(name, media_type, content),
                Err(error) => {
                    let why = format!("the registry server {}: {error}", self.0.name(server));
                    failed = failed.or(Some(ContractsError::new(ContractsErrorKind::Unavailable, why)));
                    continue;
                }
            };
            match contract.check() {
                Ok(()) => return Ok(contract),
                Err(error) => {
                    let why = format!("the registry server {} sends none: {error}", self.0.name(server));
                    failed = failed.or(Some(ContractsError::new(ContractsErrorKind::Unavailable, why)));
                }
            }
        }
        // It may be at a server that can't be reached.
        Err(failed.unwrap_or_else(|| ContractsError::not_found(of, name)))
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl Publication ===

impl Publication {
    /// Sends what the server does not have.
    async fn send(self, client: &Client, server: usize) -> Result<(), ContractsError> {
        let Publication { of, contracts, existing } = self;
        let listed = list(client, server, &of.service, Some(&of.version), &of.environment).await?;
        for contract in &*contracts {
            let there = listed.iter().find(|entry| entry.name == contract.name);
            let stays = |there: &ListedContract| {
                existing == Existing::Keep
                    || (there.media_type == contract.media_type && there.etag == etag_of(&contract.content))
            };
            if there.is_some_and(stays) {
                continue;
            }
            let with = |request: RequestBuilder| {
                let request = owner(request.param("name", &contract.name), &of);
                let request = request.header(CONTENT_TYPE, contract.media_type.as_str());
                let request = request.body(contract.content.clone());
                match existing {
                    Existing::Keep => request.header(IF_NONE_MATCH, "*"),
                    Existing::Replace => request,
                }
            };
            match client.send(server, Method::PUT, ONE, with).await {
                Ok(_) => {}
                // Another process was faster.
                Err(failure) if failure.status == Some(StatusCode::PRECONDITION_FAILED) => {}
                Err(failure) => return Err(error(failure)),
            }
        }
        Ok(())
    }
}

async fn list(
    client: &Client,
    server: usize,
    service: &str,
    version: Option<&str>,
    environment: &str,
) -> Result<Vec<ListedContract>, ContractsError> {
    let with = |request: RequestBuilder| {
        let request = request.query("service", service).query("environment", environment);
        match version {
            Some(version) => request.query("version", version),
            None => request,
        }
    };
    let answer = client.send(server, Method::GET, ALL, with).await.map_err(error)?;
    let unavailable = |why: String| {
        let why = format!("the registry server {}: {why}", client.name(server));
        ContractsError::new(ContractsErrorKind::Unavailable, why)
    };
    let body = answer.bytes().await.map_err(|error| unavailable(error.to_string()))?;
    let mut listed: Vec<ListedContract> =
        serde_json::from_slice(&body).map_err(|error| unavailable(error.to_string()))?;
    // A server that is none may list anything.
    listed.retain(|entry| {
        (entry.service.as_str(), entry.environment.as_str()) == (service, environment)
            && version.is_none_or(|version| version == entry.version)
    });
    Ok(listed)
}

fn owner(request: RequestBuilder, of: &ContractOwner) -> RequestBuilder {
    let request = request.query("service", &of.service).query("version", &of.version);
    request.query("environment", &of.environment)
}

fn error(failure: Failure) -> ContractsError {
    let kind = match failure.status.map(|status| status.as_u16()) {
        Some(413) => ContractsErrorKind::TooLarge,
        // 400: contracts are checked before they are sent, so it is a proxy or a server of another age, which may pass.
        // 404 and 405: an older server.
        Some(400..=405 | 507) => ContractsErrorKind::Refused,
        _ => ContractsErrorKind::Unavailable,
    };
    ContractsError::new(kind, failure.why)
}
