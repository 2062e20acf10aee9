//! A user's own registry and configuration source: they pass the contract suites, and services run on them.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis::{
    Event,
    config::{ConfigSource, ConfigWatcher, Format, SourceError, Text},
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use chassis_core::testing::contract;
use tokio::sync::watch;

use crate::mesh::{Ask, Mesh, Wire, both};

/// Instances by service and id, in memory.
#[derive(Clone, Default)]
struct Roster(Arc<watch::Sender<Book>>);

type Book = BTreeMap<String, BTreeMap<String, Instance>>;

/// An entry of the roster.
struct Entry {
    roster: Roster,
    service: String,
    id: String,
}

/// Watches the roster for one service.
struct Reader {
    service: String,
    book: watch::Receiver<Book>,
    last: Option<Membership>,
}

/// Settings in memory: `None` after they were removed.
#[derive(Clone, Default)]
struct Slate(Arc<watch::Sender<Option<String>>>);

/// Watches the slate.
struct Look {
    slate: watch::Receiver<Option<String>>,
    last: Option<Option<String>>,
}

// === impl Roster ===

#[async_trait]
impl Registry for Roster {
    fn name(&self) -> &str {
        "roster"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        let (service, id) = (instance.service.clone(), instance.id.clone());
        self.0
            .send_modify(|book| drop(book.entry(service.clone()).or_default().insert(id.clone(), instance)));
        Ok(Box::new(Entry { roster: self.clone(), service, id }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let mut book = self.0.subscribe();
        book.mark_changed(); // the first answer is the current content
        Ok(Box::new(Reader { service: service.to_owned(), book, last: None }))
    }

    async fn services(&self) -> Vec<String> {
        self.0.borrow().keys().cloned().collect()
    }
}

#[async_trait]
impl Registration for Entry {
    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        Ok(()) // `drop` removes the entry
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.roster.0.send_modify(|book| {
            book.get_mut(&self.service).map(|all| all.remove(&self.id));
        });
    }
}

#[async_trait]
impl Watcher for Reader {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            self.book.changed().await.map_err(|_| RegistryError::new("the roster is gone"))?;
            let now = match self.book.borrow_and_update().get(&self.service) {
                None => Membership::Unknown,
                Some(all) => Membership::known(all.values().cloned()),
            };
            if self.last.replace(now.clone()) != Some(now.clone()) {
                return Ok(now);
            }
        }
    }
}

// === impl Slate ===

#[async_trait]
impl ConfigSource for Slate {
    fn name(&self) -> String {
        "the slate".to_owned()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let mut slate = self.0.subscribe();
        slate.mark_changed();
        Ok(Box::new(Look { slate, last: None }))
    }
}

#[async_trait]
impl ConfigWatcher for Look {
    async fn next(&mut self) -> Result<Text, SourceError> {
        loop {
            self.slate.changed().await.map_err(|_| SourceError::new("the slate is gone"))?;
            let now = self.slate.borrow_and_update().clone();
            if self.last.replace(now.clone()) == Some(now.clone()) {
                continue;
            }
            let content = now.ok_or_else(|| SourceError::new("nothing is written there"))?;
            return Ok(Text { content, format: Format::Yaml, origin: "slate".to_owned(), revision: None });
        }
    }
}

#[async_trait]
impl contract::config_source::Place for Slate {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(self.clone())
    }

    async fn write(&mut self, content: &str) {
        self.0.send_replace(Some(content.to_owned()));
    }

    async fn spoil(&mut self) -> bool {
        self.0.send_replace(None);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_of_ones_own_keeps_the_contract() {
    contract::registry::registry(async || Arc::new(Roster::default()) as _).await;
}

#[tokio::test(start_paused = true)]
async fn a_source_of_ones_own_keeps_the_contract() {
    contract::config_source::config_source(Slate::default()).await;
}

both! {
    /// Services find each other through it.
    async fn services_meet_in_a_registry_of_ones_own(wire: Wire) {
        let (mesh, roster) = (Mesh::new(), Roster::default());
        let server = |id: &str| {
            let roster = roster.clone();
            mesh.server("stock", id).with(|builder| builder.registry(roster))
        };
        let ours = roster.clone();
        let caller = mesh.server("tests", "tests").with(|builder| builder.registry(ours)).caller().await;
        let first = server("stock-1").start().await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1");
        let second = server("stock-2").label("track", "canary").start().await;
        first.stop().await;
        for _ in 0..20 {
            assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-2");
        }
        assert_eq!(caller.call(wire, Ask::to("stock").pin("track", "canary")).await.by(), "stock-2");
        second.stop().await;
        assert_eq!(roster.0.borrow()["stock"].len(), 0, "both are out of it");
    }
}

both! {
    /// Its settings apply, and override those of the program.
    async fn settings_come_from_a_source_of_ones_own(wire: Wire) {
        let (mesh, slate) = (Mesh::new(), Slate::default());
        slate.0.send_replace(Some("faults: [{ name: drill, abort: { code: ABORTED } }]".to_owned()));
        let ours = slate.clone();
        let stock = mesh.server("stock", "stock-1").with(|builder| builder.config(ours)).start().await;
        let caller = mesh.caller("").await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.rule.as_deref(), Some("drill"));
        let mut events = stock.runtime().events().subscribe();
        slate.0.send_replace(Some("faults: [{ name: drill, abort: { code: ABORTED }, share: 0% }]".to_owned()));
        let applied = async { while !matches!(*events.recv().await.unwrap(), Event::ConfigApplied { .. }) {} };
        tokio::time::timeout(Duration::from_secs(5), applied).await.expect("it is in force");
        assert!(caller.call(wire, Ask::to("stock")).await.is_ok());

        // After a removal or an error the last good settings stay in force.
        let version = stock.runtime().inspect().version;
        for bad in [None, Some("faults: [".to_owned()), Some("fault: []".to_owned())] {
            slate.0.send_replace(bad);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        }
        assert_eq!(stock.runtime().inspect().version, version);
    }
}
