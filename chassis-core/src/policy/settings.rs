//! The settings of calls: the parts of the document that the pipeline uses.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::concerns;
use crate::{
    layer::{self, balance::Pickers, fault::FaultConfig, own::LayerSwitch},
    rule::Concern,
    section::Sections,
    types::{
        Side,
        matching::Match,
        units::{PositiveSpan, Switch},
    },
};

/// All settings of the pipeline. An empty value means the defaults.
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
    /// Matches by name, for routes, limits and faults.
    pub matches: BTreeMap<String, Match>,
    /// Incoming calls.
    pub inbound: InboundSettings,
    /// Outgoing calls.
    pub outbound: OutboundSettings,
    /// Faults to inject.
    pub faults: Vec<FaultConfig>,
    /// Pickers by name, for `balance`. They override those that a runtime was built with.
    pub pickers: Pickers,
    /// The user's layers that calls skip, by name. Settings of inbound, outbound, a service, a listener or an
    /// operation override it. Default: each is on.
    pub layers: BTreeMap<String, LayerSwitch>,
    /// The registered sections, compiled.
    pub sections: Sections,
}

/// The settings of incoming calls at one listener that differ.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ListenerSettings {
    /// The user's layers that are switched. Default: as for all listeners.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub layers: BTreeMap<String, LayerSwitch>,
}

/// Outgoing calls: the settings of all services, and those of single services.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct OutboundSettings {
    /// The settings of every service.
    pub defaults: ServiceSettings,
    /// The settings of single services, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub services: BTreeMap<String, ServiceSettings>,
}

/// Declares the settings of both sides, and of single operations there.
macro_rules! settings {
    (both { $($both:tt)* } outbound { $($outbound:tt)* } service { $($service:tt)* }) => {
        keys! {
            /// Incoming calls.
            pub struct InboundSettings { $($both)* }
            listeners: ListenerSettings,
            operations: InboundOperationSettings
        }
        keys! {
            /// The settings of one incoming operation. A key that is not set keeps the value for all.
            pub struct InboundOperationSettings { $($both)* }
        }
        keys! {
            /// The settings of calls to a service. A key that is not set keeps the value of `defaults`.
            pub struct ServiceSettings { $($both)* $($outbound)* $($service)* }
            operations: OperationSettings
        }
        keys! {
            /// The settings of calls to one operation. A key that is not set keeps the value of its service.
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
        #[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            $( $(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$written>, )*
            $(
                /// The settings of single listeners, by their names in `listen`.
                #[serde(skip_serializing_if = "BTreeMap::is_empty")]
                pub listeners: BTreeMap<String, $listener>,
            )?
            $(
                /// The settings of single operations, by name.
                #[serde(skip_serializing_if = "BTreeMap::is_empty")]
                pub operations: BTreeMap<String, $operation>,
            )?
        }
    };
}

concerns!(settings);

/// Generates [`defaults`].
macro_rules! defaults {
    (both { $($both:tt)* } outbound { $($outbound:tt)* } service { $($service:tt)* }) => {
        defaults! { @inbound { $($both)* } @outbound { $($both)* $($outbound)* $($service)* } }
    };
    (
        @inbound { $(
            $(#[$doc:meta])* $key:ident: $written:ty => { $($fields:tt)* } by $concern:ty
            $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
        )* }
        @outbound { $(
            $(#[$out_doc:meta])* $out_key:ident: $out_written:ty => { $($out_fields:tt)* } by $out_concern:ty
            $(, seen as $(#[$out_view_doc:meta])* $out_view:ident: $out_view_type:ty)? ;
        )* }
    ) => {
        /// The settings of calls that have the same meaning as none at all: those of incoming calls, and those of every
        /// service. Keys whose default can't be written are left out. A table without keys has the defaults of its keys.
        ///
        /// ```
        /// let (inbound, outbound) = chassis_core::settings::defaults();
        /// assert_eq!(inbound.timeout.unwrap().on().unwrap().to_string(), "30s");
        /// assert_eq!(outbound.balance.as_deref(), Some("p2c"));
        /// ```
        pub fn defaults() -> (InboundSettings, ServiceSettings) {
            let inbound = InboundSettings {
                $( $key: <$concern as Concern>::default_of(Side::Server), )*
                ..InboundSettings::default()
            };
            let outbound = ServiceSettings {
                $( $out_key: <$out_concern as Concern>::default_of(Side::Client), )*
                ..ServiceSettings::default()
            };
            (inbound, outbound)
        }
    };
}

concerns!(defaults);
