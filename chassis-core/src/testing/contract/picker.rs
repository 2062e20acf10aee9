//! The contract of [`Picker`] and [`PickerFactory`].
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use crate::{
    cluster::Connection,
    layer::balance::{Picker, PickerFactory, RandomPicker, Subset},
    pipeline::{self, Pipeline},
    policy::Settings,
    random::Random,
    runtime::Runtime,
    tasks::{catch, caught},
    testing::{Answer, CallBuilder, ScriptedRegistry, Upstream, run},
};

/// The number of calls that a suite makes to see which nodes are picked.
const CALLS: usize = 300;

/// A factory whose panics are recorded: the cluster catches them.
struct Recorded<F> {
    factory: F,
    panics: Arc<Mutex<Vec<String>>>,
}

/// Checks what [`Picker`] or [`PickerFactory`] and the layer around it promise together.
///
/// It never panics, with any set of nodes: one, many, fewer than before, none that is ready. A node that is not ready gets no call
/// while another one is ready, and gets calls again later; another attempt goes to another node; every node is
/// picked at some time, unless `may_starve`.
///
/// # Panics
/// If a promise is broken, with its name.
pub async fn picker(picker: impl PickerFactory, may_starve: bool) {
    let panics = Arc::<Mutex<Vec<String>>>::default();
    let picker = Recorded { factory: picker, panics: panics.clone() };
    let registry = ScriptedRegistry::new();
    let upstream = Upstream::new(|_| Answer::ok(""));
    let runtime = Runtime::builder("contract")
        .registry(Arc::new(registry.clone()))
        .random(Random::seeded(11))
        .picker("contract", Arc::new(picker));
    let runtime = runtime.build().expect("a registry of metrics of its own");
    let mut settings = Settings::default();
    settings.outbound.defaults.balance = Some("contract".to_owned());
    runtime.apply(&settings, 1, "contract").expect("the picker is known by its name");
    let stock = pipeline::client(&runtime, "stock", &Arc::new(upstream.clone()));

    registry.put("stock", ["a"]);
    let alone = picked(&stock, &upstream).await;
    assert_eq!(alone.get("memory:a"), Some(&CALLS), "a node that is alone is picked");

    registry.put("stock", ["a", "b", "c", "d"]);
    tokio::task::yield_now().await;
    let all = picked(&stock, &upstream).await;
    assert_eq!(all.values().sum::<usize>(), CALLS);
    assert!(may_starve || all.len() == 4, "every node is picked sooner or later: {all:?}");

    upstream.connect("memory:b", Connection::TransientFailure);
    let without = picked(&stock, &upstream).await;
    assert_eq!(without.get("memory:b"), None, "what is not ready is not picked: {without:?}");
    assert_eq!(without.values().sum::<usize>(), CALLS);
    upstream.connect("memory:b", Connection::Ready);
    let back = picked(&stock, &upstream).await;
    assert!(may_starve || back.contains_key("memory:b"), "what is back is picked again: {back:?}");

    registry.put("stock", ["a", "c", "e"]);
    tokio::task::yield_now().await;
    let changed = picked(&stock, &upstream).await;
    let are_there = changed.keys().all(|node| ["memory:a", "memory:c", "memory:e"].contains(&node.as_str()));
    assert!(are_there, "a node that has left is not picked: {changed:?}");
    assert!(
        may_starve || changed.len() == 3,
        "every node of a new set is picked sooner or later: {changed:?}"
    );

    for node in ["a", "c", "e"] {
        upstream.connect(&format!("memory:{node}"), Connection::TransientFailure);
    }
    let none = run(&stock, CallBuilder::get("stock", "Pick").build()).await;
    assert!(none.is_err_and(|error| !error.maybe_executed()), "where none is ready, none is called");
    let panics = std::mem::take(&mut *panics.lock().expect("no code panics while it holds the lock"));
    assert!(panics.is_empty(), "a picker is built for any nodes, but {panics:?}");
}

/// The number of [`CALLS`] calls that each node got.
async fn picked(stock: &Pipeline, upstream: &Upstream) -> BTreeMap<String, usize> {
    let before = upstream.total();
    for _ in 0..CALLS {
        let answer = caught(run(stock, CallBuilder::post("stock", "Pick").build())).await;
        let answer = answer.unwrap_or_else(|panicked| panic!("a picker does not panic, but {panicked}"));
        answer.expect("a call is answered where a node is ready");
    }
    let mut all = BTreeMap::new();
    upstream
        .arrivals()
        .into_iter()
        .skip(before)
        .for_each(|arrival| *all.entry(arrival.address).or_default() += 1);
    all
}

// === impl Recorded ===

impl<F: PickerFactory> PickerFactory for Recorded<F> {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        catch(|| self.factory.build(subset)).unwrap_or_else(|panicked| {
            self.panics.lock().expect("no code panics while it holds the lock").push(panicked.to_string());
            Arc::new(RandomPicker)
        })
    }

    fn shared(&self) -> Option<Arc<dyn Picker>> {
        self.factory.shared()
    }
}
