//! Injected faults: their share, their answers in each protocol, on which side, above or below the retries,
//! and their end.
use std::{sync::Arc, time::Duration};

use chassis::{Code, Reason};
use tokio::time::advance;

use crate::mesh::{Ask, Caller, Mesh, Outcome, Server, Wire, all_well, both, metric};

/// The side whose settings contain the fault: the caller or the server.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

/// One instance and one caller, without retries; the fault, written without its `to`, is on `side`.
async fn with(side: Side, fault: &str) -> (Mesh, Server, Arc<Caller>) {
    let mesh = Mesh::seeded(3);
    let no_retry = "outbound: { defaults: { retry: off } }";
    let (inbound, outbound) = match side {
        Side::Server => (format!("faults: [ {{ {fault} }} ]"), no_retry.to_owned()),
        Side::Client => (String::new(), format!("{no_retry}\nfaults: [ {{ to: stock, {fault} }} ]")),
    };
    let stock = mesh.server("stock", "stock-1").config(&inbound).start().await;
    let caller = mesh.caller(&outbound).await;
    (mesh, stock, caller)
}

fn count(outcomes: &[Outcome], holds: impl Fn(&Outcome) -> bool) -> f64 {
    outcomes.iter().filter(|outcome| holds(outcome)).count() as f64
}

const BOTH: [Side; 2] = [Side::Client, Side::Server];

both! {
    async fn delays_and_aborts_at_their_shares(wire: Wire) {
        for side in BOTH {
            let fault = "name: trouble, share: 30%, delay: 200ms, abort: { code: ABORTED, share: 20% }";
            let (_mesh, stock, caller) = with(side, fault).await;
            let outcomes = caller.calls(wire, 1_000, || Ask::to("stock")).await;
            let delayed = |outcome: &Outcome| outcome.took >= Duration::from_millis(200);
            let aborted = |outcome: &Outcome| outcome.code == Code::Aborted;
            let shares = [
                count(&outcomes, delayed),
                count(&outcomes, aborted),
                count(&outcomes, |outcome| delayed(outcome) && aborted(outcome)),
            ];
            // Four standard deviations: 58, 50 and 30; drawn independently, both hit 6 %.
            let expected = [(300.0, 58.0), (200.0, 50.0), (60.0, 30.0)];
            for (share, (mean, width)) in shares.iter().zip(expected) {
                assert!((share - mean).abs() <= width, "{side:?}: {shares:?}");
            }
            assert_eq!(stock.executed() as f64, 1_000.0 - shares[1], "{side:?}");
            let runtime = match side {
                Side::Client => caller.runtime(),
                Side::Server => stock.runtime(),
            };
            let injected = |kind| {
                metric(runtime, &format!(r#"chassis_faults_injected_total{{kind="{kind}",rule="trouble"}}"#))
            };
            assert_eq!([injected("delay"), injected("abort")], shares[..2]);
            assert!(outcomes.iter().filter(|o| !aborted(o)).all(Outcome::is_ok));
        }
    }
}

both! {
    async fn an_abort_by_code(wire: Wire) {
        for side in BOTH {
            let fault = "name: down, abort: { code: PERMISSION_DENIED, message: go away }";
            let (_mesh, stock, caller) = with(side, fault).await;
            let outcome = caller.call(wire, Ask::to("stock")).await;
            assert_eq!(outcome.code, Code::PermissionDenied, "{side:?}");
            assert_eq!((outcome.reason, outcome.rule.as_deref()), (Some(Reason::FaultInjected), Some("down")));
            assert_eq!(outcome.message, "go away");
            let crossed = wire == Wire::Rest && matches!(side, Side::Server);
            assert_eq!(outcome.status, crossed.then_some(403));
            assert_eq!(stock.executed(), 0);
        }
    }
}

both! {
    async fn an_abort_by_status(wire: Wire) {
        for side in BOTH {
            let fault = r#"name: down, abort: { status: 503, body: '{"why":"maintenance"}' }"#;
            let (_mesh, _stock, caller) = with(side, fault).await;
            let outcome = caller.call(wire, Ask::to("stock")).await;
            assert_eq!(outcome.code, Code::Unavailable, "{side:?}: {outcome:?}");
            if wire == Wire::Rest {
                assert_eq!(outcome.body, r#"{"why":"maintenance"}"#, "{side:?}");
                let crossed = matches!(side, Side::Server);
                assert_eq!(outcome.status, crossed.then_some(503));
                assert_eq!(outcome.header("content-type"), crossed.then_some("application/json"));
            } else {
                assert_eq!(outcome.message, "injected by fault `down`");
                let debug = String::from_utf8_lossy(&outcome.details).into_owned();
                assert!(debug.contains(r#"{"why":"maintenance"}"#), "{debug}");
            }
        }
    }
}

both! {
    async fn a_range_of_delays(wire: Wire) {
        let (_mesh, _stock, caller) =
            with(Side::Client, "name: slow, delay: { from: 100ms, to: 300ms, share: 50% }").await;
        let outcomes = caller.calls(wire, 400, || Ask::to("stock")).await;
        all_well(&outcomes);
        let mut delays: Vec<_> = outcomes.iter().map(|o| o.took.as_millis()).filter(|ms| *ms > 0).collect();
        delays.sort_unstable();
        assert!((160..240).contains(&delays.len()), "{}", delays.len());
        assert!(delays[0] >= 100 && delays[delays.len() - 1] <= 300);
        let middle = delays[delays.len() / 2];
        assert!((180..220).contains(&middle), "{middle}");
    }
}

both! {
    async fn only_what_matches(wire: Wire) {
        for side in BOTH {
            let fault = "name: beta, abort: {}, match: { header: { x-beta: { present: true } } }";
            let (_mesh, _stock, caller) = with(side, fault).await;
            assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
            let hit = caller.call(wire, Ask::to("stock").header("x-beta", "1")).await;
            assert_eq!((hit.code, hit.reason), (Code::Unavailable, Some(Reason::FaultInjected)));
        }
    }
}

both! {
    async fn at_the_call_no_retry_hides_it(wire: Wire) {
        let (_mesh, stock, caller) = with(Side::Client, "name: down, abort: {}, share: 50%").await;
        caller.push("faults: [ { name: down, to: stock, abort: {}, share: 50% } ]").await.applied();
        let outcomes = caller.calls(wire, 200, || Ask::to("stock").safe()).await;
        let failed = count(&outcomes, |outcome| !outcome.is_ok());
        assert!((72.0..128.0).contains(&failed), "{failed}");
        assert_eq!(stock.executed() as f64, 200.0 - failed);
        assert!(outcomes.iter().filter(|o| !o.is_ok()).all(|o| o.maybe_executed == Some(false)));
    }
}

both! {
    async fn at_the_attempt_it_is_tried_again_and_blames_no_node(wire: Wire) {
        let mesh = Mesh::seeded(4);
        let _stock = mesh.start("stock", "stock-1").await;
        let settings = "
            outbound: { defaults: { retry: { attempts: 3, budget: off, backoff: 1ms } } }
            faults: [ { name: flaky, to: stock, abort: {}, share: 30%, at: attempt } ]
            ";
        let caller = mesh.caller(settings).await;
        let outcomes = caller.calls(wire, 300, || Ask::to("stock").safe()).await;
        let failed = count(&outcomes, |outcome| !outcome.is_ok());
        // 2.7 % of 300 fail three times.
        assert!(failed <= 20.0, "{failed}");
        let node = &caller.view(wire, "stock").nodes[0];
        assert_eq!((node.calls, node.failure_share), (300 - failed as u64, 0.0));
        let retries = caller.metric(r#"chassis_retry_attempts_total{outcome="retried",service="stock"}"#);
        assert!((90.0..170.0).contains(&retries), "{retries}");

        // A call that may have been executed is not retried where this is not safe.
        let outcomes = caller.calls(wire, 100, || Ask::to("stock")).await;
        let failed = count(&outcomes, |outcome| !outcome.is_ok());
        assert!((12.0..48.0).contains(&failed), "{failed}");
    }
}

both! {
    async fn at_the_attempt_it_opens_the_circuit(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let settings = "
            outbound: { defaults: { retry: off, breaker: { min_calls: 10 } } }
            faults: [ { name: down, to: stock, abort: {}, at: attempt } ]
            ";
        let caller = mesh.caller(settings).await;
        for outcome in caller.calls(wire, 10, || Ask::to("stock")).await {
            assert_eq!(outcome.reason, Some(Reason::FaultInjected));
        }
        caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
        assert_eq!(stock.executed(), 0);
    }
}

both! {
    async fn until_it_is_over(wire: Wire) {
        for side in BOTH {
            let (_mesh, _stock, caller) = with(side, "name: drill, abort: {}, until: 10s").await;
            assert!(!caller.call(wire, Ask::to("stock")).await.is_ok());
            advance(Duration::from_millis(9_900)).await;
            assert!(!caller.call(wire, Ask::to("stock")).await.is_ok());
            advance(Duration::from_millis(200)).await;
            all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
        }
    }
}

both! {
    async fn a_delay_ends_with_the_deadline(wire: Wire) {
        for side in BOTH {
            let (_mesh, stock, caller) = with(side, "name: slow, delay: 10s").await;
            let ask = Ask::to("stock").timeout(Duration::from_millis(250));
            let outcome = caller.call(wire, ask).await;
            assert_eq!(outcome.code, Code::DeadlineExceeded);
            assert_eq!((outcome.took.as_millis(), stock.executed()), (250, 0), "{side:?}");
        }
    }
}

both! {
    /// An instance with injected faults fails for its callers like any other: no call is sent twice for it,
    /// and it is avoided. Regression: their circuits did not count these faults.
    async fn a_fault_of_an_instance_is_a_failure_for_its_callers(wire: Wire) {
        for abort in ["abort: { code: UNAVAILABLE }", "abort: {}, delay: 1ms", "abort: {}, at: attempt"] {
            let mesh = Mesh::seeded(5);
            let faults = format!("faults: [ {{ name: down, {abort} }} ]");
            let bad = mesh.server("stock", "bad").config(&faults).start().await;
            let (one, two) = (mesh.start("stock", "one").await, mesh.start("stock", "two").await);
            let breaker = "scope: endpoint, min_calls: 5, failure_ratio: 50%, open: 60s";
            let settings = format!("outbound: {{ defaults: {{ balance: random, breaker: {{ {breaker} }} }} }}");
            let caller = mesh.caller(&settings).await;
            let outcomes = caller.calls(wire, 100, || Ask::to("stock")).await;
            let failed = count(&outcomes, |outcome| !outcome.is_ok());
            assert!((5.0..12.0).contains(&failed), "{abort}: {failed}");
            assert_eq!((one.executed() + two.executed(), bad.executed()), (100 - failed as u64, 0));
            let outcome = outcomes.iter().find(|outcome| !outcome.is_ok()).unwrap();
            assert_eq!((outcome.reason, outcome.rule.as_deref()), (Some(Reason::FaultInjected), Some("down")));
            assert_ne!(outcome.maybe_executed, Some(false));
            let nodes = caller.view(wire, "stock").nodes;
            let bad = nodes.iter().find(|node| node.id == "bad").unwrap();
            assert!(bad.failure_share > 0.0, "{bad:?}");
        }
    }
}
