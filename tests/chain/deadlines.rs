//! One deadline for a chain of services: each hop has less time, and after it no handler runs.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chassis::{Code, Context, Problem, Reason};
use tokio::time::Instant;

use crate::mesh::{Act, Ask, Caller, Gate, Mesh, Seen, Server, Wire, both, metric, until};

/// `edge` → `stock` → `ledger`: the caller uses `wire`, the services gRPC.
struct Chain {
    _mesh: Mesh,
    edge: Server,
    stock: Server,
    ledger: Server,
    caller: Arc<Caller>,
}

impl Chain {
    async fn new() -> Self {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let stock = mesh.server("stock", "stock-1").calls(&["ledger"]).start().await;
        let edge = mesh.server("edge", "edge-1").calls(&["stock", "ledger"]).start().await;
        let caller = mesh.caller("").await;
        let chain = Chain { _mesh: mesh, edge, stock, ledger, caller };
        // Connections are established first, so that only the call is measured.
        for wire in [Wire::Grpc, Wire::Rest] {
            assert!(chain.caller.call(wire, chain.ask()).await.is_ok());
        }
        chain
    }

    fn ask(&self) -> Ask {
        Ask::to("edge").via(&[(Wire::Grpc, "stock"), (Wire::Grpc, "ledger")])
    }

    fn servers(&self) -> [&Server; 3] {
        [&self.edge, &self.stock, &self.ledger]
    }

    fn remaining(&self) -> [Duration; 3] {
        self.servers().map(|server| server.last().remaining.expect("a deadline has come along"))
    }

    /// No handler runs, and no service counts a call as in flight.
    #[track_caller]
    fn assert_idle(&self) {
        for server in self.servers() {
            assert_eq!(server.running(), 0, "{}", server.id);
            let text = crate::mesh::scrape(server.runtime());
            for line in text.lines().filter(|line| line.starts_with("chassis_in_flight{")) {
                assert!(line.ends_with(" 0"), "{}: {line}", server.id);
            }
        }
        assert_eq!(metric(self.caller.runtime(), "chassis_in_flight{service=\"edge\",side=\"client\"}"), 0.0);
    }
}

both! {
    async fn a_hundred_milliseconds_for_three_hops(wire: Wire) {
        let chain = Chain::new().await;
        chain.ledger.does(Act::Hang);
        let outcome = chain.caller.call(wire, chain.ask().timeout(Duration::from_millis(100))).await;
        assert_eq!(outcome.code, Code::DeadlineExceeded, "{outcome:?}");
        assert!((90..=100).contains(&outcome.took.as_millis()), "the last hops end first: {outcome:?}");
        let [edge, stock, ledger] = chain.remaining();
        println!("{wire:?}: {edge:?} > {stock:?} > {ledger:?}");
        assert!(edge <= Duration::from_millis(100) && edge > stock && stock > ledger, "{edge:?} {stock:?} {ledger:?}");
        assert!(ledger > Duration::from_millis(80), "margins are small: {ledger:?}");
        until("every handler has stopped", || chain.servers().iter().all(|server| server.running() == 0)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        chain.assert_idle();
        assert!(chain.ledger.last().at.elapsed().as_millis() <= 101, "without waiting for more");
    }
}

/// The caller only sends its timeout and leaves its enforcement to the edge: 504.
#[tokio::test(start_paused = true)]
async fn the_edge_answers_504() {
    let chain = Chain::new().await;
    chain.ledger.does(Act::Hang);
    let ask = chain.ask().header("x-request-timeout-ms", "100");
    let outcome = chain.caller.call(Wire::Rest, ask).await;
    assert_eq!((outcome.status, outcome.code), (Some(504), Code::DeadlineExceeded), "{outcome:?}");
    assert!((80..=100).contains(&outcome.took.as_millis()), "{:?}", outcome.took);
    tokio::time::sleep(Duration::from_millis(1)).await;
    chain.assert_idle();
}

both! {
    /// A caller that cancels also ends all work that is done for it.
    async fn who_gives_up_early_stops_all_of_it(wire: Wire) {
        let chain = Chain::new().await;
        chain.ledger.does(Act::Hang);
        let call = chain.caller.spawn(wire, chain.ask());
        until("the last handler runs", || chain.ledger.running() == 1).await;
        call.abort();
        until("every handler has stopped", || chain.servers().iter().all(|server| server.running() == 0)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        chain.assert_idle();
    }
}

/// The body of a handler of `edge`; it records the deadline that `ledger` saw.
type Handler = fn(Arc<crate::mesh::Echo>) -> crate::mesh::Work;

both! {
    /// Detached calls, and tasks that a handler spawns with its context, without it, or without its deadline.
    async fn work_beside_the_call(wire: Wire) {
        let cases: [(&str, Handler, bool); 5] = [
            ("called by the handler", |edge| Box::pin(async move { call(edge, Ask::to("ledger")).await }), true),
            ("detached", |edge| Box::pin(async move { call(edge, Ask::to("ledger").detached()).await }), false),
            (
                "spawned",
                |edge| Box::pin(async move { tokio::spawn(call(edge, Ask::to("ledger"))).await.unwrap() }),
                false,
            ),
            (
                "spawned with the context",
                |edge| {
                    let work = Context::current().scope(call(edge, Ask::to("ledger")));
                    Box::pin(async move { tokio::spawn(work).await.unwrap() })
                },
                true,
            ),
            (
                "spawned with the context, detached",
                |edge| {
                    let work = Context::current().detached().scope(call(edge, Ask::to("ledger")));
                    Box::pin(async move { tokio::spawn(work).await.unwrap() })
                },
                false,
            ),
        ];
        for (what, handler, has_deadline) in cases {
            let chain = Chain::new().await;
            chain.edge.does(Act::Run(Arc::new(move |edge, _| handler(edge))));
            let ask = Ask::to("edge").timeout(Duration::from_millis(100));
            assert!(chain.caller.call(wire, ask).await.is_ok(), "{what}");
            let left = chain.ledger.last().remaining;
            assert_eq!(left.is_some_and(|left| left < Duration::from_millis(100)), has_deadline, "{what}: {left:?}");
        }
    }
}

async fn call(edge: Arc<crate::mesh::Echo>, ask: Ask) -> Result<(), crate::mesh::Failure> {
    let outcome = edge.clients("ledger").call(Wire::Grpc, ask).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    Ok(())
}

both! {
    /// A detached call continues after the call that started it has ended.
    async fn detached_work_outlives_the_call(wire: Wire) {
        let chain = Chain::new().await;
        let (gate, done) = (Gate::shut(), Arc::new(Mutex::new(None)));
        chain.ledger.does(Act::Wait(gate.clone()));
        let result = done.clone();
        chain.edge.does(Act::Run(Arc::new(move |edge, _: Seen| {
            let result = result.clone();
            let work = async move {
                let outcome = edge.clients("ledger").call(Wire::Grpc, Ask::to("ledger")).await;
                *result.lock().unwrap() = Some(outcome.is_ok());
            };
            tokio::spawn(Context::current().detached().scope(work));
            Box::pin(std::future::pending())
        })));
        let outcome = chain.caller.call(wire, Ask::to("edge").timeout(Duration::from_millis(100))).await;
        outcome.refused(Reason::DeadlineExceeded);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((chain.edge.running(), chain.ledger.running()), (0, 1));
        gate.open();
        until("it is done", || *done.lock().unwrap() == Some(true)).await;
    }
}

both! {
    /// Two attempts, a backoff and a slow hop share one deadline.
    async fn attempts_share_it(wire: Wire) {
        let chain = Chain::new().await;
        chain.stock.does(Act::Fail(Code::Unavailable));
        let began = Instant::now();
        let slow = Act::Run(Arc::new(|edge: Arc<crate::mesh::Echo>, _| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(90)).await;
                let outcome = edge.clients("stock").call(Wire::Grpc, Ask::to("stock").safe()).await;
                assert!(!outcome.is_ok());
                Err(crate::mesh::Failure::Rest(Problem::new(http::StatusCode::BAD_GATEWAY)))
            })
        }));
        chain.edge.does(slow);
        let before = chain.stock.executed();
        let outcome = chain.caller.call(wire, Ask::to("edge").timeout(Duration::from_millis(100))).await;
        assert!(!outcome.is_ok());
        assert!(began.elapsed() <= Duration::from_millis(100));
        assert!(chain.stock.executed() - before <= 2);
        let left = chain.stock.last().remaining.expect("a deadline has come along");
        assert!(left < Duration::from_millis(10), "{left:?}");
    }
}
