//! Contracts: published in the background once this process is registered, and fetched for the program.
use std::{sync::Arc, time::Duration};

use chassis_core::{
    Event, Runtime,
    adapter::Pace,
    clock,
    contracts::{
        Contract, ContractEntry, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing,
    },
    tasks::caught,
};
use tokio::time::{sleep, timeout};

use crate::presence::Presence;

/// The contracts of services, where this process publishes its own: [`Chassis::contracts`](crate::Chassis::contracts).
/// Clones are cheap.
///
/// ```
/// use chassis::{Chassis, registries::MemoryContracts};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let app = Chassis::builder("orders")
///     .settings(serde_json::json!({ "registry": { "kind": "memory" } }))
///     .contracts(MemoryContracts::new())
///     .build()
///     .await?;
/// let contracts = app.contracts();
/// for version in contracts.versions("stock").await? {
///     let stock = contracts.owner("stock", version);
///     for entry in contracts.list(&stock).await? {
///         println!("{}: {}", entry.name, contracts.fetch(&stock, &entry.name).await?.media_type);
///     }
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct ContractsHandle {
    port: Option<Arc<dyn Contracts>>,
    environment: Arc<str>,
    timeout: Duration,
}

/// The contracts of this process, before they are published.
pub(crate) struct Publisher {
    pub(crate) port: Arc<dyn Contracts>,
    pub(crate) of: ContractOwner,
    pub(crate) contracts: Vec<Contract>,
    pub(crate) runtime: Runtime,
    pub(crate) presence: Presence,
    /// Whether a failure was reported since the last success.
    pub(crate) is_reported: bool,
}

/// How long a question of the program may take. Default; see [`ContractsHandle::timeout`].
const ASK: Duration = Duration::from_secs(5);
/// How long one attempt to publish may take.
const PUBLISH: Duration = Duration::from_secs(30);
/// A server that was away for long is asked once in this time.
const JITTER: Duration = Duration::from_secs(5);
/// How long after a refusal the server is asked again.
const REFUSED: Duration = Duration::from_secs(60);
/// How often the contracts are looked for that a server has lost.
const CHECK: Duration = Duration::from_secs(60);
/// The name of the contract with the descriptors of the builder.
const DESCRIPTORS: &str = "descriptors";

/// The contracts of a program: the merged descriptors, if there are any, and its own texts.
///
/// # Errors
/// The name of a text can't be used. One that is too large is no error: it is reported where it is published.
pub(crate) fn of_program(
    descriptors: &[Vec<u8>],
    mut texts: Vec<Contract>,
) -> Result<Vec<Contract>, ContractsError> {
    let wrong =
        |text: &Contract| text.check().err().filter(|error| error.kind() == ContractsErrorKind::Invalid);
    if let Some(error) = texts.iter().find_map(wrong) {
        return Err(error);
    }
    if texts.iter().any(|text| text.name == DESCRIPTORS) {
        let message =
            format!("`{DESCRIPTORS}` is the name of the descriptors; an OpenAPI text has another one");
        return Err(ContractsError::new(ContractsErrorKind::Invalid, message));
    }
    let merged = crate::rpc::merged(descriptors);
    if !merged.is_empty() {
        texts.push(Contract::new(DESCRIPTORS, chassis_core::contracts::FILE_DESCRIPTOR_SET, merged));
    }
    Ok(texts)
}

// === impl ContractsHandle ===

impl ContractsHandle {
    pub(crate) fn new(port: Option<Arc<dyn Contracts>>, environment: &str) -> Self {
        ContractsHandle { port, environment: environment.into(), timeout: ASK }
    }

    /// How long an answer may take. Default 5 s.
    pub fn timeout(self, timeout: Duration) -> Self {
        ContractsHandle { timeout, ..self }
    }

    /// A version of `service` in the environment of this process.
    pub fn owner(&self, service: impl Into<String>, version: impl Into<String>) -> ContractOwner {
        ContractOwner::new(service, version).in_environment(&*self.environment)
    }

    /// The versions of `service` that have contracts in the environment of this process.
    ///
    /// # Errors
    /// Those of the port; [`Unsupported`](ContractsErrorKind::Unsupported) if this process has none, and
    /// [`Unavailable`](ContractsErrorKind::Unavailable) if there is no answer in time.
    pub async fn versions(&self, service: &str) -> Result<Vec<String>, ContractsError> {
        let port = self.port()?;
        self.bounded(&**port, port.versions(service, &self.environment)).await
    }

    /// The contracts of `of`. An unchanged etag says that the content has not changed.
    ///
    /// # Errors
    /// As [`versions`](Self::versions).
    pub async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        let port = self.port()?;
        self.bounded(&**port, port.list(of)).await
    }

    /// The contract `name` of `of`.
    ///
    /// # Errors
    /// [`NotFound`](ContractsErrorKind::NotFound) if there is none; also as [`versions`](Self::versions).
    pub async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        let port = self.port()?;
        self.bounded(&**port, port.fetch(of, name)).await
    }

    fn port(&self) -> Result<&Arc<dyn Contracts>, ContractsError> {
        self.port.as_ref().ok_or_else(|| {
            let message = "this process has no contracts: set `registry.contracts: true` where the kind of registry has \
                           them, or give the builder a port with `contracts`";
            ContractsError::new(ContractsErrorKind::Unsupported, message)
        })
    }

    async fn bounded<T>(
        &self,
        port: &dyn Contracts,
        asked: impl Future<Output = Result<T, ContractsError>>,
    ) -> Result<T, ContractsError> {
        let unavailable = |why: String| ContractsError::new(ContractsErrorKind::Unavailable, why);
        match caught(timeout(self.timeout, asked)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(unavailable(format!("contracts of {}: no answer within {:?}", port.name(), self.timeout)))
            }
            Err(panicked) => Err(unavailable(format!("contracts: {panicked}"))),
        }
    }
}

// === impl Publisher ===

impl Publisher {
    /// Publishes once the process is registered, until that works; then looks now and then whether a server has lost
    /// them. Contracts that another process of the same version has published later stay.
    pub(crate) async fn run(mut self) {
        self.presence.registered().await;
        let (mut pace, mut existing) = (Pace::new(JITTER), Existing::Replace);
        while !self.contracts.is_empty() {
            let random = self.runtime.random().clone();
            let pause = match self.publish(existing).await {
                Ok(()) => {
                    pace.reset();
                    let is_news = existing == Existing::Replace || self.is_reported;
                    self.is_reported = false;
                    let names: Vec<_> = self.contracts.iter().map(|contract| contract.name.clone()).collect();
                    if is_news && !names.is_empty() {
                        let to = self.port.name();
                        self.runtime.events().emit(Event::ContractsPublished { to, names });
                    }
                    existing = Existing::Keep;
                    random.between(CHECK * 4 / 5, CHECK)
                }
                Err(error) => {
                    self.report(&error);
                    match error.kind() {
                        ContractsErrorKind::Unavailable => pace.next(clock::Instant::now(), &random),
                        _ => random.between(REFUSED * 4 / 5, REFUSED),
                    }
                }
            };
            sleep(pause).await;
        }
    }

    /// Publishes all. Those that can never be published are left out from then on.
    async fn publish(&mut self, existing: Existing) -> Result<(), ContractsError> {
        match self.attempt(&self.contracts, existing).await {
            Err(error) if error.is_permanent() => {}
            ended => return ended,
        }
        let mut left = Ok(());
        for contract in std::mem::take(&mut self.contracts) {
            match self.attempt(std::slice::from_ref(&contract), existing).await {
                Err(error) if error.is_permanent() => {
                    let (to, error) = (self.port.name(), error.to_string());
                    self.runtime.events().emit(Event::ContractsNotPublished { to, error });
                    continue;
                }
                Err(error) => left = Err(error),
                Ok(()) => {}
            }
            self.contracts.push(contract);
        }
        left
    }

    /// The port may be code of another crate: its panic is an error, and every attempt has a time limit.
    async fn attempt(&self, contracts: &[Contract], existing: Existing) -> Result<(), ContractsError> {
        let unavailable = |why: String| ContractsError::new(ContractsErrorKind::Unavailable, why);
        match caught(timeout(PUBLISH, self.port.publish(&self.of, contracts, existing))).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(unavailable(format!("not published within {PUBLISH:?}"))),
            Err(panicked) => Err(unavailable(panicked.to_string())),
        }
    }

    /// Reports the first failure in a row.
    fn report(&mut self, error: &ContractsError) {
        if !std::mem::replace(&mut self.is_reported, true) {
            let (to, error) = (self.port.name(), error.to_string());
            self.runtime.events().emit(Event::ContractsNotPublished { to, error });
        }
    }
}
