//! Names in the document that the process has not seen: misspelt, or not registered yet.
use std::collections::{BTreeMap, BTreeSet};

use chassis_config::Finding;

use super::Document;

/// The names that a running process has seen so far. An empty set causes no warnings.
///
/// ```
/// use chassis::document::{Seen, SeenService};
///
/// let mut seen = Seen::default();
/// let stock = SeenService { labels: ["track".to_string()].into(), operations: Default::default() };
/// seen.services.insert("stock".into(), stock);
/// ```
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The registry's services.
    pub services: BTreeMap<String, SeenService>,
    /// The operations that this process serves.
    pub operations: BTreeSet<String>,
}

/// The names seen of one service.
#[derive(Clone, Debug, Default)]
pub struct SeenService {
    /// The labels of its instances.
    pub labels: BTreeSet<String>,
    /// The operations that were called.
    pub operations: BTreeSet<String>,
}

/// Labels that every instance has.
const ALWAYS: [&str; 6] = chassis_core::registry::Instance::STATED;

// === impl Document ===

impl Document {
    /// Warns of services, labels and operations that were not seen yet. The registry may still learn of them,
    /// so nothing is refused; call it again when more is known.
    pub fn unseen(&self, seen: &Seen) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut check = |path: String, name: &str, what: &str, known: Vec<&str>| {
            if !known.is_empty() && !known.contains(&name) {
                let message = format!("no {what} `{name}` was seen yet");
                found.push(Finding::warning(path, message).instead(name, known));
            }
        };
        let services = || seen.services.keys().map(String::as_str).collect::<Vec<_>>();
        for (i, fault) in self.faults.iter().enumerate() {
            if let Some(to) = &fault.to {
                check(format!("faults[{i}].to"), to, "service", services());
            }
        }
        for operation in self.inbound.operations.keys() {
            let known = seen.operations.iter().map(String::as_str).collect();
            check(format!("inbound.operations.{operation:?}"), operation, "operation", known);
        }
        for (name, settings) in &self.outbound.services {
            let path = format!("outbound.services.{name:?}");
            check(path.clone(), name, "service", services());
            let Some(service) = seen.services.get(name) else { continue };
            for operation in settings.operations.keys() {
                let known = service.operations.iter().map(String::as_str).collect();
                check(format!("{path}.operations.{operation:?}"), operation, "operation", known);
            }
            let labels = || match service.labels.is_empty() {
                true => Vec::new(),
                false => service.labels.iter().map(String::as_str).chain(ALWAYS).collect(),
            };
            for (i, route) in settings.routes.iter().flatten().enumerate() {
                for label in route.to.iter().flat_map(BTreeMap::keys) {
                    check(format!("{path}.routes[{i}].to.{label:?}"), label, "label", labels());
                }
                if let Some(by) = &route.by {
                    check(format!("{path}.routes[{i}].by"), by, "label", labels());
                }
            }
        }
        found
    }
}
