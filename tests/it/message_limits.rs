//! Limits of one call's messages and bytes, on either side. Messages are counted over gRPC; over REST only
//! bytes are.
use chassis::{Code, Reason};

use crate::mesh::{Ask, Caller, Kind, Mesh, Server, Wire, both, metric};

const TOO_LARGE: Option<Reason> = Some(Reason::TooLarge);

/// `limits` of incoming or outgoing calls.
async fn world(limits: &str, is_servers: bool) -> (Mesh, Server, std::sync::Arc<Caller>) {
    let mesh = Mesh::new();
    let inbound = format!("inbound: {{ message_limits: {limits} }}");
    let outbound = format!("outbound: {{ defaults: {{ message_limits: {limits} }} }}");
    let inbound = if is_servers { &inbound } else { "" };
    let stock = mesh.server("stock", "stock-1").config(inbound).start().await;
    let caller =
        mesh.caller(if is_servers { "outbound: { defaults: { retry: off } }" } else { &outbound }).await;
    (mesh, stock, caller)
}

/// The result of a call of `kind`: streams have three messages in each direction.
async fn whole(caller: &Caller, wire: Wire, kind: Kind) -> Result<usize, (Code, Option<Reason>)> {
    kind.whole(caller, wire, Ask::to("stock"), 3).await.map(|answers| answers.len())
}

/// A server names the mechanism of such a refusal only in trailers: in a head it would state that nothing was
/// executed.
fn code(ended: Result<usize, (Code, Option<Reason>)>) -> Option<Code> {
    ended.err().map(|(code, _)| code)
}

both! {
    async fn messages_of_streams_are_bounded_on_both_sides(wire: Wire) {
        for is_servers in [true, false] {
            for (limits, cut, reason) in [
                ("{ request_messages: 2 }", &[Kind::Up, Kind::Both][..], Reason::TooLarge),
                ("{ request_rate: 2/s }", &[Kind::Up, Kind::Both], Reason::RateLimited),
                ("{ answer_messages: 2 }", &[Kind::Down, Kind::Both], Reason::TooLarge),
                ("{ answer_rate: 2/s }", &[Kind::Down, Kind::Both], Reason::RateLimited),
                ("{ request_messages: 3, answer_messages: 3, answer_rate: 3/s }", &[], Reason::TooLarge),
            ] {
                let (_mesh, _stock, caller) = world(limits, is_servers).await;
                for kind in Kind::ALL {
                    let ended = whole(&caller, wire, kind).await;
                    match wire == Wire::Grpc && cut.contains(&kind) {
                        true if is_servers => assert_eq!(code(ended), Some(Code::ResourceExhausted), "{limits} {kind:?}"),
                        true => assert_eq!(ended, Err((Code::ResourceExhausted, Some(reason))), "{limits} {kind:?}"),
                        false => assert!(ended.is_ok(), "{limits} {kind:?}: {ended:?}"),
                    }
                }
            }
        }
    }
}

both! {
    async fn bytes_of_answers_are_bounded_on_both_sides(wire: Wire) {
        for is_servers in [true, false] {
            let (_mesh, stock, caller) = world("{ answer_bytes: 10 }", is_servers).await;
            for (n, kind) in Kind::ALL.into_iter().enumerate() {
                let ended = whole(&caller, wire, kind).await;
                match (is_servers, wire) {
                    (false, _) => assert_eq!(ended, Err((Code::ResourceExhausted, TOO_LARGE)), "{kind:?}"),
                    (true, Wire::Grpc) => assert_eq!(code(ended), Some(Code::ResourceExhausted), "{kind:?}"),
                    // A stream that has begun is cut off, and ends early.
                    (true, Wire::Rest) if kind.answers_early() => assert!(ended.is_err(), "{kind:?}"),
                    (true, Wire::Rest) => assert_eq!(ended, Err((Code::Internal, None)), "{kind:?}"),
                }
                assert_eq!(stock.executed(), n as u64 + 1, "{kind:?}: once");
            }
            let (runtime, side, service) = match is_servers {
                true => (stock.runtime(), "server", "stock"),
                false => (caller.runtime(), "client", "stock"),
            };
            let rejected =
                format!(r#"chassis_rejected_total{{reason="TOO_LARGE",service="{service}",side="{side}"}}"#);
            assert_eq!(metric(runtime, &rejected), 4.0);
            let cut: u64 = runtime.inspect().message_limits.iter().map(|view| view.cut_answers).sum();
            assert_eq!(cut, 4);
            if !is_servers {
                let node = &caller.view(wire, "stock").nodes[0];
                assert_eq!((node.in_flight, node.failure_share), (0, 0.0), "no node is blamed");
            }
        }
    }
}

both! {
    /// The too large message is not the caller's.
    async fn a_servers_answer_that_is_too_large_is_its_own_failure(wire: Wire) {
        let (_mesh, _stock, caller) = world("{ answer_bytes: 10 }", true).await;
        let refused = caller.call(wire, Ask::to("stock")).await;
        let expected = match wire {
            Wire::Grpc => (Code::ResourceExhausted, None),
            Wire::Rest => (Code::Internal, Some(500)),
        };
        assert_eq!((refused.code, refused.status), expected, "{refused:?}");
        assert!(refused.message.contains("over the bound `answer_bytes: 10`"), "{}", refused.message);
    }
}

both! {
    async fn many_callers_have_bounds_of_their_own(wire: Wire) {
        let (_mesh, _stock, caller) = world("{ answer_messages: 2, answer_bytes: 1MiB }", false).await;
        let calls = (0..100).map(|_| {
            let caller = caller.clone();
            tokio::spawn(async move { whole(&caller, wire, Kind::Down).await })
        });
        for call in calls.collect::<Vec<_>>() {
            let expected = if wire == Wire::Grpc { Err((Code::ResourceExhausted, TOO_LARGE)) } else { Ok(3) };
            assert_eq!(call.await.unwrap(), expected);
        }
    }
}
