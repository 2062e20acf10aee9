//! Rate and concurrency limits, of a server and of a client: refusals, their answers, and the time of a
//! permit.
use std::time::Duration;

use chassis::{Code, Reason};
use tokio::time::advance;

use crate::mesh::{Act, Ask, Gate, Mesh, Outcome, Wire, all_well, both, metric, until};

const NO_RETRY: &str = "outbound: { defaults: { retry: off } }";

/// Refused by this rate limit, in the form of each protocol.
#[track_caller]
fn over_the_rate(outcome: &Outcome, wire: Wire, rule: &str, after: Duration) {
    outcome.refused(Reason::RateLimited);
    assert_eq!(outcome.code, Code::ResourceExhausted);
    assert_eq!((outcome.rule.as_deref(), outcome.maybe_executed), (Some(rule), Some(false)));
    let rounded = match wire {
        // In `RetryInfo`, to the nanosecond.
        Wire::Grpc => after,
        // `Retry-After` has whole seconds.
        Wire::Rest if outcome.status.is_some() => {
            Duration::from_secs(after.as_millis().div_ceil(1_000) as u64)
        }
        Wire::Rest => after,
    };
    let sent = outcome.retry_after.expect("no retry delay");
    assert!(sent <= rounded && rounded - sent < Duration::from_millis(20), "{sent:?} is not {rounded:?}");
}

/// Refused for too many calls in flight, whose end a caller cannot know.
#[track_caller]
fn over_the_bound(outcome: &Outcome) {
    outcome.refused(Reason::Overloaded);
    assert_eq!((outcome.code, outcome.maybe_executed), (Code::Unavailable, Some(false)));
}

both! {
    async fn a_servers_rate(wire: Wire) {
        let mesh = Mesh::new();
        let limits = "inbound: { rate_limits: [ { name: all, rate: 10/s, burst: 5 } ] }";
        let stock = mesh.server("stock", "stock-1").config(limits).start().await;
        let caller = mesh.caller(NO_RETRY).await;
        all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
        let refused = caller.call(wire, Ask::to("stock")).await;
        over_the_rate(&refused, wire, "all", Duration::from_millis(100));
        if wire == Wire::Rest {
            assert_eq!((refused.status, refused.header("retry-after")), (Some(429), Some("1")));
            assert_eq!(refused.header("content-type"), Some("application/problem+json"));
        } else {
            assert_eq!(refused.header("grpc-retry-pushback-ms"), Some("100"));
        }
        assert_eq!(stock.executed(), 5);

        advance(Duration::from_millis(100)).await;
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        caller.call(wire, Ask::to("stock")).await.refused(Reason::RateLimited);
        let decided = |decision| {
            format!(r#"chassis_rate_limit_decisions_total{{decision="{decision}",rule="all",side="server"}}"#)
        };
        assert_eq!(metric(stock.runtime(), &decided("allowed")), 6.0);
        assert_eq!(metric(stock.runtime(), &decided("refused")), 2.0);
        let rejected = r#"chassis_rejected_total{reason="RATE_LIMITED",service="stock",side="server"}"#;
        assert_eq!(metric(stock.runtime(), rejected), 2.0);
    }
}

both! {
    async fn a_clients_rate(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let limits = "outbound: { services: { stock: { rate_limits: [ { name: out, rate: 2/s, burst: 3 } ] } } }";
        let caller = mesh.caller(limits).await;
        all_well(&caller.calls(wire, 3, || Ask::to("stock")).await);
        let refused = caller.call(wire, Ask::to("stock")).await;
        over_the_rate(&refused, wire, "out", Duration::from_millis(500));
        assert_eq!((stock.executed(), refused.status), (3, None), "it never left");
        let limit = &caller.runtime().inspect().limits[0];
        assert_eq!((limit.rule.as_str(), limit.burst, limit.available), ("out", 3, Some(0)));
        advance(Duration::from_millis(500)).await;
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
    }
}

both! {
    async fn a_rate_can_be_waited_for(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let limits = "outbound: { services: { stock: { rate_limits: [ \
                      { name: out, rate: 10/s, burst: 1, max_wait: 150ms } ] } } }";
        let caller = mesh.caller(limits).await;
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        let waits = caller.call(wire, Ask::to("stock")).await;
        assert_eq!((waits.by(), waits.took.as_millis()), ("stock-1", 100));
        // Two more at once: one waits its turn, the other would have to wait too long.
        let both = [caller.spawn(wire, Ask::to("stock")), caller.spawn(wire, Ask::to("stock"))];
        let mut codes = Vec::new();
        for one in both {
            codes.push(one.await.unwrap().code);
        }
        assert_eq!(codes, [Code::Ok, Code::ResourceExhausted]);
        assert_eq!(stock.executed(), 3);
        // No call waits beyond its deadline.
        let hurried = caller.call(wire, Ask::to("stock").timeout(Duration::from_millis(50))).await;
        assert_eq!((hurried.code, hurried.took), (Code::ResourceExhausted, Duration::ZERO), "{hurried:?}");
    }
}

both! {
    async fn each_caller_has_a_rate_of_its_own(wire: Wire) {
        let mesh = Mesh::new();
        let limits = "inbound: { rate_limits: [ { name: per-caller, rate: 1/s, burst: 2, key: caller } ] }";
        let _stock = mesh.server("stock", "stock-1").config(limits).start().await;
        for name in ["orders", "billing"] {
            let caller = mesh.server(name, name).config(NO_RETRY).caller().await;
            let codes: Vec<_> =
                caller.calls(wire, 3, || Ask::to("stock")).await.iter().map(|outcome| outcome.code).collect();
            assert_eq!(codes, [Code::Ok, Code::Ok, Code::ResourceExhausted], "{name}");
        }
    }
}

both! {
    async fn keys_by_header_and_operation_and_matches(wire: Wire) {
        let mesh = Mesh::new();
        let limits = "
            inbound:
              rate_limits:
                - { name: tenant, rate: 1/s, burst: 1, key: { header: x-tenant }, match: { header: { x-tenant: { present: true } } } }
                - { name: operation, rate: 1/s, burst: 4, key: operation }
            ";
        let _stock = mesh.server("stock", "stock-1").config(limits).start().await;
        let caller = mesh.caller(NO_RETRY).await;
        for tenant in ["a", "b"] {
            assert!(caller.call(wire, Ask::to("stock").header("x-tenant", tenant)).await.is_ok());
            let refused = caller.call(wire, Ask::to("stock").header("x-tenant", tenant)).await;
            assert_eq!(refused.rule.as_deref(), Some("tenant"));
        }
        all_well(&caller.calls(wire, 2, || Ask::to("stock")).await);
        assert_eq!(caller.call(wire, Ask::to("stock")).await.rule.as_deref(), Some("operation"));
        all_well(&caller.calls(wire, 4, || Ask::to("stock").safe()).await);
    }
}

both! {
    async fn zero_refuses_everything(wire: Wire) {
        let mesh = Mesh::new();
        let limits = "inbound: { rate_limits: [ { name: none, rate: 0/s, burst: 0 } ] }";
        let stock = mesh.server("stock", "stock-1").config(limits).start().await;
        let caller = mesh.caller(NO_RETRY).await;
        let refused = caller.call(wire, Ask::to("stock")).await;
        refused.refused(Reason::RateLimited);
        assert_eq!((refused.retry_after, stock.executed()), (None, 0));
    }
}

both! {
    async fn a_servers_bound(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("inbound: { concurrency: 2 }").start().await;
        let gate = Gate::shut();
        stock.does(Act::Wait(gate.clone()));
        let caller = mesh.caller(NO_RETRY).await;
        let first = [caller.spawn(wire, Ask::to("stock")), caller.spawn(wire, Ask::to("stock"))];
        until("both are in", || stock.running() == 2).await;
        let refused = caller.call(wire, Ask::to("stock")).await;
        over_the_bound(&refused);
        assert_eq!((refused.status, refused.rule.as_deref()), (
            (wire == Wire::Rest).then_some(503),
            Some("concurrency"),
        ));
        assert_eq!(stock.executed(), 2);
        gate.open();
        for call in first {
            assert_eq!(call.await.unwrap().by(), "stock-1");
        }
        all_well(&caller.calls(wire, 3, || Ask::to("stock")).await);
    }
}

both! {
    async fn a_clients_bound(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let gate = Gate::shut();
        stock.does(Act::Wait(gate.clone()));
        let caller = mesh.caller("outbound: { services: { stock: { concurrency: 2 } } }").await;
        let first = [caller.spawn(wire, Ask::to("stock")), caller.spawn(wire, Ask::to("stock"))];
        until("both are in", || stock.running() == 2).await;
        let refused = caller.call(wire, Ask::to("stock")).await;
        over_the_bound(&refused);
        let bound = &caller.runtime().inspect().concurrency[0];
        assert_eq!((bound.limit, bound.in_use), (2, 2));
        // A cancelled call makes room at once.
        first[0].abort();
        until("it has gone", || caller.runtime().inspect().concurrency[0].in_use == 1).await;
        let third = caller.spawn(wire, Ask::to("stock"));
        until("another is in", || stock.executed() == 3).await;
        gate.open();
        assert_eq!(third.await.unwrap().by(), "stock-1");
    }
}

both! {
    async fn a_full_endpoint_is_not_picked(wire: Wire) {
        let mesh = Mesh::new();
        let (one, two) = (mesh.start("stock", "stock-1").await, mesh.start("stock", "stock-2").await);
        let gate = Gate::shut();
        one.does(Act::Wait(gate.clone()));
        two.does(Act::Wait(gate.clone()));
        let caller =
            mesh.caller("outbound: { services: { stock: { concurrency: { limit: 3, scope: endpoint } } } }").await;
        let calls: Vec<_> = (0..6).map(|_| caller.spawn(wire, Ask::to("stock"))).collect();
        until("all are in", || one.running() + two.running() == 6).await;
        assert_eq!((one.running(), two.running()), (3, 3));
        over_the_bound(&caller.call(wire, Ask::to("stock")).await);
        gate.open();
        for call in calls {
            assert!(call.await.unwrap().is_ok());
        }
    }
}

both! {
    async fn a_stream_holds_its_permit_to_its_end(wire: Wire) {
        for side in ["server", "client"] {
            let mesh = Mesh::new();
            let bound = match side {
                "server" => ("inbound: { concurrency: 1 }", NO_RETRY),
                _ => ("", "outbound: { services: { stock: { retry: off, concurrency: 1 } } }"),
            };
            let stock = mesh.server("stock", "stock-1").config(bound.0).start().await;
            let caller = mesh.caller(bound.1).await;
            let gate = Gate::shut();
            stock.does(Act::Wait(gate.clone()));
            let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap();
            assert_eq!(parts.next().await.unwrap().unwrap(), "hello 1");
            over_the_bound(&caller.call(wire, Ask::to("stock")).await);
            assert_eq!(stock.executed(), 1, "{side}");
            gate.open();
            assert_eq!(parts.rest().await.0, 2);
            until("the permit is back", || {
                let runtime = if side == "server" { stock.runtime() } else { caller.runtime() };
                runtime.inspect().concurrency[0].in_use == 0
            })
            .await;
            all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);

            // A stream that is dropped early returns its permit too.
            stock.does(Act::Hang);
            let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap();
            parts.next().await.unwrap().unwrap();
            over_the_bound(&caller.call(wire, Ask::to("stock")).await);
            drop(parts);
            until("nothing is left", || stock.running() == 0).await;
            stock.does(Act::Answer);
            all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        }
    }
}
