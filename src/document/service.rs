//! Who this process is, and how it ends.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::units::{Ratio, Span};
use serde::{Deserialize, Serialize};

/// The `service` table: who this process says it is. Read once, at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSection {
    /// Its name. Default the one the program gives itself.
    pub name: Option<String>,
    /// What runs here. Default: nobody says.
    pub version: Option<String>,
    /// Where it runs. Default: nobody says.
    pub zone: Option<String>,
    /// What routes of others choose by. Default none.
    pub labels: BTreeMap<String, String>,
    /// The host by which others reach it. Default the address of the primary interface, or loopback where
    /// only this machine looks (`registry: { kind: local }`).
    pub advertise: Option<String>,
}

/// The `shutdown` table: how long the steps of a stop may take.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSection {
    /// How long calls are still taken after the registry was told, until others have heard. Default `5s` in
    /// Kubernetes, else `0s`.
    pub delay: Option<Span>,
    /// How long calls under way may still take, once no new ones come. Then they are cut. Default `25s`;
    /// `0s` cuts them at once.
    pub deadline: Span,
}

/// The `telemetry` table: what is told of calls to whoever looks at them later.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySection {
    /// The share of calls that begin a trace where they are not part of one. Default `0%`: a trace that
    /// comes in goes on, and none is begun.
    pub sample: Ratio,
}

/// Can a service be called `name`? It travels in a header and stands in addresses and metrics.
///
/// # Errors
/// Why not, with what is allowed.
pub fn check_name(name: &str) -> Result<(), String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || c == ';' || !c.is_ascii();
    match (name.is_empty(), name.find(odd)) {
        (true, _) => Err("a service has a name; leave `name` out to keep the program's own".to_owned()),
        (_, Some(_)) => Err(format!(
            "{name:?} can't be the name of a service: visible ASCII characters but `;` are allowed"
        )),
        _ => Ok(()),
    }
}

// === impl TelemetrySection ===

impl Default for TelemetrySection {
    fn default() -> Self {
        TelemetrySection { sample: Ratio::percent(0) }
    }
}

// === impl ShutdownSection ===

impl Default for ShutdownSection {
    fn default() -> Self {
        ShutdownSection { delay: None, deadline: Span(Duration::from_secs(25)) }
    }
}
