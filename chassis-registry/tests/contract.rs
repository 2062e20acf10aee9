//! Every registry passes the contract suite; for read-only ones the test writes their source.
#![allow(clippy::unwrap_used)]
#[allow(unreachable_pub)] // public in the module where it is defined
#[path = "../../chassis-core/src/testing/contract/registry.rs"]
mod contract;
#[allow(unreachable_pub)] // public in the module where it is defined
#[path = "../../chassis-core/src/testing/contract/contracts.rs"]
mod contracts_suite;
#[allow(unreachable_pub)] // public in the module where it is defined
#[path = "../../chassis-core/src/testing/contract/quota.rs"]
mod quota_suite;

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use chassis_core::registry::{self, Instance, Membership, Registration, Registry, RegistryError, Watcher};
use chassis_core::units::PositiveSpan;
use chassis_core::{contracts, quota};
use chassis_registry::{
    CompositeRegistry, FileConfig, FileRegistry, LocalConfig, LocalRegistry, MemberMode, MemoryContracts,
    MemoryQuota, MemoryRegistry, RegistryByService, StaticConfig, StaticInstance, StaticRegistry,
};
use tempfile::TempDir;

const POLL: PositiveSpan = PositiveSpan::from_millis(2);

/// A read-only registry and the text it reads.
struct Written<R> {
    registry: R,
    pen: Arc<Pen>,
    _dir: TempDir,
}

/// Writes the whole text again for every change.
struct Pen {
    services: Mutex<Services>,
    write: Box<dyn Fn(&Services) + Send + Sync>,
}

type Services = BTreeMap<String, Vec<Instance>>;

/// An instance in the text.
struct Line<R> {
    registry: R,
    pen: Arc<Pen>,
    instance: Instance,
}

#[tokio::test]
async fn memory() {
    contract::registry(async || Arc::new(MemoryRegistry::new()) as _).await;
}

#[tokio::test]
async fn contracts_in_memory() {
    contracts_suite::contracts(async || Arc::new(MemoryContracts::new()) as _).await;
}

struct Counted(MemoryRegistry);

#[async_trait]
impl quota_suite::Place for Counted {
    fn quota(&self, most: u32) -> Arc<dyn quota::Quota> {
        Arc::new(MemoryQuota::new(self.0.clone(), most))
    }

    async fn has(&mut self, service: &str, instances: u32) {
        let one = |n| Instance::new(service, format!("i{n}")).with_address("test", "127.0.0.1:50051");
        self.0.set(service, Membership::known((0..instances).map(one)));
    }
}

#[tokio::test]
async fn quota_in_memory() {
    quota_suite::quota(Counted(MemoryRegistry::new())).await;
}

/// A process that restarts with the same id finds its own entry.
#[tokio::test]
async fn a_quota_keeps_the_place_of_an_id() {
    use quota_suite::Place as _;
    let mut place = Counted(MemoryRegistry::new());
    let quota = place.quota(2);
    place.has("stock", 2).await;
    let ask = async |id: &str, instances| {
        let one = quota::QuotaRequest::one("stock");
        let request = quota::QuotaRequest { instance: id.to_owned(), instances, ..one };
        quota.ask(&request).await.unwrap().is_allowed()
    };
    for (id, instances, expected) in
        [("i0", 1, true), ("i1", 1, true), ("i2", 1, false), ("", 1, false), ("i0", 2, false)]
    {
        assert_eq!(ask(id, instances).await, expected, "{instances} with the id `{id}`");
    }
}

#[tokio::test]
async fn composite() {
    contract::registry(async || {
        let both = |registry: CompositeRegistry, name: &str| {
            registry.member(name, MemberMode::ReadWrite, MemoryRegistry::new())
        };
        Arc::new(both(both(CompositeRegistry::new(), "new"), "old")) as _
    })
    .await;
}

/// Only one member is written; another one, which has no instances, is read.
#[tokio::test]
async fn composite_of_different_modes() {
    contract::registry(async || {
        let registry = CompositeRegistry::new()
            .member("old", MemberMode::Read, MemoryRegistry::new())
            .member("other", MemberMode::Write, MemoryRegistry::new())
            .member("new", MemberMode::ReadWrite, MemoryRegistry::new());
        Arc::new(registry) as _
    })
    .await;
}

/// No service has a registry of its own.
#[tokio::test]
async fn by_service() {
    contract::registry(async || Arc::new(RegistryByService::new(Arc::new(MemoryRegistry::new()))) as _).await;
}

#[tokio::test]
async fn fixed() {
    contract::written_registry(async || {
        let registry = StaticRegistry::default();
        let written = registry.clone();
        Arc::new(Written::new(registry, tempfile::tempdir().unwrap(), move |services| {
            let config = |all: &Vec<Instance>| all.iter().map(configured).collect();
            let services = services.iter().map(|(service, all)| (service.clone(), config(all))).collect();
            written.set(StaticConfig { services }).unwrap();
        })) as _
    })
    .await;
}

#[tokio::test]
async fn file() {
    contract::registry(async || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("instances.json");
        let registry = FileRegistry::new(FileConfig { path: path.clone(), poll: POLL });
        Arc::new(Written::new(registry, dir, move |services| {
            let temp = PathBuf::from(format!("{}.new", path.display()));
            fs::write(&temp, serde_json::json!({ "services": services }).to_string()).unwrap();
            fs::rename(temp, &path).unwrap();
        })) as _
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn local() {
    let dir = tempfile::tempdir().unwrap();
    let rounds = std::cell::Cell::new(0);
    contract::registry(async || {
        rounds.set(rounds.get() + 1);
        let dir = Some(dir.path().join(rounds.get().to_string()));
        Arc::new(LocalRegistry::new(LocalConfig { dir, poll: POLL, ..Default::default() })) as _
    })
    .await;
}

fn configured(instance: &Instance) -> StaticInstance {
    let one = instance.clone();
    StaticInstance {
        region: one.region().into(),
        hostname: one.hostname().into(),
        app: one.app().into(),
        environment: one.environment().into(),
        priority: one.priority,
        status: one.status().clone(),
        id: Some(one.id),
        version: one.version,
        zone: one.zone,
        addresses: one.addresses.into(),
        weight: Some(one.weight),
        labels: one.labels.into(),
    }
}

// === impl Written ===

impl<R> Written<R> {
    fn new(registry: R, dir: TempDir, write: impl Fn(&Services) + Send + Sync + 'static) -> Self {
        write(&Services::new());
        Written {
            registry,
            pen: Arc::new(Pen { services: Mutex::default(), write: Box::new(write) }),
            _dir: dir,
        }
    }
}

#[async_trait]
impl<R: Registry + Clone> Registry for Written<R> {
    fn name(&self) -> &str {
        self.registry.name()
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.registry.register(instance.clone()).await?.deregister().await?;
        self.pen
            .edit(|services| services.entry(instance.service.clone()).or_default().push(instance.clone()));
        Ok(Box::new(Line { registry: self.registry.clone(), pen: self.pen.clone(), instance }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.registry.watch(service).await
    }

    async fn services(&self) -> Vec<String> {
        self.registry.services().await
    }
}

// === impl Pen ===

impl Pen {
    fn edit(&self, change: impl FnOnce(&mut Services)) {
        let mut services = self.services.lock().unwrap();
        change(&mut services);
        (self.write)(&services);
    }
}

// === impl Line ===

#[async_trait]
impl<R: Registry + Clone> Registration for Line<R> {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        self.pen.edit(|services| {
            let all = services.entry(instance.service.clone()).or_default();
            all.iter_mut().filter(|i| i.id == instance.id).for_each(|one| *one = instance.clone());
        });
        self.instance = instance;
        Ok(())
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let (registry, instance) = (self.registry.clone(), self.instance.clone());
        drop(self);
        let mut watcher = registry.watch(&instance.service).await?;
        while matches!(watcher.next().await?, Membership::Known(all) if all.iter().any(|one| **one == instance))
        {
        }
        Ok(())
    }
}

impl<R> Drop for Line<R> {
    fn drop(&mut self) {
        let Instance { service, id, .. } = &self.instance;
        self.pen.edit(|services| services.entry(service.clone()).or_default().retain(|i| i.id != *id));
    }
}

// === the contract itself ===

/// One way in which a registry breaks the contract.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    KeepsWhatIsDropped,
    AnswersOnlyChanges,
    LosesWhatIsNotAwaited,
    MixesServices,
    ForgetsLabels,
}

struct Broken(MemoryRegistry, Fault);
struct BrokenWatcher(Box<dyn Watcher>, Fault, bool);
struct Kept(Option<Box<dyn Registration>>);

/// Virtual time: the long waits of the contract end at once.
async fn breaks(fault: Fault) {
    contract::registry(async || Arc::new(Broken(MemoryRegistry::new(), fault)) as _).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "last answer")]
async fn what_is_dropped_must_go() {
    breaks(Fault::KeepsWhatIsDropped).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "no first answer about `unknown`")]
async fn the_first_answer_must_come() {
    breaks(Fault::AnswersOnlyChanges).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "with little patience")]
async fn dropping_a_future_must_lose_nothing() {
    breaks(Fault::LosesWhatIsNotAwaited).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "another service's instance")]
async fn services_must_not_mix() {
    breaks(Fault::MixesServices).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "\"track\": \"canary\"")]
async fn instances_must_come_back_whole() {
    breaks(Fault::ForgetsLabels).await;
}

#[async_trait]
impl Registry for Broken {
    fn name(&self) -> &str {
        "broken"
    }

    async fn register(&self, mut instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        if self.1 == Fault::ForgetsLabels {
            instance.labels = Default::default();
        }
        if self.1 == Fault::MixesServices {
            let mut one = instance.clone();
            one.service = "all-services".into();
            self.0.put(one);
        }
        let up = self.0.register(instance).await?;
        Ok(if self.1 == Fault::KeepsWhatIsDropped { Box::new(Kept(Some(up))) } else { up })
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let service = if self.1 == Fault::MixesServices { "all-services" } else { service };
        Ok(Box::new(BrokenWatcher(self.0.watch(service).await?, self.1, false)))
    }
}

#[async_trait]
impl Watcher for BrokenWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        let first = !std::mem::replace(&mut self.2, true);
        let answer = self.0.next().await;
        match self.1 {
            Fault::AnswersOnlyChanges if first => self.0.next().await,
            Fault::LosesWhatIsNotAwaited => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                answer
            }
            _ => answer,
        }
    }
}

#[async_trait]
impl Registration for Kept {
    async fn deregister(mut self: Box<Self>) -> Result<(), RegistryError> {
        self.0.take().unwrap().deregister().await
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        std::mem::forget(self.0.take());
    }
}
