//! The document people write: `chassis.yaml`, and the same in TOML and JSON.
mod kind;
mod listen;
mod propagate;
mod service;
mod unseen;

use std::collections::BTreeMap;

use chassis_core::{
    layer::fault::FaultConfig,
    matching::Match,
    settings::{InboundSettings, OutboundSettings, Settings},
};
use serde::Deserialize;

pub use self::{
    kind::{Kinds, read_kind},
    listen::{Address, Listen},
    propagate::Propagate,
    service::{ServiceSection, ShutdownSection, TelemetrySection, check_name},
    unseen::{Seen, SeenService},
};
use crate::{
    finding::Finding,
    tree::{Node, Segment},
    version::{Moved, changes},
};

/// All that can be set. An empty document is a sound one.
///
/// `R` is the `registry` table, whose kinds depend on what is built in: see [`Kinds`]. `C` and `S` are
/// the `client` and `server` tables: the numbers of the transport that is built in.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(
    default,
    deny_unknown_fields,
    bound(
        deserialize = "R: Default + Deserialize<'de>, C: Default + Deserialize<'de>, S: Default + Deserialize<'de>"
    )
)]
pub struct Document<R, C = Nothing, S = Nothing> {
    /// Who this process says it is.
    pub service: ServiceSection,
    /// Where it listens.
    pub listen: Listen,
    /// Where it learns of others, and they of it.
    pub registry: R,
    /// Matches by name, to be used by routes, limits and faults. Default none.
    pub matches: BTreeMap<String, Match>,
    /// Calls that come in.
    pub inbound: InboundSettings,
    /// Calls that go out.
    pub outbound: OutboundSettings,
    /// Faults to inject. Default none.
    pub faults: Vec<FaultConfig>,
    /// How endpoints are connected to.
    pub client: C,
    /// What the server lets in.
    pub server: S,
    /// What is told of calls to whoever looks at them later.
    pub telemetry: TelemetrySection,
    /// Headers carried on along a chain of hops.
    pub propagate: Propagate,
    /// How long a stop may take.
    pub shutdown: ShutdownSection,
}

/// A table without keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nothing {}

/// Sections that are read once, at the start.
const READ_ONCE: [&str; 5] = ["service", "listen", "registry", "client", "server"];

// === impl Document ===

impl<R, C, S> Document<R, C, S> {
    /// The part that the pipeline lives by.
    pub fn settings(&self) -> Settings {
        Settings {
            matches: self.matches.clone(),
            inbound: self.inbound.clone(),
            outbound: self.outbound.clone(),
            faults: self.faults.clone(),
        }
    }

    /// What is wrong with it beside that part.
    pub fn check(&self) -> Vec<Finding> {
        let mut found = self.listen.check();
        if let Some(Err(why)) = self.service.name.as_deref().map(service::check_name) {
            found.push(Finding::error("service.name", why));
        }
        found
    }
}

/// What is different from the tree a process `started` with and takes effect at its next start only.
///
/// The instances of a `static` registry are not among it: they can change while calls are under way.
pub fn pending_restart(started: &Node, now: &Node) -> Vec<Moved> {
    let key = |moved: &Moved, at: usize| match moved.path.0.get(at) {
        Some(Segment::Key(key)) => key.clone(),
        _ => String::new(),
    };
    let mut found = changes(started, now);
    found.retain(|m| {
        READ_ONCE.contains(&key(m, 0).as_str())
            && (key(m, 0), key(m, 1)) != ("registry".into(), "services".into())
    });
    found
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use super::*;
    use crate::{parse::parse, tree::Layer};

    fn yaml(content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(started: &str, now: &str, expected: &[&str]) {
        let found = pending_restart(&yaml(started), &yaml(now));
        assert_eq!(found.iter().map(Moved::to_string).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_read_once_waits_for_a_restart() {
        check(
            "listen: {http: 'a:1'}",
            "listen: {http: 'a:2'}\noutbound: {}",
            &["listen.http a:1 -> a:2 (c:1:16)"],
        );
        check("", "registry: {kind: local}", &["registry unset -> { kind: local } (c:1:11)"]);
        check("registry: {kind: static, services: {}}", "registry: {kind: static, services: {a: []}}", &[]);
        check("service: {name: a}\nshutdown: {}", "service: {name: a}", &[]);
    }

    #[derive(Clone, Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct NoRegistry {}

    #[test]
    fn headers_of_one_hop_stay_there() {
        let read = |content| crate::read::<Document<NoRegistry>>(&yaml(content));
        let (document, _) = read("propagate: [x-tenant, Accept-Language]");
        let names: Vec<_> =
            document.expect("it is sound").propagate.0.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["x-tenant", "accept-language"]);
        let (_, problems) = read("propagate: [a, te, 'b c']");
        let told: Vec<_> = problems.iter().map(crate::Problem::in_a_line).collect();
        let te = "c:1:16 propagate[1]: `te` is about one hop and can't be carried on";
        assert_eq!(told, [te, "c:1:20 propagate[2]: `b c` can't be the name of a header"]);
    }

    #[test]
    fn an_empty_document_is_a_sound_one() {
        let (document, problems) = crate::read(&yaml("x-mine: { anything: goes }"));
        assert_eq!((document, problems), (Some(Document::<NoRegistry>::default()), Vec::new()));
    }
}
