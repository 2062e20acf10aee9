//! Retries: which calls, how often, and their effect along a chain.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use chassis::{Code, Problem, Reason};
use tokio::time::Instant;
use tonic::Status;

use crate::mesh::{Act, Ask, Failure, Mesh, Outcome, Seen, Server, Wire, both};

/// Sends calls at this rate per millisecond, up to this number.
async fn at_a_rate(
    per_second: u32,
    calls: u32,
    mut call: impl FnMut() -> tokio::task::JoinHandle<Outcome>,
) -> Vec<Outcome> {
    let (began, mut handles) = (Instant::now(), Vec::new());
    for n in 0..calls {
        tokio::time::sleep_until(began + Duration::from_secs(1) / per_second * n).await;
        handles.push(call());
    }
    let mut outcomes = Vec::new();
    for handle in handles {
        outcomes.push(handle.await.unwrap());
    }
    outcomes
}

both! {
    /// 500 calls a second for a minute, all of which fail: retries add the budget's share.
    async fn a_storm_is_bounded_by_the_budget(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Fail(Code::Unavailable));
        let caller = mesh.caller("outbound: { defaults: { breaker: off } }").await;
        let outcomes = at_a_rate(500, 30_000, || caller.spawn(wire, Ask::to("stock").safe())).await;
        assert!(outcomes.iter().all(|outcome| outcome.code == Code::Unavailable));
        let ratio = stock.executed() as f64 / outcomes.len() as f64;
        println!("{wire:?}: {} attempts for {} calls: {ratio:.4}", stock.executed(), outcomes.len());
        assert!((1.15..=1.25).contains(&ratio), "{ratio}");
    }
}

/// `tests` → `front` → `stock` → `ledger`, each of which retries.
struct Chain {
    mesh: Mesh,
    servers: Vec<Server>,
}

const HOPS: [&str; 3] = ["front", "stock", "ledger"];

impl Chain {
    async fn new(config: &str) -> Self {
        let (mesh, mut servers) = (Mesh::new(), Vec::new());
        for (at, hop) in HOPS.iter().enumerate() {
            let next = HOPS.get(at + 1).into_iter().copied().collect::<Vec<_>>();
            servers.push(mesh.server(hop, &format!("{hop}-1")).config(config).calls(&next).start().await);
        }
        Chain { mesh, servers }
    }

    /// The number of calls of each service.
    fn executed(&self) -> Vec<u64> {
        self.servers.iter().map(|server| server.executed()).collect()
    }
}

/// A call to the first service, which calls the others.
fn along(wire: Wire) -> Ask {
    Ask::to("front").safe().idempotent().via(&[(wire, "stock"), (wire, "ledger")])
}

/// Only the number of attempts bounds retries.
const UNBOUND: &str =
    "outbound: { defaults: { idempotent: true, breaker: off, retry: { budget: off, chained: CHAINED } } }";

both! {
    /// A retry calls the first service; the last, two hops further, fails once.
    async fn a_retry_is_not_retried_again_downstream(wire: Wire) {
        for (chained, expected) in [("false", [2, 1, 1]), ("true", [2, 1, 2])] {
            let config = UNBOUND.replace("CHAINED", chained);
            let chain = Chain::new(&config).await;
            let caller = chain.mesh.caller(&config).await;
            chain.servers[0].does_next([Act::Fail(Code::Unavailable)]);
            chain.servers[2].does_next([Act::Fail(Code::Unavailable)]);
            let outcome = caller.call(wire, along(wire)).await;
            assert_eq!((outcome.is_ok(), chain.executed()), (chained == "true", expected.to_vec()), "{chained}");
        }
    }
}

both! {
    /// Retries on three levels would be 2³ calls at the end: a service whose retries failed reports it to its
    /// caller.
    async fn exhausted_retries_are_not_repeated_above(wire: Wire) {
        for chained in ["false", "true"] {
            let config = UNBOUND.replace("CHAINED", chained);
            let chain = Chain::new(&config).await;
            chain.servers[2].does(Act::Fail(Code::Unavailable));
            let caller = chain.mesh.caller(&config).await;
            let outcome = caller.call(wire, along(wire)).await;
            assert_eq!((outcome.code, chain.executed()), (Code::Unavailable, vec![1, 1, 2]), "{chained}");
        }
    }
}

both! {
    /// With default settings, under load: three services that retry add no more than one would.
    async fn the_last_of_a_chain_sees_half_as_much_again_at_most(wire: Wire) {
        let config = "outbound: { defaults: { idempotent: true, breaker: off } }";
        let chain = Chain::new(config).await;
        chain.servers[2].does(Act::Fail(Code::Unavailable));
        let caller = chain.mesh.caller(config).await;
        let calls = 2_500;
        let outcomes = at_a_rate(500, calls, || caller.spawn(wire, along(wire))).await;
        assert!(outcomes.iter().all(|outcome| !outcome.is_ok()));
        let seen: Vec<_> = chain.executed().iter().map(|n| *n as f64 / f64::from(calls)).collect();
        println!("{wire:?}: {seen:?} of the calls");
        assert!(seen[2] <= 1.25, "{seen:?}");
    }
}

fn unavailable(wire: Wire) -> Failure {
    match wire {
        Wire::Grpc => Failure::Grpc(Status::unavailable("not now")),
        Wire::Rest => Failure::Rest(Problem::new(http::StatusCode::SERVICE_UNAVAILABLE)),
    }
}

/// A failure that asks for a delay of so many milliseconds.
fn pushes_back(wire: Wire, millis: &str) -> Failure {
    match unavailable(wire) {
        Failure::Grpc(mut status) => {
            status.metadata_mut().insert("grpc-retry-pushback-ms", millis.parse().unwrap());
            Failure::Grpc(status)
        }
        Failure::Rest(problem) => {
            Failure::Rest(problem.retry_after(Duration::from_millis(millis.parse().unwrap())))
        }
    }
}

/// The time between the first attempt and the second.
fn pause(seen: &[Seen]) -> Duration {
    assert_eq!(seen.len(), 2, "{seen:?}");
    seen[1].at - seen[0].at
}

both! {
    async fn a_requested_delay_is_kept(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
        // Longer than any backoff of the settings, and within the call's deadline.
        stock.does_next([Act::FailWith(Arc::new(move || pushes_back(wire, "3000")))]);
        assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
        let pause = pause(&stock.seen()[1..]);
        assert!((3_000..3_770).contains(&pause.as_millis()), "{pause:?}");

        // A delay beyond the deadline is not waited for.
        stock.does_next([Act::FailWith(Arc::new(move || pushes_back(wire, "6000")))]);
        let before = stock.executed();
        let outcome = caller.call(wire, Ask::to("stock").safe()).await;
        assert_eq!((outcome.code, stock.executed() - before), (Code::Unavailable, 1));
        assert!(outcome.took < Duration::from_millis(100), "{:?}", outcome.took);
    }
}

#[tokio::test(start_paused = true)]
async fn a_negative_pushback_is_a_no() {
    let mesh = Mesh::new();
    let stock = mesh.start("stock", "stock-1").await;
    let caller = mesh.caller("").await;
    for no in ["-1", "soon"] {
        stock.does(Act::FailWith(Arc::new(move || pushes_back(Wire::Grpc, no))));
        let before = stock.executed();
        assert!(!caller.call(Wire::Grpc, Ask::to("stock").safe()).await.is_ok());
        assert_eq!(stock.executed() - before, 1);
    }
}

both! {
    /// As gRPC's `grpc-previous-rpc-attempts`, and as `x-chassis-attempt`.
    async fn the_server_sees_which_attempt_it_is(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("outbound: { defaults: { retry: { attempts: 3 } } }").await;
        stock.does_next([Act::Fail(Code::Unavailable), Act::Fail(Code::Unavailable)]);
        assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
        let name = if wire == Wire::Grpc { "grpc-previous-rpc-attempts" } else { "x-chassis-attempt" };
        let seen = stock.seen();
        let numbers: Vec<_> = seen.iter().map(|seen| seen.headers.get(name).map(|n| n.to_str().unwrap())).collect();
        assert_eq!(numbers, [None, Some("1"), Some("2")]);
    }
}

both! {
    /// A stream is kept up to `replay_bytes` and can be sent again as a whole; a longer one continues without
    /// being kept.
    async fn a_stream_is_sent_again_while_all_of_it_is_kept(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let config = "outbound: { defaults: { breaker: off, retry: { budget: off, replay_bytes: 10000 } } }";
        let caller = mesh.caller(config).await;
        for (parts, attempts) in [(8, 2), (12, 1)] {
            stock.does_next([Act::Fail(Code::Unavailable)]);
            let before = stock.executed();
            let (send, stream) = tokio::sync::mpsc::channel(1);
            let sender = tokio::spawn(async move {
                for n in 0..parts {
                    // 1,000 bytes, with or without the protocol's framing.
                    send.send(format!("{n:0>990}")).await.unwrap();
                }
            });
            let outcome = caller.upload(wire, Ask::to("stock").idempotent(), stream).await;
            sender.await.unwrap();
            assert_eq!(stock.executed() - before, attempts, "{parts} parts: {outcome:?}");
            assert_eq!(outcome.is_ok(), attempts == 2, "{outcome:?}");
            if outcome.is_ok() {
                let all: String = (0..parts).map(|n| format!("{n:0>990}")).collect();
                assert!(outcome.message == all && outcome.count == parts, "sent again from the start");
            }
        }
    }
}

both! {
    /// Two attempts, and no third; each of them at another node while there is one.
    async fn another_attempt_goes_to_another_node(wire: Wire) {
        let mesh = Mesh::new();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let mut stocks = Vec::new();
        for n in 0..3 {
            let stock = mesh.start("stock", &format!("stock-{n}")).await;
            let asked = asked.clone();
            stock.does(Act::Run(Arc::new(move |echo, seen| {
                asked.lock().unwrap().push(echo.id.clone());
                Box::pin(std::future::ready(Err(unavailable(seen.wire))))
            })));
            stocks.push(stock);
        }
        let caller = mesh.caller("outbound: { defaults: { breaker: off, retry: { attempts: 3 } } }").await;
        for _ in 0..20 {
            let outcome = caller.call(wire, Ask::to("stock").safe()).await;
            assert_eq!((outcome.code, outcome.reason), (Code::Unavailable, None::<Reason>));
            let mut asked = std::mem::take(&mut *asked.lock().unwrap());
            asked.sort();
            assert_eq!(asked, ["stock-0", "stock-1", "stock-2"]);
        }
    }
}
