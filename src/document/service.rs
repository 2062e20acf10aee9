//! The identity of this process, and the time limits of its stop.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{
    Grace, HoldConfig, LastGoodConfig,
    units::{Ratio, Span, Switch},
};
use serde::{Deserialize, Serialize};

use crate::kinds::Chosen;

/// The `service` table: the identity of this process. Read once, at the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ServiceSection {
    /// The service's name. Default: the name that the program passes to the builder.
    pub name: Option<String>,
    /// The version of the program. Default: not set.
    pub version: Option<String>,
    /// The zone of this process. Default: not set.
    pub zone: Option<String>,
    /// The region, which has several zones. Default: not set.
    pub region: Option<String>,
    /// The host of this process. Default: not set.
    pub hostname: Option<String>,
    /// The application that this service is a part of. Default: not set.
    pub app: Option<String>,
    /// The environment, such as `production`: this process calls the instances of the same environment, and those
    /// that state none. Default: not set; then it calls only instances that state none, and instances of every
    /// environment call it.
    pub environment: Option<String>,
    /// The rank among the instances of the service: smaller numbers come first. Default 0.
    pub priority: u32,
    /// Labels that routes of other services can choose by. Default none.
    pub labels: BTreeMap<String, String>,
    /// The host at which others reach this process. Default: the address of the primary interface, or loopback
    /// if the registry serves this machine only (`registry: { kind: local }`).
    pub advertise: Option<String>,
}

/// The `shutdown` table: time limits of the steps of a stop.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ShutdownSection {
    /// How long the service still accepts calls after it was deregistered, until clients know of it. Default
    /// `5s` in Kubernetes, else `0s`.
    pub delay: Option<Span>,
    /// How long running calls may still take once no new ones are accepted. Then they are aborted. Default
    /// `25s`; `0s` aborts them at once.
    pub deadline: Span,
}

/// The `discovery` table: the handling of the registry's answers, whatever its kind.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DiscoverySection {
    /// Keeps the last good instances of each called service on disk. If the registry fails at the start, or does not
    /// answer within 2 s, calls use them. Default: not set, so nothing is written.
    /// Read once, at the start.
    pub last_good: Option<LastGoodConfig>,
    /// Keeps instances for a while that the registry removed together with most others, or `off`. Default: a removal of
    /// more than `50%`, for `60s`.
    pub hold: Switch<HoldConfig>,
    /// How long after the start of the process calls wait for a service that no registry has announced yet, rather than
    /// fail: processes that start together find each other. From `0s`, or `off`, to `60s`; default `3s`. A call waits at
    /// most until its deadline.
    pub grace: Switch<Grace>,
    /// Settings of single services, by name: `billing: { registry: { kind: dns, … } }` looks up `billing` in a registry
    /// of its own. Default none.
    #[serde(deserialize_with = "super::read::later", skip_serializing)]
    #[cfg_attr(feature = "cli", schemars(with = "serde_json::Value"))]
    pub(crate) services: BTreeMap<String, Chosen>,
}

/// The `telemetry` table: traces.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TelemetrySection {
    /// The share of calls that begin a trace if they are not part of one. Default `0%`: incoming traces are
    /// continued, and none is begun.
    pub sample: Ratio,
}

/// Checks a service name, which is sent in a header and used in addresses and metrics; a colon separates it from the
/// name of a listener.
///
/// # Errors
/// The reason, and the allowed form.
pub fn check_name(name: &str) -> Result<(), String> {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, ';' | ':') || !c.is_ascii();
    match (name.is_empty(), name.find(odd)) {
        (true, _) => Err("a service has a name; leave `name` out to keep the program's own".to_owned()),
        (_, Some(_)) => Err(format!(
            "{name:?} can't be the name of a service: visible ASCII characters but `;` and `:` are allowed"
        )),
        _ => Ok(()),
    }
}

// === impl DiscoverySection ===

impl Default for DiscoverySection {
    fn default() -> Self {
        DiscoverySection {
            last_good: None,
            hold: Switch::On(HoldConfig::default()),
            grace: Switch::On(Grace::default()),
            services: BTreeMap::new(),
        }
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
