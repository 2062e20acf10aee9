//! The state of the process as JSON: the inspection, the settings, and figures of the metrics.
//!
//! Lengths of time are numbers of seconds.
use chassis_core::{Runtime, inspect::Inspection};
use prometheus::proto::{MetricFamily, MetricType};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::process::Process;

/// The incoming calls: their limits, and what was counted by operation.
pub(crate) fn inbound(runtime: &Runtime, process: &dyn Process) -> Value {
    let (seen, families) = (runtime.inspect(), runtime.metrics().registry().gather());
    let own = |service: &str| service == seen.service;
    let figures: Vec<_> =
        families.iter().filter(|it| it.name().contains("_server_")).flat_map(series).collect();
    json!({
        "listeners": process.listeners(),
        "in_flight": of_side(&families, "chassis_in_flight", "server", None),
        "rejected": of_side(&families, "chassis_rejected_total", "server", None),
        "operations": figures,
        "limits": seen.limits.iter().filter(|it| own(&it.service)).map(json).collect::<Vec<_>>(),
        "concurrency": seen.concurrency.iter().filter(|it| own(&it.service)).map(json).collect::<Vec<_>>(),
        "layers": json(&seen.layers),
    })
}

/// Every service that is called, in short.
pub(crate) fn outbound(runtime: &Runtime) -> Value {
    let seen = runtime.inspect();
    let short = |service: &chassis_core::inspect::ServiceView| {
        let nodes = &service.nodes;
        let count = |is_it: &dyn Fn(&chassis_core::inspect::NodeView) -> bool| {
            nodes.iter().filter(|node| is_it(node)).count()
        };
        json!({
            "service": service.name,
            "protocol": service.protocol,
            "nodes": nodes.len(),
            "ready": count(&|node| node.connection == "ready"),
            "in_service": count(&|node| node.status == "up"),
            "in_flight": nodes.iter().map(|node| u64::from(node.in_flight)).sum::<u64>(),
            "circuits": seen.circuits.iter().filter(|it| it.service == service.name).map(json).collect::<Vec<_>>(),
        })
    };
    json!({ "services": seen.services.iter().map(short).collect::<Vec<_>>() })
}

/// One service that is called: nodes, rules, circuits, limits, budget, and what was counted. `None` if it is not called.
pub(crate) fn outbound_of(runtime: &Runtime, service: &str) -> Option<Value> {
    let (seen, families) = (runtime.inspect(), runtime.metrics().registry().gather());
    let protocols: Vec<_> = seen.services.iter().filter(|it| it.name == service).map(json).collect();
    if protocols.is_empty() {
        return None;
    }
    let of = |it: &str| it == service;
    Some(json!({
        "service": service,
        "protocols": protocols,
        "circuits": seen.circuits.iter().filter(|it| of(&it.service)).map(json).collect::<Vec<_>>(),
        "limits": seen.limits.iter().filter(|it| of(&it.service)).map(json).collect::<Vec<_>>(),
        "concurrency": seen.concurrency.iter().filter(|it| of(&it.service)).map(json).collect::<Vec<_>>(),
        "budgets": seen.budgets.iter().filter(|it| of(&it.service)).map(json).collect::<Vec<_>>(),
        "attempts": of_side(&families, "chassis_attempts_total", "", Some(service)),
        "retries": of_side(&families, "chassis_retry_attempts_total", "", Some(service)),
        "rejected": of_side(&families, "chassis_rejected_total", "client", Some(service)),
        "in_flight": of_side(&families, "chassis_in_flight", "client", Some(service)),
    }))
}

/// All circuits: those of services and operations, and those of nodes.
pub(crate) fn breakers(seen: &Inspection) -> Value {
    let mut nodes = Vec::new();
    for service in &seen.services {
        for node in service.nodes.iter().filter(|node| node.circuit.is_some()) {
            nodes.push(json!({
                "service": service.name,
                "protocol": service.protocol,
                "node": node.id,
                "address": node.address,
                "state": node.circuit,
            }));
        }
    }
    json!({ "circuits": json(&seen.circuits), "nodes": nodes })
}

/// The limits of all mechanisms that have some: a new one needs no line here.
pub(crate) fn limits(seen: &Inspection) -> Value {
    let Value::Object(all) = json(seen) else { return Value::Null };
    let is_limit = |key: &str| key.ends_with("limits") || key == "concurrency";
    Value::Object(all.into_iter().filter(|(key, _)| is_limit(key)).collect())
}

pub(crate) fn budgets(seen: &Inspection) -> Value {
    json!({ "budgets": json(&seen.budgets) })
}

/// The route rules of each service, with hits.
pub(crate) fn routes(seen: &Inspection) -> Value {
    let of = |service: &chassis_core::inspect::ServiceView| json!({ "service": service.name, "protocol": service.protocol, "rules": json(&service.rules) });
    json!({ "services": seen.services.iter().map(of).collect::<Vec<_>>() })
}

pub(crate) fn faults(seen: &Inspection) -> Value {
    json!({ "faults": json(&seen.faults) })
}

/// The registry: this process in it, and the instances that it lists.
pub(crate) fn registry(runtime: &Runtime, process: &dyn Process) -> Value {
    let (seen, families) = (runtime.inspect(), runtime.metrics().registry().gather());
    let of = |service: &chassis_core::inspect::ServiceView| {
        let node = |node: &chassis_core::inspect::NodeView| json!({ "id": node.id, "address": node.address, "registry": node.registry, "status": node.status });
        let nodes: Vec<_> = service.nodes.iter().map(node).collect();
        json!({ "service": service.name, "protocol": service.protocol, "instances": nodes })
    };
    json!({
        "registry": runtime.registry().name(),
        "instance": process.instance(),
        "status": process.registered(),
        "listeners": process.listeners(),
        "errors": of_side(&families, "chassis_registry_errors_total", "", None),
        "instances_refused": of_side(&families, "chassis_instances_refused_total", "", None),
        "held": of_side(&families, "chassis_endpoints_held", "", None),
        "services": seen.services.iter().map(of).collect::<Vec<_>>(),
    })
}

/// The settings in force that a source sets, each with its origin; secrets are masked.
pub(crate) fn config(runtime: &Runtime, process: &dyn Process) -> Value {
    let seen = runtime.inspect();
    json!({
        "version": seen.version,
        "hash": seen.hash,
        "settings": process.settings(),
        "pending_restart": process.pending(),
    })
}

pub(crate) fn versions(process: &dyn Process) -> Value {
    json!({ "versions": process.versions() })
}

/// The view as JSON, with lengths of time in seconds.
pub(crate) fn json(view: &(impl Serialize + ?Sized)) -> Value {
    // Maps have keys of text, so it never fails.
    seconds(serde_json::to_value(view).unwrap_or_default())
}

/// serde writes a length of time as `{ secs, nanos }`.
fn seconds(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            if let (2, Some(secs), Some(nanos)) =
                (map.len(), map.get("secs").and_then(Value::as_u64), map.get("nanos").and_then(Value::as_u64))
            {
                return json!(secs as f64 + nanos as f64 / 1e9);
            }
            Value::Object(map.into_iter().map(|(key, value)| (key, seconds(value))).collect())
        }
        Value::Array(all) => Value::Array(all.into_iter().map(seconds).collect()),
        value => value,
    }
}

/// The series of the family `name`, of one side and one service. A family without a label has no such filter.
fn of_side(families: &[MetricFamily], name: &str, side: &str, service: Option<&str>) -> Vec<Value> {
    let all = families.iter().filter(|family| family.name() == name).flat_map(series);
    let is = |value: &Value, label: &str, wanted: &str| value["labels"][label] == wanted;
    let all = all.filter(|it| side.is_empty() || is(it, "side", side));
    all.filter(|it| service.is_none_or(|service| is(it, "service", service))).collect()
}

/// The series of a family: the labels of each, and its value, or its count and sum.
fn series(family: &MetricFamily) -> Vec<Value> {
    let one = |metric: &prometheus::proto::Metric| {
        let labels: Map<_, _> =
            metric.get_label().iter().map(|label| (label.name().to_owned(), json!(label.value()))).collect();
        let mut it = json!({ "metric": family.name(), "labels": labels });
        match family.get_field_type() {
            MetricType::COUNTER => it["value"] = json!(metric.get_counter().get_value()),
            MetricType::GAUGE => it["value"] = json!(metric.get_gauge().get_value()),
            MetricType::HISTOGRAM => {
                it["count"] = json!(metric.get_histogram().get_sample_count());
                it["sum"] = json!(metric.get_histogram().get_sample_sum());
            }
            MetricType::SUMMARY => {
                it["count"] = json!(metric.get_summary().sample_count());
                it["sum"] = json!(metric.get_summary().sample_sum());
            }
            MetricType::UNTYPED => {}
        }
        it
    };
    family.get_metric().iter().map(one).collect()
}
