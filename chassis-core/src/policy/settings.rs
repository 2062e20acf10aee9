//! What people write about calls: the parts of the document that the pipeline lives by.
use std::{collections::BTreeMap, fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use super::LayerSwitch;
use crate::{
    algorithm::circuit::BreakerPatch,
    layer::{
        balance::Picker, concurrency::ConcurrencyConfig, fallback::FallbackConfig, fault::FaultConfig,
        rate_limit::RateLimitConfig, retry::RetryPatch, route::RouteConfig,
    },
    section::Sections,
    types::{
        matching::Match,
        units::{PositiveSpan, Switch},
    },
};

/// Everything the pipeline lives by. An empty one means the defaults.
///
/// ```
/// use chassis_core::settings::{OperationSettings, ServiceSettings, Settings};
/// use chassis_core::units::{PositiveSpan, Switch};
///
/// let mut settings = Settings::default();
/// let stock = ServiceSettings { timeout: Some(Switch::On(PositiveSpan::from_millis(300))), ..Default::default() };
/// settings.outbound.services.insert("stock".into(), stock);
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Matches by name, to be used by routes, limits and faults.
    pub matches: BTreeMap<String, Match>,
    /// Calls that come in.
    pub inbound: InboundSettings,
    /// Calls that go out.
    pub outbound: OutboundSettings,
    /// Faults to inject.
    pub faults: Vec<FaultConfig>,
    /// Pickers by name, for `balance` to name. They stand over those that a runtime was built with.
    pub pickers: Pickers,
    /// Layers of one's own that calls pass by, by name. What inbound, outbound, a service, a listener or an operation
    /// says stands over it. Default: each is on.
    pub layers: BTreeMap<String, LayerSwitch>,
    /// Sections of others, compiled.
    pub sections: Sections,
}

/// What is different for calls that come in at one listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ListenerSettings {
    /// Layers of one's own that are switched. Default: as for all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerSwitch>,
}

/// Pickers that settings have made, by name.
#[derive(Clone, Default)]
pub struct Pickers(pub BTreeMap<String, Arc<dyn Picker>>);

// === impl Pickers ===

/// The same pickers, not only such of one kind.
impl PartialEq for Pickers {
    fn eq(&self, other: &Self) -> bool {
        let place = |picker: &Arc<dyn Picker>| Arc::as_ptr(picker).cast::<()>();
        self.0.len() == other.0.len()
            && self.0.iter().all(|(name, picker)| other.0.get(name).map(place) == Some(place(picker)))
    }
}

impl fmt::Debug for Pickers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Calls that come in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InboundSettings {
    /// How long a call may take to the head of its answer, unless its caller waits less. Default `30s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Switch<PositiveSpan>>,
    /// How long a call may take to the end of its body. Default `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<Switch<PositiveSpan>>,
    /// How many calls may be under way at once. Default `off`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Switch<ConcurrencyConfig>>,
    /// Rates that calls are admitted at, all of which have to admit a call. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Vec<RateLimitConfig>>,
    /// Layers of one's own that are switched, by name. Default: as `layers` of the document says.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerSwitch>,
    /// What is different at single listeners, by their names in `listen`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub listeners: BTreeMap<String, ListenerSettings>,
    /// What is different for single operations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub operations: BTreeMap<String, InboundOperationSettings>,
}

/// What is different for one operation that comes in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InboundOperationSettings {
    /// As for all, in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Switch<PositiveSpan>>,
    /// As for all, in its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_timeout: Option<Switch<PositiveSpan>>,
    /// A bound of its own, in place of the one for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<Switch<ConcurrencyConfig>>,
    /// Rates of its own, in place of those for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<Vec<RateLimitConfig>>,
    /// Layers of one's own that are switched, by name: over what its listener says.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerSwitch>,
}

/// Calls that go out: what holds for all services, and what is different for some.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OutboundSettings {
    /// For every service.
    pub defaults: ServiceSettings,
    /// For single services, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ServiceSettings>,
}

/// Declares the settings of a service and those of an operation, which share most keys.
macro_rules! outbound {
    ($( $(#[$meta:meta])* $field:ident : $ty:ty ),* $(,)?) => {
        /// How calls to a service are made. A key that is not set keeps what `defaults` says.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct ServiceSettings {
            $( $(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$ty>, )*
            /// How one of several nodes is picked: `round_robin`, `random`, `p2c`, or the name of an entry of
            /// `pickers` or of a picker of one's own. Default `p2c`.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub balance: Option<String>,
            /// Where calls go, in order; the first rule that matches decides. Default: anywhere.
            #[serde(skip_serializing_if = "Option::is_none")]
            pub routes: Option<Vec<RouteConfig>>,
            /// What is different for single operations, by name.
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            pub operations: BTreeMap<String, OperationSettings>,
        }

        /// How calls to one operation are made. A key that is not set keeps what its service says.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct OperationSettings {
            $( $(#[$meta])* #[serde(skip_serializing_if = "Option::is_none")] pub $field: Option<$ty>, )*
        }

        impl ServiceSettings {
            /// The part that can be different for an operation.
            pub(super) fn common(&self) -> OperationSettings {
                OperationSettings { $( $field: self.$field.clone(), )* }
            }
        }
    };
}

outbound! {
    /// How long a call may take to the head of its answer, retries included; local, not sent on.
    /// Default `5s`.
    timeout: Switch<PositiveSpan>,
    /// How long a call may take to the end of its body; sent on. Default `off`.
    total_timeout: Switch<PositiveSpan>,
    /// When and how often calls are tried again; `off` for never.
    retry: Switch<RetryPatch>,
    /// When a circuit opens; `off` for never.
    breaker: Switch<BreakerPatch>,
    /// How many calls may be under way at once. Default `off`.
    concurrency: Switch<ConcurrencyConfig>,
    /// Rates that calls are let out at. Default: none.
    rate_limits: Vec<RateLimitConfig>,
    /// What to answer where a call fails. Default `off`. A function given to the builder wins.
    fallback: Switch<FallbackConfig>,
    /// Layers of one's own that are switched, by name. Default: as the document's `layers` says.
    layers: BTreeMap<String, LayerSwitch>,
    /// Can calls be executed twice without harm? Default: as HTTP methods and protos say.
    idempotent: bool,
}
