//! What people write about calls: the parts of the document that the pipeline lives by.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::concerns;
use crate::{
    layer::{self, balance::Pickers, fault::FaultConfig, own::LayerSwitch},
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

/// Declares the settings of both sides, and of single operations there.
macro_rules! settings {
    (both { $($both:tt)* } outbound { $($outbound:tt)* } service { $($service:tt)* }) => {
        keys! {
            /// Calls that come in.
            pub struct InboundSettings { $($both)* }
            listeners: ListenerSettings,
            operations: InboundOperationSettings
        }
        keys! {
            /// What is different for one operation that comes in. A key that is not set keeps what holds for all.
            pub struct InboundOperationSettings { $($both)* }
        }
        keys! {
            /// How calls to a service are made. A key that is not set keeps what `defaults` says.
            pub struct ServiceSettings { $($both)* $($outbound)* $($service)* }
            operations: OperationSettings
        }
        keys! {
            /// How calls to one operation are made. A key that is not set keeps what its service says.
            pub struct OperationSettings { $($both)* $($outbound)* }
        }
    };
}

/// Declares one struct of optional keys.
macro_rules! keys {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $(
                $(#[$doc:meta])* $key:ident: $written:ty => { $($fields:tt)* } by $concern:ty
                $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
            )*
        }
        $(listeners: $listener:ty,)?
        $(operations: $operation:ty)?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$written>, )*
            $(
                /// What is different at single listeners, by their names in `listen`.
                #[serde(skip_serializing_if = "BTreeMap::is_empty")]
                pub listeners: BTreeMap<String, $listener>,
            )?
            $(
                /// What is different for single operations, by name.
                #[serde(skip_serializing_if = "BTreeMap::is_empty")]
                pub operations: BTreeMap<String, $operation>,
            )?
        }
    };
}

concerns!(settings);
