//! The context that a call carries along a chain of services: chosen headers, the trace, baggage, the caller.
use std::collections::HashSet;

use crate::mesh::{Ask, Mesh, Server, Wire, both};

/// `front` → `stock` → `ledger`, all with these settings.
async fn chain(mesh: &Mesh, config: &str) -> [Server; 3] {
    let start = async |name: &str, calls: &[&str]| {
        mesh.server(name, &format!("{name}-1")).config(config).calls(calls).start().await
    };
    [start("front", &["stock"]).await, start("stock", &["ledger"]).await, start("ledger", &[]).await]
}

/// A call along the chain, with changes of protocol on the way.
fn along(wire: Wire) -> Ask {
    let other = if wire == Wire::Grpc { Wire::Rest } else { Wire::Grpc };
    Ask::to("front").via(&[(other, "stock"), (wire, "ledger")])
}

fn said<'a>(server: &'a crate::mesh::Seen, name: &str) -> Vec<&'a str> {
    server.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

both! {
    async fn chosen_headers_are_carried_to_the_end(wire: Wire) {
        let mesh = Mesh::new();
        let servers = chain(&mesh, "propagate: [x-tenant, accept-language]").await;
        let caller = mesh.caller("").await;
        let ask = along(wire).header("x-tenant", "acme").header("accept-language", "de").header("x-other", "1");
        // Repeated headers with all their values.
        let ask = ask.header("accept-language", "en;q=0.5");
        assert_eq!(caller.call(wire, ask).await.by(), "front-1");
        for server in &servers {
            let seen = server.last();
            assert_eq!(said(&seen, "x-tenant"), ["acme"], "{}", server.id);
            assert_eq!(said(&seen, "accept-language"), ["de", "en;q=0.5"], "{}", server.id);
            assert_eq!(said(&seen, "x-other").is_empty(), server.id != "front-1", "{}", server.id);
        }
        // The list of these headers can change while calls are in flight.
        for server in &servers {
            server.push("propagate: [x-other]").await.applied();
        }
        let ask = along(wire).header("x-tenant", "acme").header("x-other", "1");
        assert!(caller.call(wire, ask).await.is_ok());
        let seen = servers[2].last();
        assert_eq!((said(&seen, "x-tenant").len(), said(&seen, "x-other")), (0, vec!["1"]));
    }
}

/// Trace, span and flags of the `traceparent` that a server saw.
fn parent(server: &Server) -> (String, String, String) {
    let seen = server.last();
    let all = said(&seen, "traceparent");
    assert_eq!(all.len(), 1, "{}", server.id);
    let parts: Vec<_> = all[0].split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"));
    (parts[1].to_owned(), parts[2].to_owned(), parts[3].to_owned())
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

both! {
    async fn one_trace_a_span_for_each_hop(wire: Wire) {
        let mesh = Mesh::new();
        let servers = chain(&mesh, "").await;
        let caller = mesh.caller("").await;
        let ask = along(wire)
            .header("traceparent", &format!("00-{TRACE}-00f067aa0ba902b7-01"))
            .header("tracestate", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE")
            .header("baggage", "user=alice,tier=gold;ttl=5");
        assert!(caller.call(wire, ask).await.is_ok());
        let mut spans = HashSet::new();
        for server in &servers {
            let (trace, span, flags) = parent(server);
            assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"), "{}", server.id);
            assert!(spans.insert(span), "each hop is a span of its own");
            let seen = server.last();
            assert_eq!(said(&seen, "tracestate"), ["rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"]);
            assert_eq!(said(&seen, "baggage"), ["user=alice,tier=gold;ttl=5"]);
        }
    }
}

both! {
    /// A trace begins at the service that samples it, and its attempts are spans of it.
    async fn a_trace_that_begins_here(wire: Wire) {
        let mesh = Mesh::new();
        let servers = chain(&mesh, "").await;
        let caller = mesh.caller("telemetry: { sample: 100% }").await;
        let mut traces = HashSet::new();
        for _ in 0..10 {
            assert!(caller.call(wire, along(wire)).await.is_ok());
            let seen: HashSet<_> = servers.iter().map(|server| parent(server).0).collect();
            assert_eq!(seen.len(), 1, "one trace along the chain");
            traces.extend(seen);
        }
        assert_eq!(traces.len(), 10, "a trace for each call");

        servers[0].does_next([crate::mesh::Act::Fail(chassis::Code::Unavailable)]);
        assert!(caller.call(wire, along(wire).safe()).await.is_ok());
        let seen = servers[0].seen();
        let attempts: Vec<_> = seen[seen.len() - 2..].iter().map(|seen| said(seen, "traceparent")[0]).collect();
        assert_eq!(attempts[0][3..35], attempts[1][3..35], "one trace");
        assert_ne!(attempts[0][36..52], attempts[1][36..52], "two spans");

        let silent = mesh.server("silent", "silent").caller().await;
        assert!(silent.call(wire, along(wire)).await.is_ok());
        assert!(said(&servers[2].last(), "traceparent").is_empty(), "0 % by default");
    }
}

both! {
    /// Each hop receives the name and the labels of the one before.
    async fn each_says_who_calls(wire: Wire) {
        let mesh = Mesh::new();
        let servers = chain(&mesh, "").await;
        let caller = mesh.server("shop", "shop-1").label("track", "canary").caller().await;
        assert!(caller.call(wire, along(wire)).await.is_ok());
        let callers = servers.each_ref().map(|server| said(&server.last(), "x-chassis-caller").join("|"));
        assert_eq!(callers, ["shop;track=canary", "front", "stock"]);
    }
}
