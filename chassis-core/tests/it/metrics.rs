//! The metrics: names and labels as in the conventions, and a bounded number of series.
use chassis_core::{
    Code, Error, Invocation,
    protocol::{DurationFamilies, Family},
    registry::{Instance, Membership},
    testing::{Answer, CallBuilder, TestProtocol, Upstream, feed},
};
use http::StatusCode;
use serde_json::json;

use crate::support::*;

static LINE: TestProtocol = TestProtocol::named("line");
static OTHER: TestProtocol = TestProtocol::named("other");
static THIRD: TestProtocol = TestProtocol::named("third");
static NAMED: TestProtocol = TestProtocol::named("named").counted_by(&FAMILIES);

static FAMILIES: DurationFamilies = DurationFamilies {
    client: Family { name: "named_client_seconds", help: "Calls out." },
    server: Family { name: "named_server_seconds", help: "Calls in." },
    labels: &["of", "status", "error"],
    service: Some("of"),
};

const CLIENT: &str = "chassis_client_call_duration_seconds";
const SERVER: &str = "chassis_server_call_duration_seconds";

fn bench(protocol: &'static TestProtocol, script: fn(&chassis_core::testing::Arrival) -> Answer) -> Bench {
    let bench = Bench::build(Upstream::speaking(protocol, script), |builder| builder);
    let name = chassis_core::protocol::Protocol::name(protocol);
    let instance = Instance::new("stock", "a").with_address(name, "memory:a");
    bench.registry.set("stock", Membership::known([instance]));
    bench.stock(json!({ "retry": "off" }));
    bench
}

/// Every series of a family, in the format of Prometheus, without values.
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
async fn durations_by_protocol_operation_and_code() {
    let bench = bench(&LINE, |arrival| match arrival.nth {
        0 => Answer::ok("").after(30 * MS),
        1 => Answer::trailers("", Code::NotFound),
        _ => Answer::lost(),
    });
    for _ in 0..3 {
        let _ = bench.run(CallBuilder::post("stock", "Reserve").protocol(&LINE)).await;
    }
    let of = |code| format!("code={code},operation=Reserve,protocol=line,service=stock");
    assert_eq!(series(&bench, CLIENT), [of("NOT_FOUND"), of("OK"), of("UNAVAILABLE")]);
    let families = bench.runtime.metrics().registry().gather();
    let family = families.iter().find(|f| f.name() == CLIENT).unwrap();
    let ok = family.get_metric()[1].get_histogram();
    assert!((ok.get_sample_sum() - 0.03).abs() < 0.002, "to the end of the body: {}", ok.get_sample_sum());
    let bounds: Vec<_> = ok.get_bucket().iter().map(|b| b.upper_bound()).take(14).collect();
    assert_eq!(bounds, [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0]);
}

/// One service, one operation, three protocols: each call is counted under its own.
#[tokio::test(start_paused = true)]
async fn protocols_of_one_s_own_are_told_apart() {
    let bench = bench(&LINE, |_| Answer::ok(""));
    let server = server(&bench.runtime, |call: Invocation| async {
        Ok::<_, Error>(call.answered(StatusCode::OK, Default::default(), Default::default()))
    });
    for (protocol, calls) in [(&LINE, 1), (&OTHER, 2), (&THIRD, 3)] {
        for _ in 0..calls {
            run(&server, CallBuilder::get("orders", "Ping").protocol(protocol).build()).await.unwrap();
        }
    }
    let families = bench.runtime.metrics().registry().gather();
    let family = families.iter().find(|f| f.name() == SERVER).unwrap();
    let count = |protocol: &str| {
        let has = |m: &&prometheus::proto::Metric| m.get_label().iter().any(|l| l.value() == protocol);
        family.get_metric().iter().find(has).unwrap().get_histogram().get_sample_count()
    };
    assert_eq!((count("line"), count("other"), count("third")), (1, 2, 3));
}

#[tokio::test(start_paused = true)]
async fn servers_count_their_own_errors_only() {
    let bench = bench(&NAMED, |_| Answer::ok(""));
    let server = server(&bench.runtime, |call: Invocation| async {
        let status =
            if call.uri.path() == "/bad" { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
        Ok::<_, Error>(call.answered(status, Default::default(), Default::default()))
    });
    for uri in ["/bad", "/worse"] {
        run(&server, CallBuilder::get("orders", "GET /{x}").protocol(&NAMED).uri(uri).build()).await.unwrap();
    }
    let of = |status, error| format!("error={error},of=orders,status={status}");
    assert_eq!(series(&bench, "named_server_seconds"), [of(404, ""), of(500, "500")]);
}

/// A metric name that is taken does not affect calls; registering the protocol returns the error.
#[tokio::test(start_paused = true)]
async fn names_of_a_protocol_that_are_taken() {
    let bench = bench(&NAMED, |_| Answer::ok(""));
    let taken = prometheus::IntCounter::new("named_client_seconds", "of another part").unwrap();
    bench.runtime.metrics().registry().register(Box::new(taken)).unwrap();
    assert!(bench.runtime.metrics().register(&NAMED).is_err());
    bench.run(get().protocol(&NAMED)).await.unwrap();
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
    let bench = bench(&LINE, |_| Answer::ok(""));
    for n in 0..2_000 {
        let mut call = get().protocol(&LINE).build();
        call.target.operation = format!("Invented{n}").as_str().into();
        run(&bench.pipeline, call).await.unwrap();
    }
    let series = series(&bench, CLIENT);
    assert_eq!(series.len(), chassis_core::MOST_OPERATIONS + 1);
    assert!(series.iter().any(|s| s.contains("operation=_OTHER")));
}

#[tokio::test(start_paused = true)]
async fn a_fresh_process_shows_no_service_that_is_none() {
    let bench = bench(&LINE, |_| Answer::ok(""));
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
    let bench = bench(&LINE, |_| Answer::ok(""));
    bench.stock(json!({}));
    let shown = series(&bench, "chassis_config_info");
    assert_eq!(shown, ["sha256=hash,version=2"], "the one in force and no other");
    assert_eq!(bench.metric("chassis_config_reloads_total", &[("result", "applied")]), 2.0);
    assert_eq!(bench.metric("chassis_config_last_reload_successful", &[]), 1.0);
}
