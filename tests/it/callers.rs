//! Rules about callers: the labels of the calling service in limits, faults and routes.
use chassis::{Code, Reason};

use crate::mesh::{Ask, Kind, Mesh, Wire, all_well, both};

const NO_RETRY: &str = "outbound: { defaults: { retry: off } }";

/// Labels of a service.
type Labels = &'static [(&'static str, &'static str)];

const NONE: Labels = &[];
const CANARY: Labels = &[("track", "canary")];
const STABLE: Labels = &[("track", "stable")];
const CANARY_EU: Labels = &[("track", "canary"), ("zone", "eu")];
const CANARY_2: Labels = &[("track", "canary-2")];
/// The value under another name.
const ZONE: Labels = &[("zone", "canary")];

const ALL_LABELS: [Labels; 6] = [NONE, CANARY, STABLE, CANARY_EU, CANARY_2, ZONE];

/// A match, and those of `ALL_LABELS` that it accepts.
const MATCHES: &[(&str, &[Labels])] = &[
    ("caller_labels: { track: canary }", &[CANARY, CANARY_EU]),
    ("caller_labels: { track: canary, zone: eu }", &[CANARY_EU]),
    ("caller_labels: { track: { prefix: can } }", &[CANARY, CANARY_EU, CANARY_2]),
    ("caller_labels: { track: { present: false } }", &[NONE, ZONE]),
    ("caller_labels: { track: { not: canary } }", &[NONE, STABLE, CANARY_2, ZONE]),
    ("caller: { name: orders, labels: { track: canary } }", &[CANARY, CANARY_EU]),
    ("caller: { name: billing, labels: { track: canary } }", &[]),
    ("not: { caller_labels: { track: canary } }", &[NONE, STABLE, CANARY_2, ZONE]),
];

/// A service `orders` with these labels, to call or to serve.
fn orders<'a>(mesh: &'a Mesh, labels: Labels, config: &str) -> crate::mesh::Plan<'a> {
    let plan = mesh.server("orders", "orders-1").config(config);
    labels.iter().fold(plan, |plan, (name, value)| plan.label(name, value))
}

both! {
    async fn a_limit_for_callers_with_labels(wire: Wire) {
        for (matching, about) in MATCHES {
            for labels in ALL_LABELS {
                let mesh = Mesh::new();
                let limit = format!("{{ name: some, rate: 1/h, burst: 2, match: {{ {matching} }} }}");
                let inbound = format!("inbound: {{ rate_limits: [ {limit} ] }}");
                let stock = mesh.server("stock", "stock-1").config(&inbound).start().await;
                let caller = orders(&mesh, labels, NO_RETRY).caller().await;
                let outcomes = caller.calls(wire, 4, || Ask::to("stock")).await;
                if about.contains(&labels) {
                    all_well(&outcomes[..2]);
                    for refused in &outcomes[2..] {
                        refused.refused(Reason::RateLimited);
                        assert_eq!(refused.rule.as_deref(), Some("some"), "{matching}, {labels:?}");
                    }
                    assert_eq!(stock.executed(), 2);
                } else {
                    assert_eq!(outcomes.iter().filter(|o| o.is_ok()).count(), 4, "{matching}, {labels:?}");
                }
            }
        }
    }
}

both! {
    async fn a_route_for_services_with_labels(wire: Wire) {
        for (matching, about) in MATCHES {
            for labels in ALL_LABELS {
                let mesh = Mesh::new();
                let plan = |id, track| mesh.server("stock", id).label("track", track);
                let _stock = [plan("one", "one").start().await, plan("two", "two").start().await];
                let settings = format!(
                    "outbound: {{ services: {{ stock: {{ routes: [ \
                     {{ name: some, match: {{ {matching} }}, to: {{ track: two }} }}, \
                     {{ name: rest, to: {{ track: one }} }} ] }} }} }}"
                );
                let caller = orders(&mesh, labels, &settings).caller().await;
                let expected = if about.contains(&labels) { "two" } else { "one" };
                for outcome in caller.calls(wire, 3, || Ask::to("stock")).await {
                    assert_eq!(outcome.by(), expected, "{matching}, {labels:?}");
                }
            }
        }
    }
}

both! {
    async fn a_fault_for_callers_with_labels_hits_calls_of_every_kind(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let fault = "name: canaries, match: { caller_labels: { track: canary } }, abort: { code: ABORTED }";
            let stock = mesh.server("stock", "stock-1").config(&format!("faults: [ {{ {fault} }} ]")).start().await;
            let [canary, stable] = [CANARY, STABLE].map(|labels| orders(&mesh, labels, NO_RETRY));
            let (canary, stable) = (canary.caller().await, stable.caller().await);
            for n in 1..=3 {
                let hit = kind.whole(&canary, wire, Ask::to("stock"), 3).await;
                assert_eq!(hit, Err((Code::Aborted, Some(Reason::FaultInjected))), "{kind:?}");
                kind.whole(&stable, wire, Ask::to("stock"), 3).await.unwrap();
                assert_eq!(stock.executed(), n, "{kind:?}");
            }
            // Changed settings also apply to callers that are known already.
            stock.push(&format!("faults: [ {{ {} }} ]", fault.replace("track: canary", "track: stable"))).await.applied();
            assert!(kind.whole(&canary, wire, Ask::to("stock"), 3).await.is_ok(), "{kind:?}");
            assert!(kind.whole(&stable, wire, Ask::to("stock"), 3).await.is_err(), "{kind:?}");
        }
    }
}

both! {
    /// The labels are those of the direct caller, neither of its own callers nor those in a caller's headers.
    async fn labels_are_of_the_last_hop(wire: Wire) {
        let limit = "inbound: { rate_limits: [ { name: some, rate: 1/h, burst: 1, \
                     match: { caller_labels: { track: canary } } } ] }";
        for (labels, limited) in [(CANARY, true), (STABLE, false), (NONE, false)] {
            let mesh = Mesh::new();
            let _stock = mesh.server("stock", "stock-1").config(limit).start().await;
            let _orders = orders(&mesh, labels, NO_RETRY).calls(&["stock"]).start().await;
            let front = mesh.server("front", "front-1").config(NO_RETRY);
            let front = front.label("track", if limited { "stable" } else { "canary" }).caller().await;
            let outcomes = front.calls(wire, 3, || Ask::to("orders").via(&[(wire, "stock")])).await;
            let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.code).collect();
            let then = if limited { Code::ResourceExhausted } else { Code::Ok };
            assert_eq!(codes, [Code::Ok, then, then], "{labels:?}");
            if !limited {
                let direct = orders(&mesh, labels, NO_RETRY).caller().await;
                let claims = || Ask::to("stock").header("x-chassis-caller", "orders;track=canary");
                all_well(&direct.calls(wire, 3, claims).await);
            }
        }
    }
}
