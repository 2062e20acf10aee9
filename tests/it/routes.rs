//! Routes: rules over headers, operations, callers; splits; and calls to an empty subset.
use chassis::Reason;

use crate::mesh::{Ask, Caller, Mesh, Server, Wire, all_well, both, share};

/// One instance of each track.
async fn tracks(mesh: &Mesh) -> [Server; 2] {
    let plan = |id, track| mesh.server("stock", id).label("track", track);
    [plan("stable-1", "stable").start().await, plan("canary-1", "canary").start().await]
}

/// The number of calls that the rule of this name decided.
fn hits(caller: &Caller, wire: Wire, rule: &str) -> u64 {
    caller.view(wire, "stock").rules.iter().find(|r| r.name == rule).unwrap().hits
}

both! {
    async fn a_header_leads_to_the_canary(wire: Wire) {
        let mesh = Mesh::new();
        let _tracks = tracks(&mesh).await;
        let caller = mesh
            .caller(
                r#"
                matches: { beta: { header: { x-canary: "true" } } }
                outbound:
                  services:
                    stock:
                      routes:
                        - { name: beta, match: beta, to: { track: canary } }
                        - { name: rest, to: { track: stable } }
                "#,
            )
            .await;
        for _ in 0..50 {
            let canary = caller.call(wire, Ask::to("stock").header("x-canary", "true")).await;
            assert_eq!(canary.by(), "canary-1");
            let other = caller.call(wire, Ask::to("stock").header("x-canary", "false")).await;
            assert_eq!(other.by(), "stable-1");
            assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stable-1");
        }
        assert_eq!((hits(&caller, wire, "beta"), hits(&caller, wire, "rest")), (50, 100));
        assert_eq!(caller.metric(r#"chassis_route_decisions_total{rule="beta",service="stock"}"#), 50.0);
    }
}

both! {
    async fn a_split_of_95_to_5(wire: Wire) {
        let mesh = Mesh::seeded(7);
        let _tracks = tracks(&mesh).await;
        let split = "outbound: { services: { stock: { routes: [ \
                     { name: split, split: { stable: 95, canary: 5 }, by: track } ] } } }";
        let caller = mesh.caller(split).await;
        let outcomes = caller.calls(wire, 10_000, || Ask::to("stock")).await;
        all_well(&outcomes);
        let canary = share(&outcomes, "canary-1");
        assert!((canary - 0.05).abs() <= 0.007, "{canary}");
        assert_eq!(hits(&caller, wire, "split"), 10_000);
    }
}

both! {
    async fn weights_that_do_not_sum_to_100_are_shares(wire: Wire) {
        let mesh = Mesh::new();
        let _tracks = tracks(&mesh).await;
        let split = "outbound: { services: { stock: { routes: [ \
                     { name: split, split: { stable: 1, canary: 3 }, by: track } ] } } }";
        let caller = mesh.caller(split).await;
        let outcomes = caller.calls(wire, 1_000, || Ask::to("stock")).await;
        all_well(&outcomes);
        let canary = share(&outcomes, "canary-1");
        assert!((canary - 0.75).abs() <= 0.05, "{canary}");
    }
}

both! {
    async fn one_matcher_for_all_that_a_call_says(wire: Wire) {
        let mesh = Mesh::new();
        let _tracks = tracks(&mesh).await;
        let operation = wire.operation(crate::mesh::Op::Safe);
        let cases = [
            (format!("{{ operation: '{operation}' }}"), Ask::to("stock").safe(), Ask::to("stock")),
            (
                "{ header: { x-tenant: { prefix: a } } }".to_owned(),
                Ask::to("stock").header("x-tenant", "acme"),
                Ask::to("stock").header("x-tenant", "bcme"),
            ),
            (
                "{ header: { x-tenant: { regex: '^a.*e$' } } }".to_owned(),
                Ask::to("stock").header("x-tenant", "acme"),
                Ask::to("stock").header("x-tenant", "acmes"),
            ),
            (
                "{ header: { x-tenant: { present: false } } }".to_owned(),
                Ask::to("stock"),
                Ask::to("stock").header("x-tenant", ""),
            ),
            (
                "{ header: { x-size: { int: { gt: 9 } } } }".to_owned(),
                Ask::to("stock").header("x-size", "10"),
                Ask::to("stock").header("x-size", "9"),
            ),
        ];
        for (matching, yes, no) in cases {
            let caller = mesh
                .caller(&format!(
                    "outbound: {{ services: {{ stock: {{ routes: [ \
                     {{ name: one, match: {matching}, to: {{ track: canary }} }}, \
                     {{ name: rest, to: {{ track: stable }} }} ] }} }} }}"
                ))
                .await;
            for _ in 0..3 {
                assert_eq!(caller.call(wire, yes.clone()).await.by(), "canary-1", "{matching}");
                assert_eq!(caller.call(wire, no.clone()).await.by(), "stable-1", "{matching}");
            }
        }
    }
}

both! {
    async fn an_empty_subset_follows_its_rule(wire: Wire) {
        let mesh = Mesh::new();
        let [stable, _canary] = tracks(&mesh).await;
        let rule = |fallback: &str| {
            format!(
                "outbound: {{ services: {{ stock: {{ routes: [ \
                 {{ name: gone, to: {{ track: gone }}, fallback: {fallback} }}, \
                 {{ name: second, to: {{ track: stable }} }} ] }} }} }}"
            )
        };
        let caller = mesh.caller(&rule("none")).await;
        let outcome = caller.call(wire, Ask::to("stock")).await;
        outcome.refused(Reason::NoRoute);
        assert_eq!((outcome.rule.as_deref(), outcome.maybe_executed), (Some("gone"), Some(false)));

        caller.push(&rule("any")).await.applied();
        let outcomes = caller.calls(wire, 100, || Ask::to("stock")).await;
        all_well(&outcomes);
        assert!((0.2..0.8).contains(&share(&outcomes, "stable-1")));

        caller.push(&rule("[second]")).await.applied();
        let before = stable.executed();
        all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
        assert_eq!(stable.executed() - before, 20);
    }
}
