//! Several registries at once: a service moves from one to another, and one service has a registry of its own.
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis::{
    BoxError, Chassis, StartError,
    document::Environment,
    kind,
    registries::MemoryRegistry,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use serde::Deserialize;

use crate::mesh::{Ask, Caller, Kind, Mesh, Server, Wire, both};

/// Registries of one test, by name, each of which can be taken away.
#[derive(Clone, Default)]
struct Site {
    old: Failing,
    new: Failing,
}

/// A registry that fails while it is down. What is registered stays, as on a server.
#[derive(Clone, Default)]
struct Failing {
    registry: MemoryRegistry,
    is_down: Arc<AtomicBool>,
    changed: Arc<tokio::sync::Notify>,
}

struct FailingWatcher(Failing, Box<dyn Watcher>);

/// The settings of the kind `site`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SiteConfig {
    at: String,
}

impl Failing {
    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, SeqCst);
        self.changed.notify_waiters();
    }

    fn check(&self) -> Result<(), RegistryError> {
        match self.is_down.load(SeqCst) {
            true => Err(RegistryError::new("connection refused")),
            false => Ok(()),
        }
    }

    async fn listed(&self, service: &str) -> Vec<Arc<Instance>> {
        match self.registry.watch(service).await.unwrap().next().await.unwrap() {
            Membership::Known(all) => all,
            _ => Vec::new(),
        }
    }
}

#[async_trait]
impl Registry for Failing {
    fn name(&self) -> &str {
        "site"
    }
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.check()?;
        self.registry.register(instance).await
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.check()?;
        Ok(Box::new(FailingWatcher(self.clone(), self.registry.watch(service).await?)))
    }
    fn is_local(&self) -> bool {
        true
    }
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Watcher for FailingWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        loop {
            let changed = self.0.changed.clone();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            self.0.check()?;
            tokio::select! {
                next = self.1.next() => return next,
                () = changed => {}
            }
        }
    }
}

/// The settings of a process that reads and writes the members in these modes; `-`: it is no member.
fn composite(new: &str, old: &str) -> String {
    let mut text = "registry:\n  kind: composite\n  members:\n".to_owned();
    for (name, mode) in [("new", new), ("old", old)] {
        if mode != "-" {
            let registry = format!("{{ kind: site, at: {name} }}");
            text.push_str(&format!("    - {{ name: {name}, mode: {mode}, registry: {registry} }}\n"));
        }
    }
    text
}

impl Site {
    fn build(&self) -> impl FnOnce(chassis::ChassisBuilder) -> chassis::ChassisBuilder + 'static {
        let site = self.clone();
        move |builder| {
            builder.kind(kind::from_fn("site", move |config: &SiteConfig| match config.at.as_str() {
                "old" => Ok(Arc::new(site.old.clone()) as Arc<dyn Registry>),
                "new" => Ok(Arc::new(site.new.clone()) as Arc<dyn Registry>),
                other => Err(BoxError::from(format!("there is no `{other}`"))),
            }))
        }
    }

    async fn server(&self, mesh: &Mesh, id: &str, config: &str) -> Server {
        mesh.server("stock", id).own_registry().config(config).with(self.build()).start().await
    }

    async fn caller(&self, mesh: &Mesh, config: &str) -> Arc<Caller> {
        mesh.server("tests", "tests").own_registry().config(config).with(self.build()).caller().await
    }
}

/// Makes calls and streams, of which none may fail, and compares the instances that answered. A change of a registry
/// is seen within 50 ms.
async fn answered_by(mesh: &Mesh, caller: &Arc<Caller>, wire: Wire, expected: &[&str]) {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut seen = BTreeSet::new();
    for n in 0..40 {
        let (ask, kind) = (Ask::to("stock"), Kind::ALL[n % Kind::ALL.len()]);
        let id = ask.id.clone();
        kind.whole(caller, wire, ask, 3).await.unwrap_or_else(|failed| panic!("{kind:?}: {failed:?}"));
        seen.extend(mesh.executed_by(&id));
    }
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

fn registries_of(caller: &Arc<Caller>) -> Vec<String> {
    let inspection = caller.app.runtime().inspect();
    let stock = inspection.services.iter().find(|service| service.name == "stock").expect("it is called");
    stock.nodes.iter().map(|node| format!("{}: {}", node.id, node.registry)).collect()
}

both! {
    /// The phases of a move, with calls in each: no instance is missing, and none is called twice as often.
    async fn a_service_moves_from_one_registry_to_another(wire: Wire) {
        let (mesh, site) = (Mesh::new(), Site::default());
        let before = site.server(&mesh, "stock-1", "registry: { kind: site, at: old }").await;
        let caller = site.caller(&mesh, &composite("read_write", "read_write")).await;
        answered_by(&mesh, &caller, wire, &["stock-1"]).await;

        // One that was restarted is in both, and does not get all calls.
        let moved = site.server(&mesh, "stock-2", &composite("write", "read_write")).await;
        answered_by(&mesh, &caller, wire, &["stock-1", "stock-2"]).await;
        assert_eq!(registries_of(&caller), ["stock-1: old", "stock-2: new"]);
        assert_eq!((site.old.listed("stock").await.len(), site.new.listed("stock").await.len()), (2, 1));

        // The old one restarts, too; then the old registry goes for good.
        before.stop().await;
        let again = site.server(&mesh, "stock-1", &composite("read_write", "write")).await;
        answered_by(&mesh, &caller, wire, &["stock-1", "stock-2"]).await;
        site.old.set_down(true);
        answered_by(&mesh, &caller, wire, &["stock-1", "stock-2"]).await;
        let after = site.caller(&mesh, &composite("read_write", "-")).await;
        answered_by(&mesh, &after, wire, &["stock-1", "stock-2"]).await;
        again.stop().await;
        moved.stop().await;
        assert!(site.new.listed("stock").await.is_empty());
    }
}

both! {
    async fn a_member_that_is_down_takes_no_instance_away(wire: Wire) {
        let (mesh, site) = (Mesh::new(), Site::default());
        let _one = site.server(&mesh, "stock-1", "registry: { kind: site, at: old }").await;
        let _two = site.server(&mesh, "stock-2", "registry: { kind: site, at: new }").await;
        let caller = site.caller(&mesh, &composite("read", "read")).await;
        answered_by(&mesh, &caller, wire, &["stock-1", "stock-2"]).await;
        for down in [&site.old, &site.new] {
            down.set_down(true);
            answered_by(&mesh, &caller, wire, &["stock-1", "stock-2"]).await;
            down.set_down(false);
        }
        // A process that starts meanwhile sees those of the other member.
        site.old.set_down(true);
        let late = site.caller(&mesh, &composite("read", "read")).await;
        answered_by(&mesh, &late, wire, &["stock-2"]).await;
        site.old.set_down(false);
        tokio::time::sleep(Duration::from_secs(15)).await;
        answered_by(&mesh, &late, wire, &["stock-1", "stock-2"]).await;
    }
}

both! {
    async fn a_process_goes_out_of_service_at_every_member(wire: Wire) {
        let (mesh, site) = (Mesh::new(), Site::default());
        let _one = site.server(&mesh, "stock-1", &composite("read_write", "read_write")).await;
        let two = site.server(&mesh, "stock-2", &composite("read_write", "read_write")).await;
        let callers =
            [site.caller(&mesh, &composite("read", "-")).await, site.caller(&mesh, &composite("-", "read")).await];
        for caller in &callers {
            answered_by(&mesh, caller, wire, &["stock-1", "stock-2"]).await;
        }
        two.running.take_out_of_service().await.unwrap();
        for caller in &callers {
            answered_by(&mesh, caller, wire, &["stock-1"]).await;
        }
        two.running.put_back_in_service().await.unwrap();
        for caller in &callers {
            answered_by(&mesh, caller, wire, &["stock-1", "stock-2"]).await;
        }
    }
}

both! {
    async fn one_service_has_a_registry_of_its_own(wire: Wire) {
        let (mesh, site) = (Mesh::new(), Site::default());
        let _usual = site.server(&mesh, "stock-1", "registry: { kind: site, at: old }").await;
        let _own = site.server(&mesh, "stock-2", "registry: { kind: site, at: new }").await;
        let of = |settings: &str| format!("registry: {{ kind: site, at: old }}\n{settings}");
        let caller = site.caller(&mesh, &of("")).await;
        answered_by(&mesh, &caller, wire, &["stock-1"]).await;
        assert_eq!(registries_of(&caller), ["stock-1: site"]);

        let own = of("discovery: { services: { stock: { registry: { kind: site, at: new } } } }");
        let caller = site.caller(&mesh, &own).await;
        answered_by(&mesh, &caller, wire, &["stock-2"]).await;

        // The settings of two registries of one kind do not mix.
        let fixed = |id: &str| format!("{{ kind: static, services: {{ stock: [{{ addresses: {{ grpc: 'memory:{id}', http: 'memory:{id}' }} }}] }} }}");
        let settings = format!(
            "registry: {}\ndiscovery: {{ services: {{ stock: {{ registry: {} }} }} }}",
            fixed("stock-1"),
            fixed("stock-2")
        );
        let caller = site.caller(&mesh, &settings).await;
        answered_by(&mesh, &caller, wire, &["stock-2"]).await;

        // The builder's precedes both.
        let registry = site.old.clone();
        let plan = mesh.server("tests", "tests").own_registry().config(&own).with(site.build());
        let caller = plan.with(move |builder| builder.registry_of("stock", registry)).caller().await;
        answered_by(&mesh, &caller, wire, &["stock-1"]).await;
    }
}

/// The error of a start with these settings.
async fn refused(settings: &str) -> String {
    let source = chassis::document::TextSource::new("c", chassis::config::Format::Yaml, settings);
    let builder = Chassis::builder("tests").without_file().environment(Environment::default()).config(source);
    match builder.build().await {
        Err(StartError::Settings(why)) => why,
        other => panic!("it is refused for its settings: {:?}", other.err()),
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_member_is_shown_at_its_place() {
    for (settings, place, message) in [
        ("registry: { kind: composite }", "registry.members", "missing `members`"),
        ("registry: { kind: composite, members: [] }", "registry.members", "a list of members"),
        ("registry: { kind: composite, member: [] }", "registry.member", "did you mean `members`?"),
        (
            "registry: { kind: composite, members: [{ mode: read }] }",
            "registry.members[0]",
            "missing `registry`",
        ),
        (
            "registry: { kind: composite, members: [{ modes: read, registry: { kind: memory } }] }",
            "registry.members[0].modes",
            "did you mean `mode`?",
        ),
        (
            "registry: { kind: composite, members: [{ mode: reed, registry: { kind: memory } }] }",
            "registry.members[0].mode",
            "`reed`",
        ),
        (
            "registry: { kind: composite, members: [{ registry: { kind: memory } }, { registry: { kind: memory } }] }",
            "registry.members[1]",
            "another member is called `memory`; give one of them a `name`",
        ),
        (
            "registry: { kind: composite, members: [{ registry: { kind: memory, nam: x } }] }",
            "registry.members[0].registry.nam",
            "did you mean `name`?",
        ),
        (
            "discovery: { services: { stock: { registry: { kind: memry } } } }",
            "discovery.services.stock.registry.kind",
            "did you mean `memory`?",
        ),
        (
            "discovery: { services: { stock: { registri: {} } } }",
            "discovery.services.stock.registri",
            "did you mean `registry`?",
        ),
    ] {
        let why = refused(settings).await;
        assert!(why.contains(place) && why.contains(message), "{settings}: {why}");
    }
}
