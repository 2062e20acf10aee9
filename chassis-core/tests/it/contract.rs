//! The scripted upstream and registry, which the other tests rely on, and the contract of pickers.
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use chassis_core::{
    Body, Error, Reason,
    layer::{
        balance::{Candidates, P2c, Picker, PickerFactory, RandomPicker, RoundRobin, Subset},
        fallback::{Answer as Instead, FallbackConfig, FallbackFn},
    },
    registry::{Membership, Registry},
    testing::{Answer, ScriptedRegistry, TEST, TestProtocol, Upstream, contract, feed},
};
use http::{HeaderMap, StatusCode};

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn a_scripted_registry_follows_its_script() {
    let registry = ScriptedRegistry::new();
    let mut watcher = registry.watch("stock").await.unwrap();
    assert!(tokio::time::timeout(S, watcher.next()).await.is_err(), "nothing was said yet");
    registry.put("stock", ["a"]);
    assert!(matches!(watcher.next().await.unwrap(), Membership::Known(all) if all.len() == 1));
    assert!(tokio::time::timeout(S, watcher.next()).await.is_err(), "nothing new was said");
    registry.fail("stock", "no route");
    assert_eq!(watcher.next().await.unwrap_err().to_string(), "no route");
    assert_eq!(registry.services().await, Vec::<String>::new());
    registry.set("stock", Membership::Deleted);
    assert_eq!(watcher.next().await.unwrap(), Membership::Deleted);
    let mut late = registry.watch("stock").await.unwrap();
    assert_eq!(late.next().await.unwrap(), Membership::Deleted);
}

#[tokio::test(start_paused = true)]
async fn a_scripted_upstream_counts_and_remembers() {
    let bench = Bench::with(["a", "b"], |arrival| Answer::ok(format!("{} {}", arrival.address, arrival.nth)));
    for _ in 0..20 {
        bench.run(post().header("x-a", "1").body("seven")).await.unwrap();
    }
    let (a, b) = (bench.upstream.calls("memory:a"), bench.upstream.calls("memory:b"));
    assert_eq!((a + b, bench.upstream.total(), bench.upstream.calls("memory:c")), (20, 20, 0));
    let last = bench.upstream.last();
    assert_eq!(
        (&last.body[..], &last.metadata["x-a"], last.total),
        (&b"seven"[..], &"1".parse().unwrap(), 19)
    );
    assert_eq!(last.nth + 1, bench.upstream.calls(&last.address));
}

#[tokio::test(start_paused = true)]
async fn an_upstream_can_speak_any_protocol() {
    static LINE: chassis_core::testing::TestProtocol = chassis_core::testing::TestProtocol::named("line");
    let bench = Bench::build(Upstream::speaking(&LINE, |_| Answer::ok("hi")), |b| b);
    let instance = chassis_core::registry::Instance::new("stock", "a").with_address("line", "memory:l");
    bench.registry.set("stock", Membership::known([instance]));
    let answered = bench.run(get().protocol(&LINE)).await.unwrap();
    assert_eq!(answered.address.as_deref(), Some("memory:l"));
}

#[tokio::test(start_paused = true)]
async fn our_pickers_keep_to_the_contract() {
    within("the contract of pickers", contract::picker::picker(P2c, false)).await;
    within("the contract of pickers", contract::picker::picker(RoundRobin, false)).await;
    within("the contract of pickers", contract::picker::picker(RandomPicker, false)).await;
}

/// As in its documentation: always takes the first available node.
#[derive(Clone)]
struct First;

impl Picker for First {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        (0..candidates.nodes().len()).find(|i| candidates.is_available(*i)).unwrap_or(0)
    }
}

/// Picks an index beyond the end.
#[derive(Clone)]
struct Beyond;

impl Picker for Beyond {
    fn pick(&self, _: &Candidates<'_>) -> usize {
        usize::MAX
    }
}

#[tokio::test(start_paused = true)]
async fn pickers_of_ones_own_are_held_to_it_by_the_layer() {
    within("the contract of pickers", contract::picker::picker(First, true)).await;
    within("the contract of pickers", contract::picker::picker(Beyond, true)).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "every node is picked sooner or later")]
async fn a_picker_must_starve_no_node_unless_it_says_so() {
    contract::picker::picker(First, false).await;
}

/// Never picks a node again that was unavailable once.
#[derive(Default)]
struct Grudge(Mutex<BTreeSet<String>>);

impl Picker for Grudge {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let mut shunned = self.0.lock().unwrap();
        let ids = candidates.nodes().iter().map(|node| node.instance().id.clone()).enumerate();
        let (here, out): (Vec<_>, Vec<_>) = ids.partition(|(index, _)| candidates.is_available(*index));
        shunned.extend(out.into_iter().map(|(_, id)| id));
        let kept: Vec<_> = here.into_iter().filter(|(_, id)| !shunned.contains(id)).collect();
        let turn = candidates.turn();
        kept.iter().find(|(index, _)| *index == turn).or(kept.first()).map_or(0, |(index, _)| *index)
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "what is back is picked again")]
async fn a_picker_must_go_back_to_a_node_that_is_back() {
    contract::picker::picker(Arc::new(Grudge::default()), false).await;
}

/// Assumes that there are always two nodes to choose from.
#[derive(Clone)]
struct OfTwo;

impl Picker for OfTwo {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let (one, other) = (candidates.draw(), candidates.draw());
        let nodes = candidates.nodes();
        let second = nodes.iter().position(|node| !Arc::ptr_eq(node, &nodes[one])).expect("there are two");
        if candidates.is_available(one) { one } else { second.max(other) }
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a picker does not panic, but it panicked: there are two")]
async fn a_picker_must_not_panic_whatever_there_is_to_choose_from() {
    contract::picker::picker(OfTwo, true).await;
}

/// Builds its pickers for two nodes or more.
struct BuildsOfTwo;

impl PickerFactory for BuildsOfTwo {
    fn build(&self, subset: &Subset) -> Arc<dyn Picker> {
        let [_, _, ..] = subset.nodes() else { panic!("there are two") };
        Arc::new(RandomPicker)
    }
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a picker is built for any nodes, but [\"it panicked: there are two\"]")]
async fn a_picker_must_be_built_for_any_nodes() {
    contract::picker::picker(BuildsOfTwo, false).await;
}

static MESSAGES: TestProtocol = TestProtocol::named("messages").with_messages();

fn function<F>(answer: impl Fn() -> F + Send + Sync + 'static) -> Arc<FallbackFn>
where
    F: Future<Output = Result<Instead, Error>> + Send + 'static,
{
    Arc::new(move |_| Box::pin(answer()))
}

fn instead(status: StatusCode, body: Body) -> Result<Instead, Error> {
    Ok(Instead { status, metadata: HeaderMap::new(), body })
}

#[tokio::test(start_paused = true)]
async fn fallbacks_keep_to_the_contract() {
    let from_cache = || std::future::ready(instead(StatusCode::OK, Body::full("old")));
    contract::fallback::function(function(from_cache), &TEST).await;
    contract::fallback::function(function(from_cache), &MESSAGES).await;
    let config = FallbackConfig { message: Some("1".to_owned()), ..FallbackConfig::default() };
    contract::fallback::settings(config.clone(), &TEST).await;
    contract::fallback::settings(config, &MESSAGES).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a fallback answers a call that ends so: Lost")]
async fn a_fallback_that_never_answers_breaks_it() {
    contract::fallback::function(function(std::future::pending), &TEST).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a fallback answers `Lost` with a success")]
async fn a_fallback_that_answers_with_a_failure_breaks_it() {
    let failing = || std::future::ready(instead(StatusCode::SERVICE_UNAVAILABLE, Body::empty()));
    contract::fallback::function(function(failing), &TEST).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "the answer of a fallback is whole")]
async fn a_fallback_whose_answer_breaks_off_breaks_it() {
    let cut = || {
        let (feed, body) = feed();
        feed.fail(Error::local(Reason::Internal, "the cache is gone"));
        std::future::ready(instead(StatusCode::OK, body))
    };
    contract::fallback::function(function(cut), &TEST).await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a fallback answers a call that ends so: Lost")]
async fn settings_that_answer_another_protocol_break_it() {
    contract::fallback::settings(FallbackConfig::default(), &MESSAGES).await;
}
