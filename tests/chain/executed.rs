//! Statements that a call was not executed: which are made, and which are believed.
use std::sync::{Arc, OnceLock};

use axum::{Router, body::Body, response::IntoResponse, routing::post};
use chassis::{Code, HttpClient, Problem, Reason};

use crate::{
    link::{Links, Way},
    mesh::{Act, Ask, Clients, Failure, Gate, Mesh, Server, Wire, both, until},
};

/// Calls `ledger` and forwards its failure.
async fn pass_on_grpc(clients: Clients) -> Failure {
    let request = Ask::to("ledger").grpc(Default::default());
    Failure::Grpc(clients.grpc.clone().call(request).await.expect_err("it refuses"))
}

/// The same over REST, with head and body unchanged.
async fn pass_on_rest(ledger: Arc<OnceLock<HttpClient>>) -> impl IntoResponse {
    let answer = ledger.get().unwrap().post("/echo").json(&serde_json::json!({ "message": "" })).send().await;
    match answer {
        Ok(response) => response.into_http().map(Body::new).into_response(),
        Err(error) => Problem::of(&error).into_response(),
    }
}

/// `front`, whose handlers forward the answers of `ledger`, and the client to call it.
async fn front(mesh: &Mesh, config: &str) -> (Server, Arc<OnceLock<HttpClient>>) {
    let ledger = Arc::new(OnceLock::new());
    let shared = ledger.clone();
    let routes = Router::new().route("/pass", post(move || pass_on_rest(shared.clone())));
    let front =
        mesh.server("front", "front-1").config(config).calls(&["ledger"]).routes(routes).start().await;
    assert!(ledger.set(front.clients("ledger").rest.clone()).is_ok());
    front.does(Act::Run(Arc::new(|front, _| {
        let clients = front.clients("ledger").clone();
        Box::pin(async { Err(pass_on_grpc(clients).await) })
    })));
    (front, ledger)
}

both! {
    /// `front` forwards the refusal of `ledger`, which did nothing; `front` itself was executed.
    async fn a_handler_that_passes_on_a_refusal_was_executed(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.server("ledger", "ledger-1").config("inbound: { concurrency: { limit: 1 } }").start().await;
        let (gate, full) = (Gate::shut(), "inbound: { concurrency: { limit: 1 } }");
        ledger.does(Act::Wait(gate.clone()));
        let (front, _) = front(&mesh, "").await;
        let caller = mesh.caller("outbound: { defaults: { breaker: off, retry: { attempts: 3 } } }").await;
        let held = caller.spawn(wire, Ask::to("ledger"));
        until("ledger is full", || ledger.running() == 1).await;

        // Called directly, it reports that it did nothing: the call is safe to retry, and was retried.
        let outcome = caller.call(wire, Ask::to("ledger")).await;
        assert_eq!((outcome.refused(Reason::Overloaded).maybe_executed, ledger.executed()), (Some(false), 1), "{full}");

        match wire {
            Wire::Grpc => {
                let ask = Ask::to("front");
                let outcome = caller.call(wire, ask.clone()).await;
                assert_eq!((outcome.code, outcome.reason, outcome.maybe_executed), (Code::Unavailable, None, None));
                assert_eq!(mesh.executions(&ask.id), 1, "{outcome:?}");
            }
            Wire::Rest => {
                let response = caller.clients("front").rest.post("/pass").send().await.unwrap();
                assert_eq!((response.status().as_u16(), response.refusal().is_none()), (503, true));
                let problem = response.ok().await.unwrap_err();
                assert_eq!(problem.reason(), Some(Reason::Overloaded), "the document may say what it likes");
            }
        }
        let figure = "chassis_retry_attempts_total{outcome=\"unsafe\",service=\"front\"}";
        assert_eq!(caller.metric(figure), 1.0, "nothing was tried again");
        gate.open();
        assert!(held.await.unwrap().is_ok());
        drop(front);
    }
}

both! {
    /// The same for a refusal on `front`'s own side of the call.
    async fn a_handler_whose_own_call_was_refused_was_executed(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let config = "
outbound:
  services: { ledger: { concurrency: { limit: 1 } } }
";
        let (front, client) = front(&mesh, config).await;
        let gate = Gate::shut();
        ledger.does(Act::Wait(gate.clone()));
        let held = tokio::spawn({
            let clients = front.clients("ledger").clone();
            async move { clients.call(wire, Ask::to("ledger")).await }
        });
        until("its bound is reached", || ledger.running() == 1).await;
        let caller = mesh.caller("outbound: { defaults: { breaker: off } }").await;
        match wire {
            Wire::Grpc => {
                let ask = Ask::to("front");
                let outcome = caller.call(wire, ask.clone()).await;
                assert_eq!((outcome.code, outcome.maybe_executed), (Code::Unavailable, None), "{outcome:?}");
                assert_eq!(mesh.executions(&ask.id), 1);
            }
            Wire::Rest => {
                let response = caller.clients("front").rest.post("/pass").send().await.unwrap();
                assert_eq!((response.status().as_u16(), response.refusal().is_none()), (503, true));
            }
        }
        assert_eq!(ledger.executed(), 1);
        gate.open();
        assert!(held.await.unwrap().is_ok());
        drop(client);
    }
}

both! {
    /// A stream of answers breaks off: the part that was read is not read again from the start.
    async fn half_an_answer_is_never_begun_anew(wire: Wire) {
        let mesh = Mesh::new();
        let stocks = [mesh.start("stock", "stock-1").await, mesh.start("stock", "stock-2").await];
        let links = Links::over(&mesh.network);
        let ours = links.clone();
        let caller = mesh.server("tests", "tests").config("outbound: { defaults: { breaker: off } }");
        let caller = caller.with(|builder| builder.connector(ours)).caller().await;
        let gate = Gate::shut();
        stocks.iter().for_each(|stock| stock.does(Act::Wait(gate.clone())));
        for round in 1..=10 {
            let ask = Ask::to("stock").idempotent();
            let mut parts = caller.download(wire, ask.clone(), 10).await.unwrap_or_else(|failed| panic!("{failed:?}"));
            assert_eq!(parts.next().await.unwrap().unwrap(), "hello 1");
            links.break_all();
            let (more, failed) = parts.rest().await;
            let failed = failed.expect("it broke");
            assert_eq!((more, failed.code), (0, Code::Unavailable), "{failed:?}");
            assert_ne!(failed.maybe_executed, Some(false), "{failed:?}");
            assert_eq!(mesh.executions(&ask.id), 1, "round {round}");
            // A call that has not started is sent to another instance.
            stocks.iter().for_each(|stock| stock.does(Act::Answer));
            while !caller.call(wire, Ask::to("stock").safe()).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            stocks.iter().for_each(|stock| stock.does(Act::Wait(gate.clone())));
        }
    }
}

both! {
    /// A stream of requests breaks off when part of it is no longer kept: the rest alone is no request.
    async fn half_a_request_is_never_sent_for_a_whole_one(wire: Wire) {
        let mesh = Mesh::new();
        let stocks = [mesh.start("stock", "stock-1").await, mesh.start("stock", "stock-2").await];
        let links = Links::over(&mesh.network);
        let ours = links.clone();
        let config = "outbound: { defaults: { breaker: off, retry: { budget: off, replay_bytes: 3000 } } }";
        let caller = mesh.server("tests", "tests").config(config);
        let caller = caller.with(|builder| builder.connector(ours)).caller().await;
        // Up to three parts of 1,000 bytes are kept and sent again; more are not.
        for (sent, is_kept) in [(1, true), (2, true), (4, false), (6, false)] {
            for _ in 0..4 {
                assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
            }
            let (before, bytes) = (stocks.each_ref().map(|stock| stock.executed()), links.bytes(Way::ToServer));
            let (send, stream) = tokio::sync::mpsc::channel(1);
            let upload = tokio::spawn({
                let (clients, ask) = (caller.clients("stock"), Ask::to("stock").idempotent());
                async move { (ask.id.clone(), clients.upload(wire, ask, stream).await) }
            });
            for n in 0..sent {
                send.send(format!("{n:0>900}")).await.unwrap();
            }
            until("they are on their way", || links.bytes(Way::ToServer) - bytes > sent * 900).await;
            links.break_all();
            // Its end is sent later, so that the break comes before it.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            drop(send);
            let (id, outcome) = upload.await.unwrap();
            let executed = stocks.iter().zip(before).map(|(stock, before)| stock.executed() - before).sum::<u64>();
            if is_kept {
                assert!(outcome.is_ok() && outcome.count as usize == sent, "{outcome:?}");
                assert_eq!((executed, mesh.executions(&id)), (2, 2));
            } else {
                assert_eq!((outcome.code, outcome.maybe_executed), (Code::Unavailable, Some(true)), "{outcome:?}");
                assert_eq!((executed, mesh.executions(&id)), (1, 1));
            }
        }
    }
}
