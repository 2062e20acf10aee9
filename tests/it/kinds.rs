//! Calls of every kind, unary and streaming, with faults, fallbacks, routes and retry budgets; and settings
//! that change while they are in flight.
use std::{sync::Arc, time::Duration};

use chassis::{Code, Reason};
use tokio::time::Instant;

use crate::mesh::{Act, Ask, Caller, Failed, Gate, Kind, Mesh, Server, Stream, Wire, both, until};

const NO_RETRY: &str = "outbound: { defaults: { retry: off } }";

const FAULT: Failed = (Code::PermissionDenied, Some(Reason::FaultInjected));

/// Begins a call to one of these servers.
async fn open(caller: &Arc<Caller>, servers: &[&Server], wire: Wire, kind: Kind) -> Result<Stream, Failed> {
    Stream::open(caller, servers, wire, kind, Ask::to("stock")).await
}

/// No call and no permit of the called servers remains.
async fn settled(caller: &Caller, wire: Wire, servers: &[&Server]) {
    until("no handler runs", || servers.iter().all(|server| server.running() == 0)).await;
    until("no call is in flight", || caller.view(wire, "stock").nodes.iter().all(|node| node.in_flight == 0))
        .await;
}

both! {
    async fn a_fault_hits_what_begins_and_nothing_that_is_under_way(wire: Wire) {
        let abort = "name: down, abort: { code: PERMISSION_DENIED }";
        for (kind, at_client) in Kind::ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let caller = mesh.caller(NO_RETRY).await;
            let gate = Gate::shut();
            stock.does(Act::Wait(gate.clone()));
            let held = open(&caller, &[&stock], wire, kind).await.expect("it begins");
            match at_client {
                true => caller.push(&format!("{NO_RETRY}\nfaults: [ {{ to: stock, {abort} }} ]")).await.applied(),
                false => stock.push(&format!("faults: [ {{ {abort} }} ]")).await.applied(),
            };
            for _ in 0..3 {
                let refused = open(&caller, &[&stock], wire, kind).await.err();
                assert_eq!(refused, Some(FAULT), "{kind:?}, client: {at_client}");
            }
            assert_eq!(stock.executed(), 1, "{kind:?}: no handler saw the others");
            gate.open();
            held.finish().await.unwrap_or_else(|why| panic!("{kind:?}: {why:?}"));
            match at_client {
                true => caller.push(NO_RETRY).await.applied(),
                false => stock.push("{}").await.applied(),
            };
            let next = open(&caller, &[&stock], wire, kind).await;
            next.unwrap_or_else(|why| panic!("{kind:?}: {why:?}")).finish().await.unwrap();
            settled(&caller, wire, &[&stock]).await;
        }
    }
}

both! {
    async fn a_fault_delays_the_beginning_and_no_message(wire: Wire) {
        for (kind, at_client) in Kind::ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
            let mesh = Mesh::new();
            let (inbound, outbound) = match at_client {
                true => (String::new(), format!("{NO_RETRY}\nfaults: [ {{ name: slow, to: stock, delay: 200ms }} ]")),
                false => ("faults: [ { name: slow, delay: 200ms } ]".to_owned(), NO_RETRY.to_owned()),
            };
            let stock = mesh.server("stock", "stock-1").config(&inbound).start().await;
            let caller = mesh.caller(&outbound).await;
            let began = Instant::now();
            let answers = kind.whole(&caller, wire, Ask::to("stock"), 3).await.unwrap();
            let count = if kind.answers_early() { 3 } else { 1 };
            assert_eq!((answers.len(), stock.executed()), (count, 1), "{kind:?}");
            let took = began.elapsed().as_millis();
            assert_eq!(took, 200, "{kind:?}, client: {at_client}: once, not by message");
        }
    }
}

/// A fallback for both protocols; field 1 of the message, six bytes: `static`.
const FALLBACK: &str = "outbound: { services: { stock: { retry: off, \
     fallback: { body: \"static\\n\", content_type: text/plain, message: CgZzdGF0aWM= } } } }";

both! {
    async fn a_fallback_answers_what_fails_before_it_begins(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let caller = mesh.caller(NO_RETRY).await;
            let gate = Gate::shut();
            stock.does(Act::Wait(gate.clone()));
            let held = open(&caller, &[&stock], wire, kind).await.expect("it begins");
            let fault = "faults: [ { name: down, to: stock, at: attempt, abort: { code: PERMISSION_DENIED } } ]";
            caller.push(&format!("{FALLBACK}\n{fault}")).await.applied();
            for _ in 0..3 {
                let instead = kind.whole(&caller, wire, Ask::to("stock"), 3).await;
                assert_eq!(instead, Ok(vec!["static".to_owned()]), "{kind:?}");
            }
            assert_eq!(stock.executed(), 1, "{kind:?}");
            let counted = r#"chassis_fallbacks_total{reason="FAULT_INJECTED",service="stock"}"#;
            assert_eq!(caller.metric(counted), 3.0, "{kind:?}");
            // Calls in flight end as without the change.
            gate.open();
            held.finish().await.unwrap_or_else(|why| panic!("{kind:?}: {why:?}"));
            // Without the fallback, the failure itself is visible.
            caller.push(&format!("{NO_RETRY}\n{fault}")).await.applied();
            assert_eq!(kind.whole(&caller, wire, Ask::to("stock"), 3).await, Err(FAULT), "{kind:?}");
            settled(&caller, wire, &[&stock]).await;
        }
    }
}

/// Calls whose handlers fail; the handler of an answer stream fails only after its first message was read.
async fn fails_late(
    caller: &Arc<Caller>,
    stock: &Server,
    wire: Wire,
    kind: Kind,
) -> Result<Vec<String>, Failed> {
    let gate = Gate::shut();
    let passed = gate.clone();
    stock.does(Act::Run(Arc::new(move |echo, seen| {
        let gate = passed.clone();
        Box::pin(async move {
            gate.passed().await;
            echo.perform(Act::Fail(Code::Unavailable), &seen).await
        })
    })));
    if !kind.answers_early() {
        gate.open();
        return kind.whole(caller, wire, Ask::to("stock"), 3).await;
    }
    let stream = open(caller, &[stock], wire, kind).await?;
    gate.open();
    stream.finish().await.map(|()| Vec::new())
}

both! {
    /// Its first message has arrived: no other answer can replace it.
    async fn a_fallback_answers_no_stream_that_fails_in_its_midst(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let caller = mesh.caller(FALLBACK).await;
            for _ in 0..3 {
                let ended = fails_late(&caller, &stock, wire, kind).await;
                match kind.answers_early() {
                    true => assert_eq!(ended.unwrap_err().0, Code::Unavailable, "{kind:?}"),
                    false => assert_eq!(ended, Ok(vec!["static".to_owned()]), "{kind:?}"),
                }
            }
            assert_eq!(stock.executed(), 3, "{kind:?}");
        }
    }
}

/// Routes to stock in YAML flow.
fn routes(rules: &str) -> String {
    format!("outbound: {{ defaults: {{ retry: off }}, services: {{ stock: {{ routes: [ {rules} ] }} }} }}")
}

async fn tracks(mesh: &Mesh) -> [Server; 2] {
    let plan = |id, track| mesh.server("stock", id).label("track", track);
    [plan("stable-1", "stable").start().await, plan("canary-1", "canary").start().await]
}

both! {
    async fn a_route_leads_what_begins_and_moves_nothing_that_is_under_way(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let [stable, canary] = tracks(&mesh).await;
            let servers = [&stable, &canary];
            let executed = || servers.map(|server| server.executed());
            let by_operation = format!(
                "{{ name: mine, match: {{ operation: '{}', header: {{ x-canary: 'true' }} }}, \
                 to: {{ track: canary }}, fallback: none }}, \
                 {{ name: rest, to: {{ track: stable }}, fallback: none }}",
                wire.operation(kind.op())
            );
            let caller = mesh.caller(&routes(&by_operation)).await;
            let gate = Gate::shut();
            servers.iter().for_each(|server| server.does(Act::Wait(gate.clone())));
            let beta = || Ask::to("stock").header("x-canary", "true");
            let mut held = Vec::new();
            for (ask, expected) in [(Ask::to("stock"), [1, 0]), (beta(), [1, 1])] {
                held.push(Stream::open(&caller, &servers, wire, kind, ask).await.expect("it begins"));
                assert_eq!(executed(), expected, "{kind:?}");
            }
            // The rule applies to operations of this kind only.
            for other in Kind::ALL.into_iter().filter(|other| *other != kind) {
                let before = stable.executed();
                held.push(Stream::open(&caller, &servers, wire, other, beta()).await.expect("it begins"));
                assert_eq!(executed(), [before + 1, 1], "{other:?} under the rule for {kind:?}");
            }
            caller.push(&routes("{ name: all, to: { track: canary }, fallback: none }")).await.applied();
            held.push(open(&caller, &servers, wire, kind).await.expect("it begins"));
            assert_eq!(executed(), [4, 2], "{kind:?}");
            caller.push(&routes("{ name: gone, to: { track: gone }, fallback: none }")).await.applied();
            let refused = open(&caller, &servers, wire, kind).await.err();
            assert_eq!(refused, Some((Code::Unavailable, Some(Reason::NoRoute))), "{kind:?}");
            gate.open();
            for stream in held {
                stream.finish().await.unwrap_or_else(|why| panic!("{kind:?}: {why:?}"));
            }
            assert_eq!(executed(), [4, 2], "{kind:?}: each was executed once");
            settled(&caller, wire, &servers).await;
        }
    }
}

both! {
    async fn a_split_draws_once_a_call(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::seeded(11);
            let [stable, canary] = tracks(&mesh).await;
            let split = "{ name: split, split: { stable: 3, canary: 1 }, by: track }";
            let caller = mesh.caller(&routes(split)).await;
            for _ in 0..200 {
                kind.whole(&caller, wire, Ask::to("stock"), 3).await.unwrap();
            }
            let (stable, canary) = (stable.executed(), canary.executed());
            // Four standard deviations.
            assert!(stable + canary == 200 && canary.abs_diff(50) <= 25, "{kind:?}: {stable} and {canary}");
            let rules = caller.view(wire, "stock").rules;
            assert_eq!((rules[0].name.as_str(), rules[0].hits), ("split", 200), "{kind:?}");
        }
    }
}

both! {
    /// Ten retries within ten seconds, for all kinds together; messages do not count.
    async fn retries_of_every_kind_share_a_budget(wire: Wire) {
        let settings = |min: &str| {
            let budget = format!("budget: {{ share: 0%, min: {min} }}");
            format!(
                "outbound: {{ defaults: {{ breaker: off, \
                 retry: {{ attempts: 3, when: always, backoff: 1ms, {budget} }} }} }}"
            )
        };
        let fault = "faults: [ { name: down, to: stock, at: attempt, abort: { code: UNAVAILABLE } } ]";
        let retries = |caller: &Caller, outcome: &str| {
            let labels = format!(r#"{{outcome="{outcome}",service="stock"}}"#);
            caller.metric(&format!("chassis_retry_attempts_total{labels}"))
        };
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let caller = mesh.caller(&settings("1/s")).await;
            let gate = Gate::shut();
            stock.does(Act::Wait(gate.clone()));
            let held = open(&caller, &[&stock], wire, kind).await.expect("it begins");
            let began = Instant::now();
            // Five calls take two retries each, and five get none. With twice the budget the same happens
            // once more: spent tokens stay spent.
            for (min, retried, refused) in [("1/s", 10.0, 5.0), ("2/s", 20.0, 10.0)] {
                caller.push(&format!("{}\n{fault}", settings(min))).await.applied();
                for _ in 0..10 {
                    let failed = kind.whole(&caller, wire, Ask::to("stock"), 3).await;
                    assert_eq!(failed, Err((Code::Unavailable, Some(Reason::FaultInjected))), "{kind:?}");
                }
                let counted = [retries(&caller, "retried"), retries(&caller, "budget")];
                assert_eq!(counted, [retried, refused], "{kind:?} at {min}");
            }
            assert!(began.elapsed() < Duration::from_secs(1));
            assert_eq!(stock.executed(), 1);
            gate.open();
            held.finish().await.unwrap_or_else(|why| panic!("{kind:?}: {why:?}"));
            settled(&caller, wire, &[&stock]).await;
        }
    }
}

both! {
    /// A call that failed at the server may be sent again as long as its answer has not begun.
    async fn what_fails_over_there_is_tried_again_before_its_answer_begins(wire: Wire) {
        for kind in Kind::ALL {
            let mesh = Mesh::new();
            let stock = mesh.start("stock", "stock-1").await;
            let retry = "retry: { attempts: 2, when: always, backoff: 1ms, budget: { share: 0%, min: 1/s } }";
            let caller = mesh.caller(&format!("outbound: {{ defaults: {{ breaker: off, {retry} }} }}")).await;
            for _ in 0..20 {
                let failed = fails_late(&caller, &stock, wire, kind).await;
                assert_eq!(failed.unwrap_err().0, Code::Unavailable, "{kind:?}");
            }
            let expected = if kind.answers_early() { 20 } else { 20 + 10 };
            assert_eq!(stock.executed(), expected, "{kind:?}");
        }
    }
}
