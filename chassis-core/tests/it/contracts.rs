//! The contract suite of contracts: a right implementation passes, and each wrong one is caught.
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    Event, Events, contain,
    contracts::{
        Contract, ContractEntry, ContractOwner, Contracts, ContractsError, ContractsErrorKind, Existing,
    },
    testing::contract,
};

/// Keeps contracts in a map, with a mistake.
struct Kept {
    flaw: Flaw,
    all: Mutex<BTreeMap<ContractOwner, BTreeMap<String, Contract>>>,
    publications: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// Environments are one.
    MixesEnvironments,
    /// Content is kept as text.
    KeepsText,
    /// A publication takes the place of all contracts of its owner.
    ReplacesAll,
    /// `Keep` replaces too.
    ReplacesAlways,
    /// The etag is that of the name.
    ConstantEtag,
    /// The etag counts publications.
    CountingEtag,
    /// Any size is taken.
    Unbounded,
    /// The contracts before a bad one are published.
    HalfPublished,
    /// A missing contract is an error of the server.
    WrongKind,
    /// Only the first version is listed.
    OneVersion,
    /// Loses what others publish meanwhile.
    Races,
}

impl Kept {
    fn port(flaw: Flaw) -> Arc<dyn Contracts> {
        Arc::new(Kept { flaw, all: Mutex::default(), publications: AtomicU64::new(0) })
    }

    fn key(&self, of: &ContractOwner) -> ContractOwner {
        match self.flaw {
            Flaw::MixesEnvironments => of.clone().in_environment(""),
            _ => of.clone(),
        }
    }

    fn put(&self, of: &ContractOwner, mut contract: Contract, existing: Existing) {
        let mut all = self.all.lock().unwrap();
        let of_owner = all.entry(self.key(of)).or_default();
        let keeps = existing == Existing::Keep && self.flaw != Flaw::ReplacesAlways;
        if keeps && of_owner.contains_key(&contract.name) {
            return;
        }
        if self.flaw == Flaw::KeepsText {
            contract.content = String::from_utf8_lossy(&contract.content).into_owned().into();
        }
        self.publications.fetch_add(1, SeqCst);
        of_owner.insert(contract.name.clone(), contract);
    }
}

#[async_trait]
impl Contracts for Kept {
    fn name(&self) -> String {
        format!("{:?}", self.flaw)
    }

    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError> {
        let checked = of.check(contracts);
        match self.flaw {
            Flaw::Unbounded
                if checked.as_ref().is_err_and(|error| error.kind() == ContractsErrorKind::TooLarge) => {}
            Flaw::HalfPublished => {
                let sound = contracts.iter().take_while(|contract| contract.check().is_ok());
                sound.for_each(|contract| self.put(of, contract.clone(), existing));
                return checked;
            }
            _ => checked?,
        }
        if self.flaw == Flaw::ReplacesAll && existing == Existing::Replace {
            self.all.lock().unwrap().remove(of);
        }
        let before = self.all.lock().unwrap().get(of).cloned().unwrap_or_default();
        if self.flaw == Flaw::Races {
            tokio::task::yield_now().await;
        }
        contracts.iter().for_each(|contract| self.put(of, contract.clone(), existing));
        if self.flaw == Flaw::Races {
            let is_known = |name: &str| {
                before.contains_key(name) || contracts.iter().any(|contract| contract.name == name)
            };
            self.all.lock().unwrap().entry(of.clone()).or_default().retain(|name, _| is_known(name));
        }
        Ok(())
    }

    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError> {
        let all = self.all.lock().unwrap();
        let environment = if self.flaw == Flaw::MixesEnvironments { "" } else { environment };
        let ours = all.keys().filter(|of| of.service == service && of.environment == environment);
        let most = if self.flaw == Flaw::OneVersion { 1 } else { usize::MAX };
        Ok(ours.map(|of| of.version.clone()).take(most).collect())
    }

    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        let all = self.all.lock().unwrap();
        let entry = |contract: &Contract| {
            let mut hasher = DefaultHasher::new();
            contract.content.hash(&mut hasher);
            let etag = match self.flaw {
                Flaw::ConstantEtag => contract.name.clone(),
                Flaw::CountingEtag => self.publications.load(SeqCst).to_string(),
                _ => hasher.finish().to_string(),
            };
            ContractEntry { name: contract.name.clone(), etag }
        };
        Ok(all.get(&self.key(of)).into_iter().flat_map(BTreeMap::values).map(entry).collect())
    }

    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        let all = self.all.lock().unwrap();
        match all.get(&self.key(of)).and_then(|all| all.get(name)) {
            Some(contract) => Ok(contract.clone()),
            None if self.flaw == Flaw::WrongKind => {
                Err(ContractsError::new(ContractsErrorKind::Unavailable, "the server answers 404"))
            }
            None => Err(ContractsError::not_found(of, name)),
        }
    }
}

async fn check(flaw: Flaw) {
    contract::contracts::contracts(async || Kept::port(flaw)).await;
}

#[tokio::test(start_paused = true)]
async fn a_right_port_keeps_the_contract() {
    check(Flaw::None).await;
}

/// The wrapper for ports that may block changes nothing of it.
#[tokio::test]
async fn a_contained_port_keeps_the_contract() {
    let make = async || contain::contracts(Kept::port(Flaw::None), &Events::new(), Duration::from_secs(5));
    contract::contracts::contracts(make).await;
}

/// Each wrong port fails with the promise that it breaks.
macro_rules! caught {
    ($($name:ident: $flaw:ident, $promise:literal;)*) => {$(
        #[tokio::test(start_paused = true)]
        #[should_panic(expected = $promise)]
        async fn $name() {
            check(Flaw::$flaw).await;
        }
    )*};
}

caught! {
    environments_that_mix_are_caught: MixesEnvironments, "owners do not mix";
    content_that_is_taken_for_text_is_caught: KeepsText, "comes back as it was published";
    a_publication_that_removes_others_is_caught: ReplacesAll, "contracts of other names stay";
    keep_that_replaces_is_caught: ReplacesAlways, "`Keep` does not replace a contract";
    an_etag_that_never_changes_is_caught: ConstantEtag, "a changed contract has another etag";
    an_etag_that_always_changes_is_caught: CountingEtag, "an unchanged contract keeps its etag";
    a_port_without_bounds_is_caught: Unbounded, "a bad contract is refused";
    half_a_publication_is_caught: HalfPublished, "nothing is published beside a bad contract";
    an_error_of_the_wrong_kind_is_caught: WrongKind, "an unknown contract";
    versions_that_are_left_out_are_caught: OneVersion, "the versions of an environment";
    lost_updates_are_caught: Races, "publishers at once lose nothing";
}

/// Blocks its thread until the test lets it go on.
struct Blocking(Mutex<mpsc::Receiver<()>>);

#[async_trait]
impl Contracts for Blocking {
    fn name(&self) -> String {
        "blocking".to_owned()
    }
    async fn publish(&self, _: &ContractOwner, _: &[Contract], _: Existing) -> Result<(), ContractsError> {
        self.0.lock().unwrap().recv_timeout(Duration::from_secs(60)).unwrap(); // fails rather than hangs
        Ok(())
    }
    async fn versions(&self, _: &str, _: &str) -> Result<Vec<String>, ContractsError> {
        Ok(Vec::new())
    }
    async fn list(&self, _: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        Ok(Vec::new())
    }
    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        Err(ContractsError::not_found(of, name))
    }
}

#[tokio::test]
async fn a_port_that_blocks_delays_no_other_task() {
    let (release, released) = mpsc::channel();
    let events = Events::new();
    let blocking = Arc::new(Blocking(Mutex::new(released)));
    let port = contain::contracts(blocking, &events, Duration::from_millis(50));
    let publishing = tokio::spawn(async move {
        port.publish(&ContractOwner::new("stock", ""), &[], Existing::Replace).await.unwrap();
    });
    let is_reported = || {
        events.past().into_iter().any(|(_, event)| {
            matches!(&*event, Event::PluginBlocked { plugin, call, .. } if plugin == "contracts `blocking`" && call == "publish")
        })
    };
    // The only thread of the runtime gets here while the port blocks.
    while !is_reported() {
        assert!(!publishing.is_finished());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    release.send(()).unwrap();
    publishing.await.unwrap();
}
