//! The figures: names and labels as the conventions have them, and nothing unbounded.
use chassis_core::{
    Code, Error, Invocation,
    registry::{Instance, Membership},
    testing::{Answer, CallBuilder, TestProtocol, Upstream, feed},
};
use http::StatusCode;
use serde_json::json;

use crate::support::*;

static GRPC: TestProtocol = TestProtocol::named("grpc");
static HTTP: TestProtocol = TestProtocol::named("http");

fn bench(protocol: &'static TestProtocol, script: fn(&chassis_core::testing::Arrival) -> Answer) -> Bench {
    let bench = Bench::build(Upstream::speaking(protocol, script), |builder| builder);
    let name = chassis_core::protocol::Protocol::name(protocol);
    let instance = Instance::new("stock", "a").with_address(name, "memory:a");
    bench.registry.set("stock", Membership::known([instance]));
    bench.stock(json!({ "retry": "off" }));
    bench
}

/// Every series of a family, as Prometheus writes it, without values.
fn series(bench: &Bench, name: &str) -> Vec<String> {
    let families = bench.runtime.metrics().registry().gather();
    let family = families.iter().find(|f| f.name() == name).unwrap_or_else(|| panic!("no {name}"));
    let label = |l: &prometheus::proto::LabelPair| format!("{}={}", l.name(), l.value());
    family
        .get_metric()
        .iter()
        .map(|m| m.get_label().iter().map(label).collect::<Vec<_>>().join(","))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn rpc_durations_by_method_and_code() {
    let bench = bench(&GRPC, |arrival| match arrival.nth {
        0 => Answer::ok("").after(30 * MS),
        1 => Answer::trailers("", Code::NotFound),
        _ => Answer::lost(),
    });
    for _ in 0..3 {
        let _ = bench.run(CallBuilder::post("stock", "stock.v1.Stock/Reserve").protocol(&GRPC)).await;
    }
    assert_eq!(
        series(&bench, "rpc_client_call_duration_seconds"),
        [
            "error_type=,rpc_method=stock.v1.Stock/Reserve,rpc_status_code=200,rpc_system_name=grpc",
            "error_type=5,rpc_method=stock.v1.Stock/Reserve,rpc_status_code=5,rpc_system_name=grpc",
            "error_type=CONNECTION_LOST,rpc_method=stock.v1.Stock/Reserve,rpc_status_code=UNAVAILABLE,rpc_system_name=grpc",
        ]
    );
    let families = bench.runtime.metrics().registry().gather();
    let family = families.iter().find(|f| f.name() == "rpc_client_call_duration_seconds").unwrap();
    let first = family.get_metric()[0].get_histogram();
    assert!(
        (first.get_sample_sum() - 0.03).abs() < 0.002,
        "to the end of the body: {}",
        first.get_sample_sum()
    );
    let bounds: Vec<_> = first.get_bucket().iter().map(|b| b.upper_bound()).take(14).collect();
    assert_eq!(bounds, [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]);
}

#[tokio::test(start_paused = true)]
async fn http_durations_by_method_route_and_status() {
    let bench = bench(&HTTP, |arrival| if arrival.nth == 0 { Answer::ok("") } else { Answer::status(404) });
    for _ in 0..2 {
        bench
            .run(CallBuilder::get("stock", "GET /stock/{id}").protocol(&HTTP).uri("/stock/42"))
            .await
            .unwrap();
    }
    let of = |status, error| {
        format!(
            "error_type={error},http_request_method=GET,http_response_status_code={status},http_route=/stock/{{id}},\
             server_address=stock"
        )
    };
    assert_eq!(series(&bench, "http_client_request_duration_seconds"), [of(200, ""), of(404, "404")]);
}

#[tokio::test(start_paused = true)]
async fn servers_count_their_own_errors_only() {
    let bench = bench(&HTTP, |_| Answer::ok(""));
    let server = server(&bench.runtime, |call: Invocation| async {
        let status =
            if call.uri.path() == "/bad" { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
        Ok::<_, Error>(call.answered(status, Default::default(), Default::default()))
    });
    for uri in ["/bad", "/worse"] {
        run(&server, CallBuilder::get("orders", "GET /{x}").protocol(&HTTP).uri(uri).build()).await.unwrap();
    }
    let series = series(&bench, "http_server_request_duration_seconds");
    assert!(series[0].starts_with("error_type=,") && series[0].contains("status_code=404"), "{series:?}");
    assert!(series[1].starts_with("error_type=500,") && series[1].contains("status_code=500"), "{series:?}");
}

#[tokio::test(start_paused = true)]
async fn attempts_in_flight_and_endpoints() {
    let bench = Bench::with(["a", "b"], |arrival| match arrival.total {
        0 => Answer::lost(),
        _ => {
            let (fed, body) = feed();
            tokio::spawn(async move { fed.closed().await });
            Answer::streaming(body)
        }
    });
    let reply = bench.send(get()).await.unwrap();
    assert_eq!(bench.metric("chassis_in_flight", &[("side", "client"), ("service", "stock")]), 1.0);
    drop(reply);
    assert_eq!(bench.metric("chassis_in_flight", &[("side", "client"), ("service", "stock")]), 0.0);
    let attempts = |code| bench.metric("chassis_attempts_total", &[("service", "stock"), ("code", code)]);
    assert_eq!((attempts("UNAVAILABLE"), attempts("CANCELLED")), (1.0, 1.0));
    assert_eq!(bench.metric("chassis_endpoints", &[("service", "stock"), ("protocol", "test")]), 2.0);
    assert_eq!(bench.metric("chassis_rejected_total", &[]), 0.0, "who gives up is not refused");
}

#[tokio::test(start_paused = true)]
async fn invented_operations_fill_nothing() {
    let bench = bench(&GRPC, |_| Answer::ok(""));
    for n in 0..2_000 {
        let mut call = get().protocol(&GRPC).build();
        call.target.operation = format!("Invented{n}").as_str().into();
        run(&bench.pipeline, call).await.unwrap();
    }
    let series = series(&bench, "rpc_client_call_duration_seconds");
    assert_eq!(series.len(), chassis_core::MOST_OPERATIONS + 1);
    assert!(series.iter().any(|s| s.contains("rpc_method=_OTHER")));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_process_shows_no_service_that_is_none() {
    let bench = bench(&GRPC, |_| Answer::ok(""));
    bench.stock(json!({}));
    for family in bench.runtime.metrics().registry().gather() {
        for metric in family.get_metric() {
            assert!(
                metric.get_label().iter().all(|l| l.name() != "service" || l.value() != "_OTHER"),
                "{family:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn taken_names_are_said() {
    let registry = prometheus::Registry::new();
    let build = || chassis_core::Runtime::builder("orders").metrics(registry.clone()).build();
    build().unwrap();
    assert!(build().is_err());
}

#[tokio::test(start_paused = true)]
async fn versions_are_shown() {
    let bench = bench(&GRPC, |_| Answer::ok(""));
    bench.stock(json!({}));
    let shown = series(&bench, "chassis_config_info");
    assert_eq!(shown, ["sha256=hash,version=2"], "the one in force and no other");
    assert_eq!(bench.metric("chassis_config_reloads_total", &[("result", "applied")]), 2.0);
    assert_eq!(bench.metric("chassis_config_last_reload_successful", &[]), 1.0);
}
