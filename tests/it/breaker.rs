//! Circuits: when they open and close, which calls pass while they are open, and their scope.
use std::{sync::Arc, time::Duration};

use chassis::{Code, Event, Reason};
use tokio::time::advance;

use crate::mesh::{Act, Ask, Caller, Gate, Mesh, Op, Wire, all_well, both, until};

/// A breaker with these settings, without retries.
fn breaker(numbers: &str) -> String {
    format!("outbound: {{ defaults: {{ retry: off, breaker: {{ {numbers} }} }} }}")
}

const TEN_FAILURES: &str = "min_calls: 10, window: 10s, open: 5s, probes: 2";

/// Ten calls that fail.
async fn fails_ten_times(caller: &Arc<Caller>, wire: Wire, ask: impl Fn() -> Ask) {
    for outcome in caller.calls(wire, 10, ask).await {
        assert_eq!((outcome.code, outcome.reason), (Code::Unavailable, None), "{outcome:?}");
    }
}

/// The state changes of circuits so far, as in `service: closed -> open`.
fn moves(caller: &Caller) -> Vec<String> {
    let moved = |event: &Event| match event {
        Event::CircuitMoved { of, from, to, .. } => Some(format!("{of}: {from} -> {to}")),
        _ => None,
    };
    caller.runtime().events().past().iter().filter_map(|(_, event)| moved(event)).collect()
}

both! {
    async fn it_opens_refuses_probes_and_closes(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(&breaker(TEN_FAILURES)).await;
        stock.does(Act::Fail(Code::Unavailable));
        fails_ten_times(&caller, wire, || Ask::to("stock")).await;

        for outcome in caller.calls(wire, 100, || Ask::to("stock")).await {
            outcome.refused(Reason::CircuitOpen);
            assert_eq!((outcome.rule.as_deref(), outcome.maybe_executed), (Some("breaker"), Some(false)));
            let after = outcome.retry_after.expect("it is known when it opens");
            assert!(after > Duration::from_millis(4_400) && after <= Duration::from_secs(5), "{after:?}");
        }
        assert_eq!(stock.executed(), 10, "the handler was not reached");
        assert_eq!(caller.metric(r#"chassis_breaker_open{scope="service",service="stock"}"#), 1.0);
        let rejected = r#"chassis_rejected_total{reason="CIRCUIT_OPEN",service="stock",side="client"}"#;
        assert_eq!(caller.metric(rejected), 100.0);

        advance(Duration::from_secs(5)).await;
        let gate = Gate::shut();
        stock.does(Act::Wait(gate.clone()));
        let probes = [caller.spawn(wire, Ask::to("stock")), caller.spawn(wire, Ask::to("stock"))];
        until("both probes are there", || stock.running() == 2).await;
        caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
        gate.open();
        for probe in probes {
            assert_eq!(probe.await.unwrap().by(), "stock-1");
        }
        all_well(&caller.calls(wire, 50, || Ask::to("stock")).await);
        let expected = ["stock: closed -> open", "stock: open -> half-open", "stock: half-open -> closed"];
        assert_eq!(moves(&caller), expected);
        assert_eq!(caller.metric(r#"chassis_breaker_open{scope="service",service="stock"}"#), 0.0);
    }
}

both! {
    async fn a_probe_that_fails_reopens_it(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(&breaker(TEN_FAILURES)).await;
        stock.does(Act::Fail(Code::Unavailable));
        fails_ten_times(&caller, wire, || Ask::to("stock")).await;
        advance(Duration::from_secs(5)).await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.reason, None, "a probe");
        for _ in 0..4 {
            advance(Duration::from_millis(1_120)).await; // open for at least nine tenths of its setting
            caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
        }
        assert_eq!(stock.executed(), 11);
    }
}

both! {
    async fn a_cancelled_probe_gives_its_place_back(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(&breaker("min_calls: 10, window: 10s, open: 5s, probes: 1")).await;
        stock.does(Act::Fail(Code::Unavailable));
        fails_ten_times(&caller, wire, || Ask::to("stock")).await;
        advance(Duration::from_secs(5)).await;
        stock.does(Act::Hang);
        for n in 0..10 {
            let probe = caller.spawn(wire, Ask::to("stock"));
            until("the probe is there", || stock.running() == 1).await;
            caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
            probe.abort();
            assert!(probe.await.unwrap_err().is_cancelled(), "{n}");
            until("the handler is gone", || stock.running() == 0).await;
        }
        stock.does(Act::Answer);
        all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
    }
}

both! {
    async fn a_black_hole_opens_it(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Hang);
        let caller = mesh.caller(&breaker(TEN_FAILURES)).await;
        let ask = || Ask::to("stock").timeout(Duration::from_millis(100));
        for outcome in caller.calls(wire, 10, ask).await {
            assert_eq!(outcome.code, Code::DeadlineExceeded, "{outcome:?}");
            assert_eq!(outcome.took, Duration::from_millis(100));
        }
        caller.call(wire, ask()).await.refused(Reason::CircuitOpen);
        assert_eq!(stock.executed(), 10);
    }
}

both! {
    async fn failures_in_a_row_open_it_too_and_the_callers_own_do_not(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(&breaker("min_calls: 1000, consecutive: 3")).await;
        stock.does(Act::Fail(Code::InvalidArgument));
        for outcome in caller.calls(wire, 20, || Ask::to("stock")).await {
            assert_eq!(outcome.code, Code::InvalidArgument);
        }
        stock.does_next([Act::Fail(Code::Internal), Act::Fail(Code::Internal), Act::Answer]);
        stock.does(Act::Fail(Code::Internal));
        for outcome in caller.calls(wire, 3, || Ask::to("stock")).await {
            assert_eq!(outcome.reason, None);
        }
        caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
    }
}

both! {
    async fn each_operation_has_its_own(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(&breaker(&format!("scope: operation, {TEN_FAILURES}"))).await;
        stock.does(Act::Fail(Code::Unavailable));
        fails_ten_times(&caller, wire, || Ask::to("stock").safe()).await;
        stock.does(Act::Answer);
        let refused = caller.call(wire, Ask::to("stock").safe()).await;
        refused.refused(Reason::CircuitOpen);
        assert!(refused.message.starts_with(wire.operation(Op::Safe)), "{}", refused.message);
        all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
        assert_eq!(moves(&caller), [format!("{}: closed -> open", wire.operation(Op::Safe))]);
    }
}

both! {
    async fn an_endpoint_that_is_open_is_not_picked(wire: Wire) {
        let mesh = Mesh::new();
        let (one, two) = (mesh.start("stock", "stock-1").await, mesh.start("stock", "stock-2").await);
        let bad = mesh.start("stock", "stock-3").await;
        bad.does(Act::Fail(Code::Unavailable));
        let each = breaker(&format!("scope: endpoint, {TEN_FAILURES}"));
        let caller = mesh.caller(&each.replace("retry", "balance: round_robin, retry")).await;
        let outcomes = caller.calls(wire, 400, || Ask::to("stock")).await;
        assert_eq!(outcomes.iter().filter(|outcome| !outcome.is_ok()).count(), 10);
        assert_eq!(bad.executed(), 10);
        assert_eq!(one.executed() + two.executed(), 390);
        assert_eq!(moves(&caller), ["stock-3: closed -> open"]);
        let open: Vec<_> = caller.view(wire, "stock").nodes.iter().map(|node| node.circuit.unwrap().name()).collect();
        assert_eq!(open, ["closed", "closed", "open"]);

        // One or two probes find out that it has recovered.
        bad.does(Act::Answer);
        advance(Duration::from_secs(5)).await;
        all_well(&caller.calls(wire, 100, || Ask::to("stock")).await);
        assert!(bad.executed() > 30, "{}", bad.executed());
    }
}

both! {
    async fn a_pick_never_finds_a_wall(wire: Wire) {
        let mesh = Mesh::new();
        let mut all = Vec::new();
        for id in ["stock-1", "stock-2", "stock-3"] {
            let server = mesh.start("stock", id).await;
            server.does(Act::Fail(Code::Unavailable));
            all.push(server);
        }
        let caller = mesh.caller(&breaker(&format!("scope: endpoint, {TEN_FAILURES}"))).await;
        for outcome in caller.calls(wire, 200, || Ask::to("stock")).await {
            assert_eq!((outcome.code, outcome.reason), (Code::Unavailable, None), "it went out");
        }
        assert!(caller.metric(r#"chassis_panic_picks_total{service="stock"}"#) > 50.0);
    }
}

both! {
    async fn it_can_be_forced(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(&breaker("force: open")).await;
        let refused = caller.call(wire, Ask::to("stock")).await;
        refused.refused(Reason::CircuitOpen);
        assert_eq!(refused.message, "stock: circuit forced open");
        assert_eq!(stock.executed(), 0);

        caller.push(&breaker(&format!("{TEN_FAILURES}, force: closed"))).await.applied();
        stock.does(Act::Fail(Code::Unavailable));
        for outcome in caller.calls(wire, 50, || Ask::to("stock")).await {
            assert_eq!(outcome.reason, None);
        }
        assert_eq!(stock.executed(), 50);

        // By its count of the meantime it must be open.
        caller.push(&breaker(TEN_FAILURES)).await.applied();
        assert_eq!(caller.call(wire, Ask::to("stock")).await.reason, None);
        caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);

        caller.push("outbound: { defaults: { retry: off, breaker: off } }").await.applied();
        assert_eq!(caller.call(wire, Ask::to("stock")).await.reason, None);
    }
}

both! {
    async fn what_is_refused_here_does_not_count(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let numbers = breaker(TEN_FAILURES);
        let limited = numbers.replace("retry: off", "retry: off, rate_limits: [ { name: r, rate: 0/s, burst: 0 } ]");
        let caller = mesh.caller(&limited).await;
        for outcome in caller.calls(wire, 50, || Ask::to("stock")).await {
            outcome.refused(Reason::RateLimited);
        }
        caller.push(&numbers).await.applied();
        all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
        // Refusals of a server before any work do not count either: the service has not failed.
        stock.push("inbound: { rate_limits: [ { name: r, rate: 0/s, burst: 0 } ] }").await.applied();
        for outcome in caller.calls(wire, 50, || Ask::to("stock")).await {
            outcome.refused(Reason::RateLimited);
        }
        assert_eq!(moves(&caller), Vec::<String>::new());
    }
}
