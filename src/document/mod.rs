//! The document that users write, `chassis.yaml` or the same in TOML or JSON, and the parts of
//! [`chassis_config`] that read it.
mod listen;
#[cfg(test)]
mod messages;
mod propagate;
mod read;
mod renamed;
mod rollout;
mod service;
mod unseen;

use std::collections::BTreeMap;

pub use chassis_config::*;
use chassis_core::{
    Sections,
    layer::fault::FaultConfig,
    matching::Match,
    settings::{InboundSettings, LayerSwitch, OutboundSettings, Pickers, Settings},
};
use serde::Deserialize;

use self::tree::{Node, Path};
pub(crate) use self::{listen::OWN as OWN_LISTENERS, read::Reader};
pub use self::{
    listen::{Address, Listen},
    propagate::Propagate,
    rollout::{Factor, RolloutConfig, RolloutGuardConfig},
    service::{DiscoverySection, ServiceSection, ShutdownSection, TelemetrySection, check_name},
    unseen::{Seen, SeenService},
};
use crate::kinds::{Center, Chosen};

/// All settings. An empty document is valid.
///
/// Only a builder can read the settings of kinds (`registry`, `pickers`) and the registered sections (`client`
/// and `server` among them), because it knows their types: see [`kind`](crate::ChassisBuilder::kind) and
/// [`section`](crate::ChassisBuilder::section).
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Document {
    /// The identity of this process.
    pub service: ServiceSection,
    /// The addresses that it listens at.
    pub listen: Listen,
    /// The registry, which finds other services and makes this one known.
    #[serde(deserialize_with = "read::later")]
    #[cfg_attr(feature = "cli", schemars(with = "serde_json::Value"))]
    pub(crate) registry: Option<Chosen>,
    /// The handling of the registry's answers.
    pub discovery: DiscoverySection,
    /// Config centers.
    #[serde(deserialize_with = "read::later")]
    #[cfg_attr(feature = "cli", schemars(with = "serde_json::Value"))]
    pub(crate) config: Vec<Center>,
    /// The staged roll-out of new settings: `config.rollout`. Default `off`.
    #[serde(skip)]
    pub rollout: Option<RolloutConfig>,
    /// Matches by name, for routes, limits and faults. Default none.
    pub matches: BTreeMap<String, Match>,
    /// Pickers by name, for `balance`. Default none.
    #[serde(deserialize_with = "read::later")]
    #[cfg_attr(feature = "cli", schemars(with = "serde_json::Value"))]
    pub pickers: Pickers,
    /// Incoming calls.
    pub inbound: InboundSettings,
    /// Outgoing calls.
    pub outbound: OutboundSettings,
    /// Switches for layers of your own, by name. Default: each is on.
    pub layers: BTreeMap<String, LayerSwitch>,
    /// Faults to inject. Default none.
    pub faults: Vec<FaultConfig>,
    /// Traces.
    pub telemetry: TelemetrySection,
    /// Headers that are carried on along a chain of hops.
    pub propagate: Propagate,
    /// Time limits of a stop.
    pub shutdown: ShutdownSection,
    /// The registered sections, compiled.
    #[serde(skip)]
    pub sections: Sections,
}

/// Tables of the document that are read once, at the start.
pub(crate) const READ_ONCE: [&str; 5] = ["service", "listen", "registry", "discovery", "config"];

/// Keys of these tables that are read once; their others are live.
const PARTLY_READ_ONCE: [(&str, [&str; 2]); 2] =
    [("discovery", ["last_good", "services"]), ("config", ["centers", "last_good"])];

/// The tables of the document: no registered section may have such a name.
pub(crate) const TABLES: [&str; 14] = [
    "service",
    "listen",
    "registry",
    "discovery",
    "config",
    "matches",
    "pickers",
    "inbound",
    "outbound",
    "layers",
    "faults",
    "telemetry",
    "propagate",
    "shutdown",
];

// === impl Document ===

impl Document {
    /// Reads a tree, with the built-in kinds and sections; returns the document with warnings, or the problems.
    ///
    /// ```
    /// use chassis::{Document, document::{tree::{Layer, Node, Origin}}};
    ///
    /// let settings = serde_json::json!({ "registry": { "kind": "memory" }, "inbound": { "timeout": "1s" } });
    /// let tree = Node::from_json(&Origin::new("example", Layer::Builder, ""), &settings);
    /// let (document, problems) = Document::read(&tree);
    /// assert!(problems.is_empty());
    /// assert_eq!(document.expect("it is sound").registry_kind(), Some("memory"));
    /// ```
    pub fn read(tree: &Node) -> (Option<Document>, Vec<Problem>) {
        Reader::default().read(tree)
    }

    /// The settings of the pipeline.
    pub fn settings(&self) -> Settings {
        Settings {
            matches: self.matches.clone(),
            inbound: self.inbound.clone(),
            outbound: self.outbound.clone(),
            faults: self.faults.clone(),
            pickers: self.pickers.clone(),
            layers: self.layers.clone(),
            sections: self.sections.clone(),
        }
    }

    /// The registry kind that is named.
    pub fn registry_kind(&self) -> Option<&str> {
        self.registry.as_ref().map(Chosen::kind)
    }

    /// Reports problems outside the pipeline's settings that a [`Reader`] does not find.
    pub(crate) fn check(&self) -> Vec<Finding> {
        let mut found = self.listen.check();
        if let Some(Err(why)) = self.service.name.as_deref().map(check_name) {
            found.push(Finding::error("service.name", why));
        }
        if let Some(Err((key, why))) = self.rollout.as_ref().map(RolloutConfig::check) {
            found.push(Finding::error(format!("config.rollout.{key}"), why));
        }
        for name in self.inbound.listeners.keys() {
            let known = self.listen.0.keys().map(String::as_str).chain(["grpc", "http"]);
            let known = known.filter(|name| !OWN_LISTENERS.contains(name)); // no calls arrive there
            let known: std::collections::BTreeSet<&str> = known.collect();
            if !known.contains(name.as_str()) {
                let message = "`listen` has no such name";
                found.push(Finding::error(format!("inbound.listeners.{name}"), message).instead(name, known));
            }
        }
        found
    }
}

/// The settings of which a change takes effect at the next start only.
#[derive(Clone, Debug, Default)]
pub(crate) struct ReadOnce {
    /// Registered sections that are read once.
    pub(crate) sections: Vec<String>,
    /// Keys of the registry's table that can change, according to its kind.
    pub(crate) live: Vec<String>,
}

// === impl ReadOnce ===

impl ReadOnce {
    /// The differences from the tree that a process `started` with which wait for its next start.
    pub(crate) fn pending(&self, started: &Node, now: &Node) -> Vec<Moved> {
        let mut found = changes(started, now);
        found.retain(|moved| self.waits(&moved.path, [started, now]));
        found
    }

    fn waits(&self, path: &Path, trees: [&Node; 2]) -> bool {
        let key = |at: usize| match path.0.get(at) {
            Some(tree::Segment::Key(key)) => key.as_str(),
            _ => "",
        };
        let partly = PARTLY_READ_ONCE.iter().find(|(table, _)| *table == key(0)).map(|(_, keys)| keys);
        let is_live = match (partly, key(1)) {
            (None, own) => key(0) == "registry" && self.live.iter().any(|live| live == own),
            // The whole table was added or removed.
            (Some(keys), "") => {
                let has = |own: &str| trees.iter().any(|tree| tree.at(&Path::of([key(0), own])).is_some());
                !keys.iter().any(|own| has(own))
            }
            (Some(keys), own) => !keys.contains(&own),
        };
        !is_live && (READ_ONCE.contains(&key(0)) || self.sections.iter().any(|section| section == key(0)))
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use self::tree::Layer;
    use super::*;

    fn yaml(content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(started: &str, now: &str, expected: &[&str]) {
        let once = ReadOnce { sections: vec!["client".to_owned()], live: vec!["services".to_owned()] };
        let found = once.pending(&yaml(started), &yaml(now));
        assert_eq!(found.iter().map(Moved::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_read_once_waits_for_a_restart() {
        check(
            "listen: {http: 'a:1'}",
            "listen: {http: 'a:2'}\noutbound: {}\nshop: {}",
            &["listen.http a:1 -> a:2 (c:1:16)"],
        );
        check("", "registry: {kind: local}", &["registry unset -> { kind: local } (c:1:11)"]);
        check("registry: {kind: static, services: {}}", "registry: {kind: static, services: {a: []}}", &[]);
        check("service: {name: a}\nshutdown: {}", "service: {name: a}", &[]);
        check("discovery: {hold: off}", "discovery: {hold: {share: 20%}}", &[]);
        check("", "discovery: {hold: off}", &[]);
        check(
            "discovery: {last_good: {dir: a}}",
            "discovery: {hold: off}",
            &["discovery.last_good { dir: a } -> unset"],
        );
        check(
            "",
            "discovery: {last_good: {dir: a}}",
            &["discovery unset -> { last_good: { dir: a } } (c:1:12)"],
        );
        check(
            "config: {rollout: {share: 10%}}",
            "config: {rollout: off, last_good: a}",
            &["config.last_good unset -> a (c:1:35)"],
        );
        check("", "config: {rollout: {share: 20%}}", &[]);
        check(
            "client: {connections: 1}",
            "client: {connections: 2}",
            &["client.connections 1 -> 2 (c:1:23)"],
        );
    }

    #[test]
    fn every_table_of_the_document_is_known_as_one() {
        let (_, problems) = read::<Document>(&yaml("nonesuch: 1"));
        assert_eq!(problems[0].allowed, TABLES);
    }

    #[test]
    fn headers_of_one_hop_stay_there() {
        let read = |content| read::<Document>(&yaml(content));
        let (document, _) = read("propagate: [x-tenant, Accept-Language]");
        let names: Vec<_> =
            document.expect("it is sound").propagate.0.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["x-tenant", "accept-language"]);
        let (_, problems) = read("propagate: [a, te, 'b c']");
        let found: Vec<_> = problems.iter().map(Problem::in_a_line).collect();
        let te = "C006 c:1:16 propagate[1]: `te` is about one hop and can't be carried on";
        assert_eq!(found, [te, "C006 c:1:20 propagate[2]: `b c` can't be the name of a header"]);
    }

    #[test]
    fn an_empty_document_is_a_sound_one() {
        let (document, problems) = read::<Document>(&yaml("x-mine: { anything: goes }"));
        assert_eq!((document, problems), (Some(Document::default()), Vec::new()));
    }
}
