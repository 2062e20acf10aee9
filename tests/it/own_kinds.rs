//! A user's own kinds of plugins, as in an external crate: selected by name, with their own settings.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use chassis::{
    BoxError, Chassis, HashKey, Kind, StartError,
    document::Environment,
    kind,
    layer::balance::{Candidates, Picker, PickerFactory, Subset},
    registries::MemoryRegistry,
    registry::{Instance, Registry},
    settings::Problem,
};
use serde::Deserialize;

use crate::mesh::{Ask, Caller, Mesh, Pushed, Wire, both};

/// A registry of addresses by service, in the settings.
#[derive(Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TableConfig {
    /// A file that does not exist; only changes of the path matter.
    path: String,
    addresses: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Default)]
struct Table(MemoryRegistry);

impl Table {
    fn set(&self, config: &TableConfig) {
        for (service, addresses) in &config.addresses {
            let instance = |address: &String| {
                let instance = Instance::new(service.clone(), address.clone());
                instance.with_address("grpc", address.clone()).with_address("http", address.clone())
            };
            self.0.set(service, chassis::registry::Membership::known(addresses.iter().map(instance)));
        }
    }
}

impl Kind for Table {
    type Config = TableConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "table"
    }

    fn check(&self, config: &TableConfig) -> Vec<Problem> {
        let wrong = config.addresses.iter().flat_map(|(service, addresses)| {
            let wrong = addresses.iter().enumerate().filter(|(_, address)| !address.contains(':'));
            wrong
                .map(move |(i, _)| Problem::new(format!("addresses.{service}[{i}]"), "an address has a port"))
        });
        wrong.collect()
    }

    fn make(&self, config: &TableConfig) -> Result<Arc<dyn Registry>, BoxError> {
        self.set(config);
        Ok(Arc::new(self.0.clone()))
    }

    fn live(&self) -> &[&str] {
        &["addresses"]
    }

    fn change(&self, config: &TableConfig) -> Result<(), BoxError> {
        self.set(config);
        Ok(())
    }
}

/// Picks the node with the first or last id, and records its key.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndConfig {
    end: End,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum End {
    First,
    Last,
}

#[derive(Clone)]
struct EndPicker(End);

impl Picker for EndPicker {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let ids = candidates.nodes().iter().map(|node| node.instance().id.clone()).enumerate();
        let picked = match self.0 {
            End::First => ids.min_by(|(_, a), (_, b)| a.cmp(b)),
            End::Last => ids.max_by(|(_, a), (_, b)| a.cmp(b)),
        };
        picked.map_or(0, |(index, _)| index)
    }
}

fn end() -> impl Kind<Config = EndConfig, Made = Arc<dyn PickerFactory>> {
    kind::from_fn("end", |config: &EndConfig| Ok(Arc::new(EndPicker(config.end)) as Arc<dyn PickerFactory>))
}

async fn caller(mesh: &Mesh, config: &str) -> Arc<Caller> {
    let plan = mesh.server("tests", "tests").own_registry().config(config);
    plan.with(|builder| builder.kind(Table::default()).kind(end())).caller().await
}

/// The error of a start with these settings.
async fn refused(settings: &str) -> String {
    let source = chassis::document::TextSource::new("c", chassis::config::Format::Yaml, settings);
    let builder = Chassis::builder("tests").without_file().environment(Environment::default()).config(source);
    match builder.kind(Table::default()).kind(end()).build().await {
        Err(StartError::Settings(why)) => why,
        other => panic!("it is refused for its settings: {:?}", other.err()),
    }
}

both! {
    async fn a_registry_of_ones_own_is_chosen_by_name(wire: Wire) {
        let mesh = Mesh::new();
        let (_one, _two) = (mesh.start("stock", "stock-1").await, mesh.start("stock", "stock-2").await);
        let table = |path: &str, address: &str| {
            format!("registry: {{ kind: table, path: {path}, addresses: {{ stock: ['memory:{address}'] }} }}")
        };
        let caller = caller(&mesh, &table("/a", "stock-1")).await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.instance.as_deref(), Some("stock-1"));
        // A setting that its kind can change does change; the others wait for a restart.
        caller.push(&table("/b", "stock-2")).await.applied();
        assert_eq!(caller.call(wire, Ask::to("stock")).await.instance.as_deref(), Some("stock-2"));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_the_settings_of_a_kind_is_shown_at_its_place() {
    let why = refused("registry:\n  kind: table\n  adresses: {}\n").await;
    assert!(why.contains("c:3:3  registry.adresses"), "{why}");
    assert!(why.contains("unknown key; did you mean `addresses`?"), "{why}");

    let why = refused("registry:\n  kind: table\n  addresses:\n    stock: ['a:1', b]\n").await;
    assert!(why.contains("c:4:20  registry.addresses.stock[1]"), "{why}");
    assert!(why.contains("an address has a port"), "{why}");

    let why = refused("registry: { kind: tabel }\n").await;
    assert!(why.contains("`tabel` is not known here; did you mean `table`?"), "{why}");
    // Features add further kinds between those of the default build and one's own.
    let allowed = why.lines().find_map(|line| line.trim().strip_prefix("allowed: "));
    let allowed = allowed.unwrap_or_else(|| panic!("no allowed kinds: {why}"));
    assert!(allowed.starts_with("local, static, file, memory, ") && allowed.ends_with(", table"), "{why}");

    let why = refused("pickers: { near: { kind: end, end: frist } }\n").await;
    assert!(why.contains("c:1:36  pickers.near.end"), "{why}");
    assert!(why.contains("`frist` is not known here; did you mean `first`?"), "{why}");

    let why =
        refused("outbound: { defaults: { balance: naer } }\npickers: { near: { kind: end, end: last } }\n")
            .await;
    assert!(why.contains("no picker is called `naer`; did you mean `near`?"), "{why}");
    assert!(why.contains("allowed: p2c, random, round_robin, near"), "{why}");
}

both! {
    async fn a_picker_of_ones_own_is_chosen_by_name(wire: Wire) {
        let mesh = Mesh::new();
        let (_one, _two) = (mesh.start("stock", "stock-1").await, mesh.start("stock", "stock-2").await);
        let settings = |end: &str| {
            format!(
                "pickers: {{ edge: {{ kind: end, end: {end} }} }}\n\
                 outbound: {{ services: {{ stock: {{ balance: edge }} }} }}\n\
                 registry: {{ kind: table, addresses: {{ stock: ['memory:stock-1', 'memory:stock-2'] }} }}"
            )
        };
        let caller = caller(&mesh, &settings("first")).await;
        let by = async |count| {
            let outcomes = caller.calls(wire, count, || Ask::to("stock")).await;
            outcomes.into_iter().map(|outcome| outcome.instance.unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(by(4).await, ["stock-1"; 4]);
        caller.push(&settings("last")).await.applied();
        assert_eq!(by(4).await, ["stock-2"; 4]);
        // A picker that cannot be created changes nothing.
        let Pushed::Refused(why) = caller.push(&settings("middle")).await else { panic!("there is no such end") };
        assert!(why[0].contains("pickers.edge.end"), "{why:?}");
        assert_eq!(by(4).await, ["stock-2"; 4]);
    }
}

/// Builds rings with a number of points for each node, and records the sizes of the subsets.
#[derive(Clone)]
struct Rings {
    points: u32,
    built: Arc<Mutex<Vec<usize>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RingConfig {
    points: u32,
}

/// The points of the nodes, in order, each with the index of its node.
struct Ring(Vec<(u32, usize)>);

impl PickerFactory for Rings {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        self.built.lock().unwrap().push(subset.nodes().len());
        let points = subset.nodes().iter().enumerate().flat_map(|(index, node)| {
            (0..self.points).map(move |n| (HashKey::of(format!("{}-{n}", node.id())).get(), index))
        });
        let mut ring: Vec<_> = points.collect();
        ring.sort_unstable();
        Arc::new(Ring(ring))
    }
}

impl Picker for Ring {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let Some(user) = candidates.subject().metadata.get("x-user") else { return candidates.draw() };
        let at = self.0.partition_point(|(point, _)| *point < HashKey::of(user).get());
        let (before, after) = self.0.split_at(at);
        let mut nodes = after.iter().chain(before).map(|(_, index)| *index);
        nodes.find(|index| candidates.is_available(*index)).unwrap_or_else(|| candidates.draw())
    }
}

both! {
    async fn a_ring_of_ones_own_is_built_once_for_each_set_of_nodes(wire: Wire) {
        let mesh = Mesh::new();
        let mut stocks = Vec::new();
        for n in 0..3 {
            stocks.push(mesh.start("stock", &format!("stock-{n}")).await);
        }
        let built = Arc::<Mutex<Vec<usize>>>::default();
        let settings = |points: u32, timeout: &str| {
            format!(
                "pickers: {{ by-user: {{ kind: ring, points: {points} }} }}\n\
                 outbound: {{ services: {{ stock: {{ balance: by-user, timeout: {timeout} }} }} }}"
            )
        };
        let rings = {
            let built = built.clone();
            kind::from_fn("ring", move |config: &RingConfig| {
                let rings = Rings { points: config.points, built: built.clone() };
                Ok(Arc::new(rings) as Arc<dyn PickerFactory>)
            })
        };
        let plan = mesh.server("tests", "tests").config(&settings(100, "5s"));
        let caller = plan.with(|builder| builder.kind(rings)).caller().await;
        let ask = |user: u32| Ask::to("stock").header("x-user", &format!("user-{user}"));
        let homes = async || {
            let mut homes = Vec::new();
            for user in 0..30 {
                homes.push(caller.call(wire, ask(user)).await.by().to_owned());
            }
            homes
        };
        // Until all are connected, a user may be sent to another one.
        while homes().await.iter().collect::<BTreeSet<_>>().len() < 3 {}
        let first = homes().await;
        assert_eq!(homes().await, first);
        // Other settings keep the rings; settings of the picker are another picker.
        caller.push(&settings(100, "6s")).await.applied();
        assert_eq!(homes().await, first);
        assert_eq!(*built.lock().unwrap(), [3]);
        caller.push(&settings(200, "6s")).await.applied();
        assert_ne!(homes().await, first);
        assert_eq!(*built.lock().unwrap(), [3, 3]);
    }
}

/// A picker given to the builder has no settings, and keeps its own name.
#[tokio::test(start_paused = true)]
async fn kinds_of_the_same_name_take_the_place_of_those_before() {
    let made = Arc::new(Mutex::new(Vec::new()));
    let noting = |name: &'static str| {
        let made = made.clone();
        kind::from_fn("memory", move |_: &BTreeMap<String, String>| {
            made.lock().unwrap().push(name);
            Ok(Arc::new(MemoryRegistry::new()) as Arc<dyn Registry>)
        })
    };
    let builder = Chassis::builder("tests")
        .without_file()
        .environment(Environment::default())
        .settings(serde_json::json!({ "registry": { "kind": "memory" } }));
    builder.kind(noting("first")).kind(noting("second")).build().await.unwrap();
    assert_eq!(*made.lock().unwrap(), ["second"]);
}
