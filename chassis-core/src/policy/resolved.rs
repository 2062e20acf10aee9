//! The resolved settings of a service or an operation: those of every concern, with inheritance.

use super::{
    Policy, concerns,
    settings::{
        InboundOperationSettings, InboundSettings, ListenerSettings, OperationSettings, ServiceSettings,
        Settings,
    },
};
use crate::{
    layer::{self, attempt, fault::Faults, metrics, own::LayersRule},
    rule::{Binding, Concern, Level},
    section::Sections,
};

macro_rules! resolved {
    (both { $($both:tt)* } outbound { $($outbound:tt)* } service { $($service:tt)* }) => {
        all! { $($both)* $($outbound)* $($service)* }
        overlay! { inbound(InboundSettings): $($both)* }
        overlay! { inbound_operation(InboundOperationSettings): $($both)* }
        overlay! { service(ServiceSettings): $($both)* $($outbound)* }
        overlay! { operation(OperationSettings): $($both)* $($outbound)* }
        overlay! { whole_service(ServiceSettings): $($service)* }
        without! { $($service)* }
    };
}

/// Declares a struct with a part for every concern.
macro_rules! all {
    (
        $(
            $(#[$doc:meta])* $key:ident: $written:ty => {
                $( $(#[$field_doc:meta])* $vis:vis $field:ident: $type:ty ),+
            } by $concern:ty $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
        )*
    ) => {
        /// The resolved settings of a service or an operation, concern by concern.
        #[derive(Clone)]
        pub(super) struct Resolved {
            $( $key: <$concern as Concern>::Resolved, )*
        }

        impl Resolved {
            /// The settings without any key.
            pub(super) fn unwritten(level: &Level<'_>) -> Self {
                Resolved { $( $key: <$concern as Concern>::unwritten(level), )* }
            }

            /// The policy of the operation in `binding`.
            #[allow(unused_parens)] // concerns with one field
            pub(super) fn policy(&self, version: u64, faults: Faults, sections: Sections, mut binding: Binding<'_>) -> Policy {
                $( let ($($field),+) = <$concern as Concern>::rule(&self.$key, &mut binding); )*
                Policy {
                    service: binding.service.clone(),
                    operation: binding.operation.clone(),
                    version,
                    faults,
                    metrics: Some(metrics::rule(&mut binding)),
                    attempts: attempt::rule(&mut binding),
                    common: binding.environment.common.clone(),
                    sections,
                    $( $($field,)+ )*
                }
            }
        }
    };
}

/// Declares how one kind of settings overlays the settings so far.
macro_rules! overlay {
    (
        $name:ident($settings:ty):
        $(
            $(#[$doc:meta])* $key:ident: $written:ty => { $($fields:tt)* } by $concern:ty
            $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
        )*
    ) => {
        impl Resolved {
            pub(super) fn $name(&mut self, settings: &$settings, level: &mut Level<'_>) {
                $(
                    if let Some(written) = &settings.$key {
                        let level = level.at(stringify!($key));
                        <$concern as Concern>::overlay(&mut self.$key, written, level);
                    }
                )*
            }
        }
    };
}

/// Declares how keys that a service replaces as a whole are removed from the defaults.
macro_rules! without {
    (
        $(
            $(#[$doc:meta])* $key:ident: $written:ty => { $($fields:tt)* } by $concern:ty
            $(, seen as $(#[$view_doc:meta])* $view:ident: $view_type:ty)? ;
        )*
    ) => {
        /// The keys of `defaults` for whole services, except those that `service` sets itself.
        pub(super) fn unreplaced(defaults: &ServiceSettings, service: &ServiceSettings) -> ServiceSettings {
            ServiceSettings {
                $( $key: match service.$key { None => defaults.$key.clone(), Some(_) => None }, )*
                ..Default::default()
            }
        }
    };
}

concerns!(resolved);

impl Resolved {
    /// Overlays `layers` of the whole document.
    pub(super) fn document(&mut self, settings: &Settings, level: &mut Level<'_>) {
        LayersRule::overlay(&mut self.layers, &settings.layers, level.at("layers"));
    }

    /// Overlays the settings of the listener `name`.
    pub(super) fn listener(&mut self, name: &str, settings: &ListenerSettings, level: &mut Level<'_>) {
        LayersRule::overlay_listener(&mut self.layers, name, &settings.layers, level.at("layers"));
    }
}
