//! Streams of every kind with rate limits and circuits: from the server, from the caller, and in both
//! directions.
use std::{sync::Arc, time::Duration};

use chassis::{Code, Event, Reason};
use tokio::time::advance;

use crate::mesh::{Act, Ask, Caller, Failed, Gate, Kind, Mesh, Server, Stream, Wire, all_well, both, until};

/// Begins a stream; a download has three parts.
async fn open(caller: &Arc<Caller>, stock: &Server, wire: Wire, kind: Kind) -> Result<Stream, Failed> {
    Stream::open(caller, &[stock], wire, kind, Ask::to("stock")).await
}

/// Two streams begin and a third is refused, by the caller's limit or the server's; messages take no tokens.
async fn rate_limited(wire: Wire, inbound: &str, outbound: &str) {
    for kind in Kind::STREAMS {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config(inbound).start().await;
        let caller = mesh.caller(outbound).await;
        let held = [open(&caller, &stock, wire, kind).await, open(&caller, &stock, wire, kind).await];
        for _ in 0..3 {
            let refused = open(&caller, &stock, wire, kind).await.err();
            assert_eq!(refused, Some((Code::ResourceExhausted, Some(Reason::RateLimited))), "{kind:?}");
        }
        assert_eq!(stock.executed(), 2, "{kind:?}: no handler saw the others");
        for stream in held {
            stream.unwrap().finish().await.unwrap();
        }
        advance(Duration::from_secs(1)).await;
        let next = open(&caller, &stock, wire, kind).await;
        next.unwrap_or_else(|why| panic!("{kind:?}: {why:?}")).finish().await.unwrap();
    }
}

both! {
    async fn a_servers_rate_is_one_of_streams(wire: Wire) {
        let limits = "inbound: { rate_limits: [ { name: all, rate: 1/s, burst: 2 } ] }";
        rate_limited(wire, limits, "outbound: { defaults: { retry: off } }").await;
    }
}

both! {
    async fn a_clients_rate_is_one_of_streams(wire: Wire) {
        let limits = "outbound: { services: { stock: { retry: off, \
                      rate_limits: [ { name: out, rate: 1/s, burst: 2 } ] } } }";
        rate_limited(wire, "", limits).await;
    }
}

const BREAKER: &str = "outbound: { defaults: { retry: off, \
                       breaker: { min_calls: 10, window: 10s, open: 5s, probes: 2 } } }";

fn moves(caller: &Caller) -> usize {
    let moved = |event: &Event| matches!(event, Event::CircuitMoved { .. });
    caller.runtime().events().past().iter().filter(|(_, event)| moved(event)).count()
}

both! {
    async fn streams_that_fail_in_their_midst_open_a_circuit(wire: Wire) {
        for kind in Kind::STREAMS {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let caller = mesh.caller(BREAKER).await;
            stock.does(Act::Fail(Code::Unavailable));
            for n in 0..10 {
                let stream = open(&caller, &stock, wire, kind).await;
                // Written data may be lost with the connection, even the head.
                let failed = match stream {
                    Ok(stream) => stream.finish().await.err(),
                    Err(failed) => Some(failed),
                };
                assert_eq!(failed.map(|(code, _)| code), Some(Code::Unavailable), "{kind:?} {n}");
            }
            for kind in Kind::STREAMS {
                let refused = open(&caller, &stock, wire, kind).await.err();
                assert_eq!(refused, Some((Code::Unavailable, Some(Reason::CircuitOpen))), "{kind:?}");
            }
            caller.call(wire, Ask::to("stock")).await.refused(Reason::CircuitOpen);
            assert_eq!(stock.executed(), 10);
        }
    }
}

both! {
    async fn streams_that_their_callers_leave_move_no_circuit(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(BREAKER).await;
        stock.does(Act::Hang);
        for kind in Kind::STREAMS {
            for _ in 0..20 {
                open(&caller, &stock, wire, kind).await.expect("it begins").leave();
            }
            until("the handlers are gone", || stock.running() == 0).await;
        }
        stock.does(Act::Answer);
        all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
        assert_eq!(moves(&caller), 0);
    }
}

both! {
    async fn streams_as_probes_close_a_circuit_as_they_begin(wire: Wire) {
        for kind in Kind::STREAMS {
            if kind == Kind::Up {
                continue; // its answer is its end
            }
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let caller = mesh.caller(BREAKER).await;
            stock.does(Act::Fail(Code::Unavailable));
            for _ in 0..10 {
                caller.call(wire, Ask::to("stock")).await;
            }
            advance(Duration::from_secs(5)).await;
            let gate = Gate::shut();
            stock.does(Act::Wait(gate.clone()));
            let mut held = Vec::new();
            for _ in 0..2 {
                held.push(open(&caller, &stock, wire, kind).await.expect("a probe"));
            }
            assert_eq!(moves(&caller), 3, "{kind:?}: open, half-open, closed");
            stock.does(Act::Answer);
            all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
            assert_eq!(caller.view(wire, "stock").nodes[0].in_flight, 2, "they live on");
            gate.open();
            for stream in held {
                stream.finish().await.unwrap();
            }
            assert_eq!(moves(&caller), 3);
        }
    }
}

both! {
    /// Regression: they held a circuit half-open for a minute each, and no other call was admitted.
    async fn uploads_as_probes_give_way_to_others(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let settings = BREAKER.replace("retry: off,", "retry: off, timeout: off,");
        let caller = mesh.caller(&settings).await;
        stock.does(Act::Fail(Code::Unavailable));
        for _ in 0..10 {
            caller.call(wire, Ask::to("stock")).await;
        }
        advance(Duration::from_secs(5)).await;
        stock.does(Act::Answer);
        let mut held = Vec::new();
        for _ in 0..2 {
            held.push(open(&caller, &stock, wire, Kind::Up).await.expect("a probe"));
        }
        for outcome in caller.calls(wire, 20, || Ask::to("stock")).await {
            outcome.refused(Reason::CircuitOpen);
        }
        advance(Duration::from_secs(5)).await;
        all_well(&caller.calls(wire, 2, || Ask::to("stock")).await);
        assert_eq!(moves(&caller), 3, "open, half-open, closed");
        all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
        assert_eq!(caller.view(wire, "stock").nodes[0].in_flight, 2, "they live on");
        for stream in held {
            stream.finish().await.unwrap();
        }
        assert_eq!(moves(&caller), 3);
    }
}
