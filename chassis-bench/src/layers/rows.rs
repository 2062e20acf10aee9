//! All rows: their names, their bases, and their constructors.
use super::{
    bare,
    case::{Case, Laps, Local},
    echo::Wire,
    settings::{OFF, ON},
    whole,
};
use crate::micro::{leaf, lookup, one_layer, pick, pipelines, swap};

/// One thing to measure.
#[derive(Clone)]
pub struct Row {
    /// The name in the JSON.
    pub name: String,
    /// The numbers of concurrent callers.
    pub callers: &'static [usize],
    /// The repetitions.
    pub laps: Laps,
    /// The row of this name, whose cost is subtracted as not its own.
    pub beyond: Option<&'static str>,
    /// Whether `--quick` includes it.
    pub quick: bool,
    /// Whether it is recorded.
    pub guarded: bool,
    make: Make,
}

type Make = std::sync::Arc<dyn Fn() -> Local<'static, Box<dyn Case>> + Send + Sync>;

const BOTH: &[usize] = &[1, 64];
const ONE: &[usize] = &[1];

/// In the order of the output.
pub fn all() -> Vec<Row> {
    let mut rows = vec![
        row("bare_tonic", BOTH, Laps::CALLS, || bare::tonic(Wire::Plain)),
        row("bare_tonic_timeout", BOTH, Laps::CALLS, || bare::tonic(Wire::Timeout)),
        row("bare_tonic_traceparent", BOTH, Laps::CALLS, || bare::tonic(Wire::Traceparent)),
        row("bare_tonic_timeout_traceparent", BOTH, Laps::CALLS, || bare::tonic(Wire::Both)),
        row("chassis_off", BOTH, Laps::CALLS, || whole::grpc(OFF, Wire::Plain)),
        row("chassis_on", BOTH, Laps::CALLS, || whole::grpc(ON, Wire::Plain)),
        row("chassis_on_timeout", BOTH, Laps::CALLS, || whole::grpc(ON, Wire::Timeout)),
        row("chassis_on_traceparent", BOTH, Laps::CALLS, || whole::grpc(ON, Wire::Traceparent)),
        row("chassis_on_timeout_traceparent", BOTH, Laps::CALLS, || whole::grpc(ON, Wire::Both)),
        row("glued_tower", BOTH, Laps::CALLS, bare::glued),
        row("bare_hyper", BOTH, Laps::CALLS, bare::hyper),
        row("chassis_http_off", BOTH, Laps::CALLS, || whole::rest(OFF)),
        row("chassis_http_on", BOTH, Laps::CALLS, || whole::rest(ON)),
        row("make_call", BOTH, Laps::PARTS, || ready(leaf::making())),
        row("client_pipeline_off", ONE, Laps::PARTS, || pipelines::client(OFF)),
        row("client_pipeline_on", BOTH, Laps::PARTS, || pipelines::client(ON)),
        row("client_pipeline_on_fn", ONE, Laps::PARTS, || pipelines::client_with_fn(ON)),
        row("client_pipeline_on_layer", ONE, Laps::PARTS, || pipelines::client_with_layer(ON)),
        row("server_pipeline_off", ONE, Laps::PARTS, || pipelines::server(OFF)),
        row("server_pipeline_on", BOTH, Laps::PARTS, || pipelines::server(ON)),
        part("empty_stage", one_layer::empty_stage),
    ];
    for name in one_layer::SWITCHED {
        for (state, on) in [("off", false), ("on", true)] {
            rows.push(part(&format!("layer_{name}_{state}"), move || one_layer::layer(name, on)));
        }
    }
    for name in one_layer::ALWAYS {
        rows.push(part(&format!("layer_{name}_on"), move || one_layer::layer(name, true)));
    }
    for endpoints in [10, 100, 1_000, 10_000] {
        rows.push(part(&format!("pick_{endpoints}"), move || pick::ours(endpoints)));
        let towers = format!("tower_pick_{endpoints}");
        rows.push(row(&towers, ONE, Laps::PARTS, move || pick::towers(endpoints)));
    }
    for operations in [10, 10_000] {
        rows.push(row(&format!("lookup_{operations}"), ONE, Laps::PARTS, move || lookup::among(operations)));
    }
    rows.push(row("swap_10000", ONE, Laps::WHOLE, || swap::apply(10_000)));
    rows.push(row("read_10000", ONE, Laps::WHOLE, || swap::read(10_000)));
    for row in &mut rows {
        row.quick = !SLOW.contains(&&*row.name);
        row.guarded = GUARDED.contains(&&*row.name);
    }
    rows
}

/// The rows that `--quick` leaves out.
const SLOW: [&str; 11] = [
    "bare_tonic_timeout_traceparent",
    "chassis_on_timeout",
    "chassis_on_timeout_traceparent",
    "chassis_http_off",
    "client_pipeline_off",
    "client_pipeline_on_fn",
    "client_pipeline_on_layer",
    "server_pipeline_off",
    "tower_pick_1000",
    "tower_pick_10000",
    "read_10000",
];

/// The recorded rows: whole calls, the pipelines, and their bases.
const GUARDED: [&str; 9] = [
    "bare_tonic",
    "chassis_off",
    "chassis_on",
    "chassis_on_traceparent",
    "chassis_http_on",
    "make_call",
    "client_pipeline_on",
    "server_pipeline_on",
    "lookup_10000",
];

/// A part of a call, without the cost of making the call and answering it.
fn part<F, Fut>(name: &str, make: F) -> Row
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Box<dyn Case>> + 'static,
{
    Row { beyond: Some("make_call"), ..row(name, ONE, Laps::PARTS, make) }
}

fn row<F, Fut>(name: &str, callers: &'static [usize], laps: Laps, make: F) -> Row
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Box<dyn Case>> + 'static,
{
    let make: Make = std::sync::Arc::new(move || Box::pin(make()));
    Row { name: name.to_owned(), callers, laps, beyond: None, quick: false, guarded: false, make }
}

fn ready(case: Box<dyn Case>) -> std::future::Ready<Box<dyn Case>> {
    std::future::ready(case)
}

impl Row {
    /// Creates the case.
    pub async fn make(&self) -> Box<dyn Case> {
        (self.make)().await
    }
}
