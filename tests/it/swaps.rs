//! Settings that change while calls are in flight: as a whole, consistent within a call, and without loss of
//! state.
use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis::{CallError, Code, Invocation, Next, Policy, Reason, Reply, Stage};
use tokio::time::advance;

use crate::mesh::{Act, Ask, Load, Mesh, Pushed, Wire, all_well, both, metric};

/// Checks two settings that always change together, at each stage of a call.
#[derive(Clone, Default)]
struct Watch(Arc<Watched>);

#[derive(Default)]
struct Watched {
    looks: AtomicU64,
    torn: Mutex<Vec<String>>,
    versions: Mutex<BTreeSet<u64>>,
}

type Work<E> = Pin<Box<dyn Future<Output = Result<Reply, E>> + Send>>;

/// The policy that a call began with.
#[derive(Clone)]
struct First(Arc<Policy>);

/// Settings in which three numbers are derived from `n`.
fn pair(n: u64, more: &str) -> (String, String) {
    let timeouts = format!("timeout: {0}ms, total_timeout: {0}ms", 60_000 + n);
    (
        format!("inbound: {{ {timeouts}, concurrency: {0} }}", 60_000 + n),
        format!("outbound: {{ defaults: {{ {timeouts}, retry: off, concurrency: {0} }}{more} }}", 60_000 + n),
    )
}

impl Watch {
    /// An async function over the call, for any stage.
    fn layer<E: CallError>(&self) -> impl Fn(Invocation, Next<E>) -> Work<E> + Send + Sync + use<E> {
        let watch = self.clone();
        move |mut call, next| {
            let watch = watch.clone();
            Box::pin(async move {
                watch.look(call.policy(), call.extensions.get::<First>());
                let first = First(call.policy().clone());
                call.extensions.insert(first.clone());
                let reply: Result<Reply, E> = next.run(call).await;
                if let Ok(reply) = &reply {
                    watch.look(reply.policy(), Some(&first));
                }
                reply
            })
        }
    }

    fn look(&self, policy: &Arc<Policy>, first: Option<&First>) {
        self.0.looks.fetch_add(1, SeqCst);
        self.0.versions.lock().unwrap().insert(policy.version());
        let (timeout, total) = (policy.timeout(), policy.total_timeout());
        let whole = timeout == total
            && policy
                .concurrency()
                .is_none_or(|bound| Some(Duration::from_millis(u64::from(bound.limit.get()))) == timeout);
        let same = first.is_none_or(|first| Arc::ptr_eq(&first.0, policy));
        if !whole || !same {
            self.0.torn.lock().unwrap().push(format!("{}: {timeout:?} {total:?}", policy.version()));
        }
    }

    #[track_caller]
    fn is_whole(&self, versions: usize) {
        assert_eq!(*self.0.torn.lock().unwrap(), Vec::<String>::new());
        let seen = self.0.versions.lock().unwrap().len();
        assert!(seen >= versions, "{seen} versions were seen in {} looks", self.0.looks.load(SeqCst));
    }
}

/// Both protocols are under load at once: calls of both use every version.
#[tokio::test(start_paused = true)]
async fn a_thousand_swaps_under_load() {
    let mesh = Mesh::new();
    let (inside, outside) = (Watch::default(), Watch::default());
    let (server_call, handler) = (inside.layer(), inside.layer());
    let stock = mesh.server("stock", "stock-1").config(&pair(0, "").0).with(|builder| {
        builder.layer(Stage::ServerCall, "watch", chassis::from_fn(server_call)).layer(
            Stage::Handler,
            "watch",
            chassis::from_fn(handler),
        )
    });
    let stock = stock.start().await;
    let broken = mesh.start("broken", "broken-1").await;
    broken.does(Act::Fail(Code::Unavailable));
    let state = ", services: { \
                 broken: { breaker: { min_calls: 5, open: 1h } }, \
                 spent: { rate_limits: [ { name: spent, rate: 1/h, burst: 3 } ] } }";
    let (call, attempt, node) = (outside.layer(), outside.layer(), outside.layer());
    let caller = mesh.server("tests", "tests").config(&pair(0, state).1).with(|builder| {
        builder
            .layer(Stage::Call, "watch", chassis::from_fn(call))
            .layer(Stage::Attempt, "watch", chassis::from_fn(attempt))
            .layer(Stage::Node, "watch", chassis::from_fn(node))
    });
    let caller = caller.caller().await;
    let _spent = mesh.start("spent", "spent-1").await;
    for wire in [Wire::Grpc, Wire::Rest] {
        caller.calls(wire, 5, || Ask::to("broken")).await;
        caller.calls(wire, 2, || Ask::to("spent")).await;
    }

    // Calls take longer than two swaps, each another time: most of them overlap a swap, and some call begins
    // with every version.
    let turn = AtomicU64::new(0);
    stock.does(Act::Run(Arc::new(move |_, _| {
        let delay = Duration::from_millis(100 + turn.fetch_add(37, SeqCst) % 60);
        Box::pin(async move {
            tokio::time::sleep(delay).await;
            Ok(())
        })
    })));
    let mut loads = [Wire::Grpc, Wire::Rest].map(|wire| Load::new(&caller, wire, 4, || Ask::to("stock")));
    for n in 1..=1_000 {
        let (inbound, outbound) = pair(n, state);
        let (inside, outside) = tokio::join!(stock.push(&inbound), caller.push(&outbound));
        assert_eq!((inside.applied(), outside.applied()), (n + 1, n + 1));
        if n % 100 == 0 {
            for wire in [Wire::Grpc, Wire::Rest] {
                caller.call(wire, Ask::to("broken")).await.refused(Reason::CircuitOpen);
                caller.call(wire, Ask::to("spent")).await.refused(Reason::RateLimited);
            }
        }
    }
    for load in &mut loads {
        load.more(8).await;
    }
    for load in loads {
        let outcomes = load.stop().await;
        assert!(outcomes.len() > 1_000, "{}", outcomes.len());
        all_well(&outcomes);
    }
    inside.is_whole(900);
    outside.is_whole(900);
    assert_eq!(broken.executed(), 5, "the circuit stayed open for both protocols");
    assert_eq!(metric(caller.runtime(), r#"chassis_config_reloads_total{result="applied"}"#), 1_001.0);
    let inspection = caller.runtime().inspect();
    assert_eq!(inspection.version, 1_001);
    let bound = inspection.concurrency.iter().find(|bound| bound.service == "stock").unwrap();
    assert_eq!((bound.limit, bound.in_use), (61_000, 0), "one count, in all versions");
}

both! {
    async fn an_open_circuit_stays_open_and_its_numbers_change(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Fail(Code::Unavailable));
        let breaker = |numbers: &str| format!("outbound: {{ defaults: {{ retry: off, breaker: {{ {numbers} }} }} }}");
        let caller = mesh.caller(&breaker("min_calls: 5, open: 60s")).await;
        caller.calls(wire, 5, || Ask::to("stock")).await;
        caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
        caller.push(&breaker("min_calls: 500, failure_ratio: 90%, open: 60s")).await.applied();
        caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
        // It opened a moment ago: by the new number that is long enough.
        advance(Duration::from_secs(9)).await;
        caller.push(&breaker("min_calls: 500, open: 5s, probes: 1")).await.applied();
        stock.does(Act::Answer);
        all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
    }
}

both! {
    async fn a_bucket_keeps_its_level(wire: Wire) {
        let mesh = Mesh::new();
        let _stock = mesh.start("stock", "stock-1").await;
        let limit = |rate: &str, burst: u32| {
            let limit = format!("{{ name: out, rate: {rate}, burst: {burst} }}");
            format!("outbound: {{ services: {{ stock: {{ retry: off, rate_limits: [ {limit} ] }} }} }}")
        };
        let caller = mesh.caller(&limit("1/h", 10)).await;
        let admitted = async |calls| {
            let outcomes = caller.calls(wire, calls, || Ask::to("stock")).await;
            outcomes.iter().filter(|outcome| outcome.is_ok()).count()
        };
        assert_eq!(admitted(6).await, 6);
        caller.push(&limit("2/h", 10)).await.applied();
        assert_eq!(admitted(20).await, 4, "what was left of it");
        caller.push(&limit("1/h", 10)).await.applied();
        assert_eq!(admitted(20).await, 0);
        // Other rules around it do not change it.
        caller.push(&limit("1/h", 10).replace("[ ", "[ { name: more, rate: 1000/s, burst: 1000 }, ")).await.applied();
        assert_eq!(admitted(20).await, 0);
    }
}

both! {
    async fn a_servers_bucket_and_bound_keep_their_level(wire: Wire) {
        let mesh = Mesh::new();
        let limits = |rate| format!("inbound: {{ concurrency: 7, rate_limits: [ {{ name: in, rate: {rate}, burst: 3 }} ] }}");
        let stock = mesh.server("stock", "stock-1").config(&limits("1/h")).start().await;
        let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
        all_well(&caller.calls(wire, 3, || Ask::to("stock")).await);
        stock.push(&limits("2/h")).await.applied();
        caller.call(wire, Ask::to("stock")).await.refused(Reason::RateLimited);
    }
}

both! {
    async fn a_node_keeps_its_failure_weight_and_figures(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Fail(Code::Unavailable));
        let caller = mesh.caller("outbound: { defaults: { retry: off, breaker: off } }").await;
        caller.calls(wire, 20, || Ask::to("stock")).await;
        let before = caller.view(wire, "stock").nodes.remove(0);
        assert!(before.failure_share > 0.2, "{}", before.failure_share);
        caller.push("outbound: { defaults: { retry: off, breaker: off, balance: round_robin } }").await.applied();
        let after = caller.view(wire, "stock").nodes.remove(0);
        assert_eq!((after.calls, after.successes), (20, 0));
        assert!(after.failure_share > 0.9 * before.failure_share, "{}", after.failure_share);
    }
}

both! {
    async fn a_call_ends_under_the_rules_it_began_with(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Delay(Duration::from_secs(2)));
        let caller = mesh.caller("outbound: { defaults: { timeout: 3s } }").await;
        let began = caller.spawn(wire, Ask::to("stock"));
        crate::mesh::until("it is there", || stock.running() == 1).await;
        caller.push("outbound: { defaults: { timeout: 1s } }").await.applied();
        let next = caller.spawn(wire, Ask::to("stock"));
        let (began, next) = (began.await.unwrap(), next.await.unwrap());
        assert_eq!((began.code, next.code), (Code::Ok, Code::DeadlineExceeded));
        assert_eq!(next.took, Duration::from_secs(1));
    }
}

both! {
    async fn what_is_refused_leaves_the_last_good_version(wire: Wire) {
        let mesh = Mesh::new();
        let _stock = mesh.start("stock", "stock-1").await;
        let limited = |burst| {
            format!(
                "outbound: {{ services: {{ stock: {{ rate_limits: [ {{ name: out, rate: 1/h, burst: {burst} }} ] }} }} }}"
            )
        };
        let caller = mesh.caller(&limited("2")).await;
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        let applied = r#"chassis_config_reloads_total{result="applied"}"#;
        for (wrong, message) in [
            (limited("many"), "a whole number belongs here, not `many`"),
            (limited("20").replace("outbound", "outbond"), "did you mean `outbound`?"),
            ("outbound: {".to_owned(), "pushed:1:"),
        ] {
            let problems = caller.push(&wrong).await.refused();
            assert!(problems.len() == 1 && problems[0].contains(message), "{problems:?}");
            assert_eq!(caller.runtime().inspect().version, 1);
            assert_eq!(caller.metric("chassis_config_last_reload_successful"), 0.0);
        }
        caller.source().fail("the center is away");
        let unreadable = async {
            let mut events = caller.runtime().events().subscribe();
            loop {
                if let chassis::Event::ConfigUnreadable { error, .. } = &*events.recv().await.unwrap() {
                    return error.clone();
                }
            }
        };
        assert!(unreadable.await.contains("the center is away"));
        assert_eq!(caller.metric(r#"chassis_config_reloads_total{result="refused"}"#), 3.0);
        assert_eq!(caller.metric(r#"chassis_config_reloads_total{result="unreadable"}"#), 1.0);
        assert_eq!(caller.metric(applied), 1.0);

        // The first version stays in force.
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        caller.call(wire, Ask::to("stock")).await.refused(Reason::RateLimited);
        assert_eq!(caller.push(&limited("3")).await.applied(), 2);
        assert_eq!(caller.metric("chassis_config_last_reload_successful"), 1.0);
        assert_eq!(caller.metric(applied), 2.0);
        let inspection = caller.runtime().inspect();
        let info = format!(r#"chassis_config_info{{sha256="{}",version="2"}}"#, inspection.hash);
        assert_eq!(caller.metric(&info), 1.0);
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
    }
}

both! {
    async fn what_is_read_once_waits_for_a_restart(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        let mut events = stock.runtime().events().subscribe();
        let pushed = stock.push("listen: { grpc: '127.0.0.1:50099' }\ninbound: { concurrency: 5 }").await;
        assert!(matches!(pushed, Pushed::Applied { .. }));
        let pending = loop {
            if let chassis::Event::RestartPending { paths } = &*events.recv().await.unwrap() {
                break paths.clone();
            }
        };
        assert_eq!(pending, ["listen.grpc memory:stock-1 -> 127.0.0.1:50099 (pushed:1:17)"]);
        // The rest of it is in force, and calls go to the same node as before.
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1");
        assert_eq!(stock.runtime().inspect().concurrency[0].limit, 5);
    }
}
