//! The scraped metrics: names, labels and buckets as in the conventions; and a bounded number of label
//! values.
use std::collections::BTreeSet;

use chassis::Code;

use crate::mesh::{Act, Ask, Gate, Mesh, Wire, both, metric, scrape, until};

/// The series of a family, without their values.
fn series(text: &str, family: &str) -> BTreeSet<String> {
    let begins = format!("{family}{{");
    let lines = text.lines().filter(|line| line.starts_with(&begins));
    lines.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

fn owned<const N: usize>(all: [&str; N]) -> BTreeSet<String> {
    all.map(str::to_owned).into()
}

#[tokio::test(start_paused = true)]
async fn rpc_durations() {
    let mesh = Mesh::new();
    let stock = mesh.start("stock", "stock-1").await;
    let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
    assert!(caller.call(Wire::Grpc, Ask::to("stock")).await.is_ok());
    stock.does_next([Act::Fail(Code::NotFound), Act::Fail(Code::Internal)]);
    caller.calls(Wire::Grpc, 2, || Ask::to("stock")).await;
    let labels = |method: &str, code: &str, error: &str| {
        format!(
            r#"{{error_type="{error}",rpc_method="chassis.test.v1.Echo/{method}",rpc_status_code="{code}",rpc_system_name="grpc"}}"#
        )
    };
    let client = series(&scrape(caller.runtime()), "rpc_client_call_duration_seconds_count");
    let name = "rpc_client_call_duration_seconds_count";
    let expected = [("OK", ""), ("NOT_FOUND", "NOT_FOUND"), ("INTERNAL", "INTERNAL")];
    let expected = expected.map(|(code, error)| format!("{name}{}", labels("Call", code, error)));
    assert_eq!(client, expected.into());
    // An error of the caller is no error of the server.
    let name = "rpc_server_call_duration_seconds_count";
    let expected = [("OK", ""), ("NOT_FOUND", ""), ("INTERNAL", "INTERNAL")];
    let expected = expected.map(|(code, error)| format!("{name}{}", labels("Call", code, error)));
    assert_eq!(series(&scrape(stock.runtime()), name), expected.into());
}

#[tokio::test(start_paused = true)]
async fn http_durations() {
    let mesh = Mesh::new();
    let stock = mesh.start("stock", "stock-1").await;
    let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
    assert!(caller.call(Wire::Rest, Ask::to("stock").safe()).await.is_ok());
    stock.does_next([Act::Fail(Code::NotFound), Act::Fail(Code::Internal)]);
    caller.calls(Wire::Rest, 2, || Ask::to("stock").safe()).await;
    let labels = |status: &str, error: &str| {
        format!(
            r#"{{error_type="{error}",http_request_method="GET",http_response_status_code="{status}",http_route="/safe/{{message}}",server_address="stock"}}"#
        )
    };
    for (runtime, name, not_found) in [
        (caller.runtime(), "http_client_request_duration_seconds_count", "404"),
        (stock.runtime(), "http_server_request_duration_seconds_count", ""),
    ] {
        let expected = [("200", ""), ("404", not_found), ("500", "500")];
        let expected = expected.map(|(status, error)| format!("{name}{}", labels(status, error)));
        assert_eq!(series(&scrape(runtime), name), expected.into());
    }
}

/// The server's own refusals, and callers that cancel: none of them counts as a success.
#[tokio::test(start_paused = true)]
async fn what_no_handler_answers_has_a_status_too() {
    let mesh = Mesh::new();
    let stock = mesh.start("stock", "stock-1").await;
    let caller = mesh.caller("outbound: { defaults: { retry: off, breaker: off } }").await;
    stock.does_next([Act::Panic]);
    caller.call(Wire::Rest, Ask::to("stock")).await;
    let second = std::time::Duration::from_secs(1);
    stock.does(Act::Delay(10 * second));
    caller.call(Wire::Rest, Ask::to("stock").timeout(second)).await;
    let left = tokio::time::timeout(second / 10, caller.call(Wire::Rest, Ask::to("stock"))).await;
    assert!(left.is_err());
    let found = || {
        let name = "http_server_request_duration_seconds_count";
        let all = series(&scrape(stock.runtime()), name);
        let label = |one: &str, name: &str| {
            one.split(&format!("{name}=\"")).nth(1).unwrap().split('"').next().unwrap().to_owned()
        };
        let pair = |one: &String| (label(one, "http_response_status_code"), label(one, "error_type"));
        all.iter().map(pair).collect::<BTreeSet<_>>()
    };
    let expected = [("499", "CANCELLED"), ("500", "PANICKED"), ("504", "DEADLINE_EXCEEDED")];
    let expected: BTreeSet<_> = expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into();
    until("all are over", || found().len() >= 3).await;
    assert_eq!(found(), expected);
}

both! {
    async fn buckets_are_those_of_the_conventions(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Delay(std::time::Duration::from_millis(60)));
        let caller = mesh.caller("").await;
        assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        let family = match wire {
            Wire::Grpc => "rpc_client_call_duration_seconds_bucket",
            Wire::Rest => "http_client_request_duration_seconds_bucket",
        };
        let text = scrape(caller.runtime());
        let counts: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with(family))
            .map(|line| {
                let bound = line.split("le=\"").nth(1).unwrap().split('"').next().unwrap();
                (bound.to_owned(), line.rsplit_once(' ').unwrap().1.to_owned())
            })
            .collect();
        let bounds = [
            "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5", "10",
            "+Inf",
        ];
        let expected: Vec<_> = bounds
            .into_iter()
            .enumerate()
            .map(|(i, bound)| (bound.to_owned(), if i < 4 { "0" } else { "1" }.to_owned()))
            .collect();
        assert_eq!(counts, expected);
    }
}

both! {
    async fn every_family_of_ours_is_there(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("inbound: { rate_limits: [ { name: in, rate: 10/s, burst: 100 } ] }");
        let stock = stock.start().await;
        let settings = "
            outbound:
              services:
                stock:
                  breaker: { min_calls: 4 }
                  routes: [ { name: all, to: { track: stable } } ]
            faults: [ { name: slow, to: stock, delay: 1ms, match: { header: { x-slow: { present: true } } } } ]
            ";
        let caller = mesh.caller(settings).await;
        assert!(caller.call(wire, Ask::to("stock").header("x-slow", "1")).await.is_ok());
        stock.does(Act::Fail(Code::Unavailable));
        caller.calls(wire, 5, || Ask::to("stock").safe()).await;
        let text = scrape(caller.runtime());
        let protocol = wire.protocol();
        for (family, expected) in [
            ("chassis_in_flight", owned([r#"{service="stock",side="client"}"#])),
            (
                "chassis_attempts_total",
                owned([
                    r#"{code="OK",service="stock"}"#,
                    r#"{code="UNAVAILABLE",service="stock"}"#,
                ]),
            ),
            (
                "chassis_breaker_transitions_total",
                owned([r#"{scope="service",service="stock",to="open"}"#]),
            ),
            ("chassis_breaker_open", owned([r#"{scope="service",service="stock"}"#])),
            ("chassis_route_decisions_total", owned([r#"{rule="all",service="stock"}"#])),
            (
                "chassis_faults_injected_total",
                owned([r#"{kind="abort",rule="slow"}"#, r#"{kind="delay",rule="slow"}"#]),
            ),
            ("chassis_rejected_total", owned([r#"{reason="CIRCUIT_OPEN",service="stock",side="client"}"#])),
            ("chassis_config_reloads_total", owned([r#"{result="applied"}"#])),
        ] {
            let all: BTreeSet<_> = series(&text, family);
            for one in expected {
                assert!(all.contains(&format!("{family}{one}")), "{family}{one} is not among {all:?}");
            }
        }
        let endpoints = format!(r#"chassis_endpoints{{protocol="{protocol}",service="stock"}}"#);
        assert_eq!(caller.metric(&endpoints), 1.0);
        assert_eq!(caller.metric(r#"chassis_attempts_total{code="OK",service="stock"}"#), 1.0);
        assert_eq!(caller.metric("chassis_config_last_reload_successful"), 1.0);
        assert!(caller.metric("chassis_config_last_reload_success_timestamp_seconds") > 1.7e9);
        let decisions = r#"chassis_rate_limit_decisions_total{decision="allowed",rule="in",side="server"}"#;
        assert_eq!(metric(stock.runtime(), decisions), stock.executed() as f64);
        // A retry, and the reason why another was not made.
        assert!(caller.metric(r#"chassis_retry_attempts_total{outcome="retried",service="stock"}"#) > 0.0);
    }
}

both! {
    async fn calls_are_in_flight_until_their_bodies_end(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        let gate = Gate::shut();
        stock.does(Act::Wait(gate.clone()));
        let mut parts = caller.download(wire, Ask::to("stock"), 2).await.unwrap();
        parts.next().await.unwrap().unwrap();
        let out = r#"chassis_in_flight{service="stock",side="client"}"#;
        let inside = r#"chassis_in_flight{service="stock",side="server"}"#;
        assert_eq!((caller.metric(out), metric(stock.runtime(), inside)), (1.0, 1.0));
        assert_eq!(caller.view(wire, "stock").nodes[0].in_flight, 1);
        gate.open();
        assert_eq!(parts.rest().await.0, 1);
        drop(parts);
        until("nothing is", || caller.metric(out) + metric(stock.runtime(), inside) == 0.0).await;
        assert_eq!(caller.view(wire, "stock").nodes[0].in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn paths_never_become_labels() {
    let mesh = Mesh::new();
    let stock = mesh.start("stock", "stock-1").await;
    let caller = mesh.caller("").await;
    for n in 0..50 {
        assert!(caller.call(Wire::Rest, Ask::to("stock").safe().message(&format!("m{n}"))).await.is_ok());
        let nowhere = caller.clients("stock").rest.get("/nowhere/{n}").param("n", n).send().await.unwrap();
        assert_eq!(nowhere.status(), 404);
    }
    let all = series(&scrape(stock.runtime()), "http_server_request_duration_seconds_count");
    assert_eq!(all.len(), 2, "{all:?}");
    assert!(all.iter().any(|one| one.contains(r#"http_route="_OTHER""#)), "{all:?}");
    let all = series(&scrape(caller.runtime()), "http_client_request_duration_seconds_count");
    assert_eq!(all.len(), 2, "{all:?}");
}
