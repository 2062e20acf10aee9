//! Options of one call, and the information that its caller gets when it fails.
use std::{sync::Arc, time::Duration};

use chassis::{Code, Origin, Problem, Reason};
use chassis_protos::echo::EchoRequest;

use crate::mesh::{Act, Ask, Clients, Mesh, Wire, both, until};

both! {
    async fn a_timeout_is_a_deadline_and_travels(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        let outcome = caller.call(wire, Ask::to("stock").timeout(Duration::from_millis(800))).await;
        let remaining = outcome.remaining.expect("a deadline came along");
        assert!(remaining > Duration::from_millis(750) && remaining <= Duration::from_millis(800), "{remaining:?}");
        // The `timeout` of the settings is local: it is not sent on.
        let outcome = caller.call(wire, Ask::to("stock")).await;
        assert_eq!(outcome.remaining, None);

        stock.does(Act::Hang);
        let outcome = caller.call(wire, Ask::to("stock").timeout(Duration::from_millis(800))).await;
        outcome.refused(Reason::DeadlineExceeded);
        assert_eq!((outcome.code, outcome.took), (Code::DeadlineExceeded, Duration::from_millis(800)));
        assert_eq!(outcome.maybe_executed, Some(true));
        until("the handler is gone too", || stock.running() == 0).await;
    }
}

both! {
    async fn labels_are_pinned_whatever_the_routes_say(wire: Wire) {
        let mesh = Mesh::new();
        let _stable = mesh.server("stock", "stable-1").label("track", "stable").start().await;
        let _canary =
            mesh.server("stock", "canary-1").label("track", "canary").label("zone", "a").start().await;
        let caller = mesh
            .caller("outbound: { services: { stock: { routes: [ { name: all, to: { track: stable } } ] } } }")
            .await;
        for _ in 0..5 {
            assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stable-1");
            let pinned = Ask::to("stock").pin("track", "canary");
            assert_eq!(caller.call(wire, pinned.clone()).await.by(), "canary-1");
            assert_eq!(caller.call(wire, pinned.clone().pin("zone", "a")).await.by(), "canary-1");
            let nowhere = caller.call(wire, pinned.pin("zone", "b")).await;
            nowhere.refused(Reason::NoRoute);
            assert_eq!(nowhere.rule.as_deref(), Some("pinned"));
        }
    }
}

both! {
    async fn idempotent_calls_are_tried_again_and_others_are_not(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        for (ask, executions) in [
            (Ask::to("stock"), 1),
            (Ask::to("stock").safe(), 2),
            (Ask::to("stock").idempotent(), 2),
            (Ask::to("stock").safe().no_retry(), 1),
            (Ask::to("stock").idempotent().no_retry(), 1),
        ] {
            stock.does(Act::Answer);
            stock.does_next([Act::Fail(Code::Unavailable)]);
            let outcome = caller.call(wire, ask.clone()).await;
            assert_eq!(mesh.executions(&ask.id), executions, "{ask:?}");
            assert_eq!(outcome.is_ok(), executions == 2);
            if executions == 2 {
                let number = match wire {
                    Wire::Grpc => "grpc-previous-rpc-attempts",
                    Wire::Rest => "x-chassis-attempt",
                };
                assert_eq!(stock.last().headers[number], "1");
            }
        }
    }
}

both! {
    async fn a_call_can_leave_the_deadline_it_inherits(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let stock = mesh.server("stock", "stock-1").calls(&["ledger"]).start().await;
        let caller = mesh.caller("").await;
        let calls = move |detached: bool| {
            Act::Run(Arc::new(move |echo, seen| {
                Box::pin(async move {
                    let ask = Ask::to("ledger");
                    let ask = if detached { ask.detached() } else { ask };
                    assert!(echo.clients("ledger").call(seen.wire, ask).await.is_ok());
                    Ok(())
                })
            }))
        };
        let ask = || Ask::to("stock").timeout(Duration::from_millis(500));
        stock.does(calls(false));
        assert!(caller.call(wire, ask()).await.is_ok());
        let (first, second) = (stock.last().remaining.unwrap(), ledger.last().remaining.unwrap());
        assert!(second < first && second > Duration::from_millis(400), "{first:?} {second:?}");

        stock.does(calls(true));
        assert!(caller.call(wire, ask()).await.is_ok());
        assert_eq!(ledger.last().remaining, None);
    }
}

both! {
    async fn a_callers_name_and_labels_are_sent(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let plan = mesh.server("orders", "orders-1").label("track", "canary");
        let caller = plan.caller().await;
        assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        assert_eq!(stock.last().headers["x-chassis-caller"], "orders;track=canary");
    }
}

both! {
    async fn a_handlers_own_failure_is_no_refusal(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
        for code in Code::ALL.into_iter().filter(|code| *code != Code::Ok) {
            stock.does(Act::Fail(code));
            let outcome = caller.call(wire, Ask::to("stock")).await;
            assert_eq!((outcome.code, outcome.reason), (code, None), "{outcome:?}");
            assert_eq!((outcome.rule, outcome.maybe_executed), (None, None));
            assert_eq!(outcome.message, "stock-1 fails as asked");
            assert_eq!(outcome.status, (wire == Wire::Rest).then_some(code.http_status().as_u16()));
        }
    }
}

/// The refusal that callers of either protocol receive; here it was refused at the server, and there it never
/// left.
#[tokio::test(start_paused = true)]
async fn callers_get_the_reason_back() {
    let mesh = Mesh::new();
    let limits = "inbound: { rate_limits: [ { name: per-caller, rate: 1/s, burst: 0, key: caller } ] }";
    let _stock = mesh.server("stock", "stock-1").config(limits).start().await;
    let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
    let Clients { mut grpc, rest } = caller.clients("stock");

    let status = grpc.call(EchoRequest::default()).await.unwrap_err();
    let error = chassis::grpc::error(&status).unwrap();
    assert_eq!((error.reason(), error.rule()), (Reason::RateLimited, Some("per-caller")));
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Remote, false));

    let problem = rest.get("/safe/{message}").param("message", "a").send().await.unwrap().ok().await;
    let problem = problem.unwrap_err();
    assert_eq!((problem.reason(), problem.rule()), (Some(Reason::RateLimited), Some("per-caller")));
    assert_eq!((problem.status().as_u16(), problem.code()), (429, Code::ResourceExhausted));

    caller.push("outbound: { defaults: { retry: off, breaker: { force: open } } }").await.applied();
    let status = grpc.call(EchoRequest::default()).await.unwrap_err();
    let error = chassis::grpc::error(&status).unwrap();
    assert_eq!((error.reason(), error.rule()), (Reason::CircuitOpen, Some("breaker")));
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Local, false));

    let error = rest.get("/safe/{message}").param("message", "a").send().await.unwrap_err();
    assert_eq!((error.reason(), error.rule()), (Reason::CircuitOpen, Some("breaker")));
    assert_eq!((error.origin(), error.maybe_executed()), (Origin::Local, false));
    let problem = Problem::from(error);
    assert_eq!((problem.reason(), problem.rule()), (Some(Reason::CircuitOpen), Some("breaker")));
    assert_eq!(problem.status().as_u16(), 503);
}
