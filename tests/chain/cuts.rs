//! Connections that break, at every byte: a call that is not idempotent is never executed twice, and errors
//! state correctly whether a call may have been executed.
use std::{sync::Arc, time::Duration};

use chassis::Reason;

use crate::{
    link::{Links, Way},
    mesh::{Act, Ask, Caller, Mesh, Op, Server, Wire, both, until},
};

/// One instance, and a caller whose connections break where the test asks.
struct World {
    mesh: Mesh,
    _stock: Server,
    caller: Arc<Caller>,
    links: Links,
    wire: Wire,
}

/// The results of calls whose connections broke.
#[derive(Debug, Default)]
struct Tally {
    /// Number of broken connections.
    cuts: usize,
    answered: usize,
    /// Failed, and provably not executed.
    unsent: usize,
    /// Failed, and reported as maybe executed.
    unsure: usize,
}

/// The bytes of one exchange in each direction.
#[derive(Clone, Copy, Debug)]
struct Spans {
    to_server: usize,
    to_client: usize,
    /// Bytes of the answer up to the end of its head.
    head: usize,
}

/// Only the transport decides; all other mechanisms are off.
const CONFIG: &str = "outbound: { defaults: { breaker: off, timeout: 60s, retry: { budget: off } } }";

impl World {
    async fn new(wire: Wire, listen: Option<serde_json::Value>) -> Self {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1");
        let stock = match listen {
            Some(listen) => stock.listen(listen),
            None => stock,
        };
        let stock = stock.start().await;
        let links = Links::over(&mesh.network);
        let ours = links.clone();
        let caller = mesh.server("tests", "tests").config(CONFIG).with(|builder| builder.connector(ours));
        let caller = caller.caller().await;
        World { mesh, _stock: stock, caller, links, wire }
    }

    /// On a connection that has served a call: the next call uses it, and a broken one is replaced soon.
    async fn warm(&self) {
        let cap = tokio::time::timeout(Duration::from_secs(600), async {
            while !self.caller.call(self.wire, Ask::to("stock").safe()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        cap.await.expect("it comes back");
    }

    /// The bytes that an answered call takes in each direction, and a lower bound of those up to the end of
    /// the answer's head.
    async fn measure(&self, ask: &Ask) -> Spans {
        self.warm().await;
        let before = [Way::ToServer, Way::ToClient].map(|way| self.links.bytes(way));
        let outcome = self.caller.call(self.wire, ask.clone()).await;
        assert!(outcome.is_ok(), "{outcome:?}");
        let of = |way| self.links.bytes(way) - before[way as usize];
        let (to_server, to_client) = (of(Way::ToServer), of(Way::ToClient));
        let head = match outcome.header("content-length") {
            Some(body) => to_client - body.parse::<usize>().unwrap(),
            None => 9, // the length of every HTTP/2 frame header
        };
        Spans { to_server, to_client, head }
    }

    /// Makes a call for each of `cuts`, where its connection breaks. A call that `is_safe` must be answered,
    /// unless by `spans` the head of its answer had arrived: that cannot be taken back.
    async fn cut(
        &self,
        ask: &Ask,
        is_safe: bool,
        spans: Spans,
        cuts: impl Iterator<Item = (Way, usize)>,
    ) -> Tally {
        let (mut tally, mut claims) = (Tally::default(), Vec::new());
        for (way, at) in cuts {
            if self.wire == Wire::Grpc {
                self.warm().await;
            }
            self.links.cut(way, at);
            let ask = Ask { id: Ask::to("stock").id, ..ask.clone() };
            let outcome = self.caller.call(self.wire, ask.clone()).await;
            tally.cuts += usize::from(self.links.mend());
            if outcome.is_ok() {
                tally.answered += 1;
                claims.push((ask.id, 1, if is_safe { 2 } else { 1 }));
                continue;
            }
            let has_head = way == Way::ToClient && at >= spans.head;
            assert!(!is_safe || has_head, "cut {way:?} after {at}: {outcome:?}");
            match outcome.maybe_executed {
                Some(true) => {
                    tally.unsure += 1;
                    claims.push((ask.id, 0, 1));
                }
                Some(false) => {
                    tally.unsent += 1;
                    claims.push((ask.id, 0, 0));
                }
                None => panic!("cut {way:?} after {at}: {outcome:?}"),
            }
        }
        // Handlers that still run get time to finish.
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (id, least, most) in claims {
            let executed = self.mesh.executions(&id);
            assert!(
                (least..=most).contains(&executed),
                "{id}: executed {executed} times, not {least} to {most}"
            );
        }
        tally
    }
}

/// Both directions, after every byte.
fn everywhere(spans: Spans) -> impl Iterator<Item = (Way, usize)> {
    let to_server = (0..=spans.to_server).map(|at| (Way::ToServer, at));
    to_server.chain((0..=spans.to_client).map(|at| (Way::ToClient, at)))
}

both! {
    /// A `POST` of some kilobytes, and a gRPC call that is not declared idempotent.
    async fn what_is_not_idempotent_is_executed_once_at_most(wire: Wire) {
        let world = World::new(wire, None).await;
        let size = if wire == Wire::Rest { 4_900 } else { 500 };
        let ask = Ask::to("stock").message(&"x".repeat(size));
        let spans = world.measure(&ask).await;
        let tally = world.cut(&ask, false, spans, everywhere(spans)).await;
        println!("{wire:?} {spans:?} {tally:?}");
        assert!(tally.cuts >= if wire == Wire::Rest { 10_000 } else { 1_000 }, "{tally:?}");
        assert!(tally.unsure > tally.cuts * 9 / 10, "{tally:?}");
    }
}

both! {
    /// A `GET`, and a call that its proto declares idempotent.
    async fn what_is_idempotent_is_answered(wire: Wire) {
        let world = World::new(wire, None).await;
        let ask = Ask::to("stock").safe().message(&"x".repeat(500));
        let spans = world.measure(&ask).await;
        let tally = world.cut(&ask, true, spans, everywhere(spans)).await;
        println!("{wire:?} {spans:?} {tally:?}");
        assert!(tally.cuts >= spans.to_server && tally.answered > spans.to_server + spans.head, "{tally:?}");
    }
}

both! {
    /// The only instance, its first connection, the first call: the call waits for another connection.
    async fn the_first_connection_breaks(wire: Wire) {
        for delay in [1, 50, 1_000] {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            stock.does_next([Act::Delay(Duration::from_millis(delay))]);
            let links = Links::over(&mesh.network);
            let ours = links.clone();
            let plan = mesh.server("tests", "tests").config(CONFIG).with(|builder| builder.connector(ours));
            let caller = plan.caller().await;
            let call = caller.spawn(wire, Ask::to("stock").safe());
            until("it is under way", || stock.running() == 1).await;
            links.break_all();
            assert!(call.await.unwrap().is_ok(), "{delay}");
            assert_eq!(stock.executed(), 2);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_over_tcp() {
    for wire in [Wire::Rest, Wire::Grpc] {
        let listen = serde_json::json!({ "grpc": "127.0.0.1:0", "http": "127.0.0.1:0" });
        let world = World::new(wire, Some(listen)).await;
        for (ask, is_safe) in [(Ask::to("stock"), false), (Ask::to("stock").safe(), true)] {
            let ask = ask.message(&"x".repeat(300));
            let spans = world.measure(&ask).await;
            let all: Vec<_> = everywhere(spans).collect();
            let some = (0..50).map(|n| all[n * all.len() / 50]);
            let tally = world.cut(&ask, is_safe, spans, some).await;
            println!("{wire:?} {spans:?} {tally:?}");
            assert!(tally.cuts >= 45, "{tally:?}");
        }
    }
}

both! {
    /// Two hundred calls are in the handlers of three instances when every connection breaks.
    async fn calls_in_flight_when_all_connections_break(wire: Wire) {
        let mesh = Mesh::new();
        let mut stocks = Vec::new();
        for n in 0..3 {
            let stock = mesh.start("stock", &format!("stock-{n}")).await;
            stock.does(Act::Delay(Duration::from_millis(50)));
            stocks.push(stock);
        }
        let links = Links::over(&mesh.network);
        let ours = links.clone();
        let config = "outbound: { defaults: { breaker: off, retry: { budget: off } } }\nclient: { pool: 500 }";
        let caller = mesh.server("tests", "tests").config(config).with(|builder| builder.connector(ours));
        let caller = caller.caller().await;
        for _ in 0..60 {
            assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
        }
        let asks: Vec<_> = (0..400)
            .map(|n| if n % 2 == 0 { Ask::to("stock").safe() } else { Ask::to("stock") })
            .collect();
        let calls: Vec<_> = asks.iter().map(|ask| caller.spawn(wire, ask.clone())).collect();
        until("all are under way", || stocks.iter().map(|stock| stock.running()).sum::<u64>() == 400).await;
        links.break_all();
        for (ask, call) in asks.into_iter().zip(calls) {
            let outcome = call.await.unwrap();
            let executed = mesh.executions(&ask.id);
            match ask.op {
                Op::Safe => {
                    assert!(outcome.is_ok(), "{outcome:?}");
                    assert_eq!(executed, 2);
                }
                _ => {
                    assert_eq!((outcome.reason, outcome.maybe_executed), (Some(Reason::ConnectionLost), Some(true)));
                    assert_eq!(executed, 1);
                }
            }
        }
        until("the handlers have stopped", || stocks.iter().all(|stock| stock.running() == 0)).await;
    }
}
