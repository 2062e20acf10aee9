//! The protocol-neutral core of chassis: calls, their policies, and the layers of the pipeline. It depends on
//! neither tonic nor axum nor hyper.
//!
//! Use the paths of this page; the internal modules are not part of the interface.
//!
//! - [`Invocation`] and [`Reply`] are a call and its answer, [`pipeline`] has the layers that they pass,
//!   [`Policy`] holds the settings of a call. Each concern of the pipeline is one module of [`layer`].
//! - [`Runtime`] holds the state that all pipelines of a process share.
//! - Other crates can implement [`registry`], [`config`], [`contracts`], [`quota`], [`protocol`], layers at a [`Stage`],
//!   [pickers](layer::balance::Picker) and [fallbacks](layer::fallback::FallbackFn).
#![cfg_attr(docsrs, feature(doc_cfg))]
pub mod adapter;
mod algorithm;
mod call;
pub mod clock;
mod cluster;
pub mod contain;
mod context;
mod event;
pub mod files;
pub mod health;
pub mod inspect;
pub mod kind;
pub mod layer;
mod live;
mod metrics;
pub mod pipeline;
mod plugin;
mod policy;
mod random;
mod reporter;
mod rule;
mod runtime;
pub mod section;
mod stage;
mod striped;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod thread;
mod types;

// A call and its answer.
pub use algorithm::HashKey;
pub use call::{Call, CallOptions, Invocation, Reply, ReplyBody, RequestExt};
pub use types::{Operation, Target};
// Bodies, and aborting them.
pub use types::{Abort, Aborted, Body, Failure, Reader, Replay};
// The outcome, and its listeners.
pub use call::{CallError, Failed, Listener, Outcome, had_waited};
pub use types::{Code, Details, Error, Hop, Origin, Reason, Verdict};
// The context that is passed on from hop to hop.
pub use context::Context;
pub use types::wire;
pub use types::{LabelSet, TextMap, TraceContext};

// Policies, and the value that swaps them.
pub use live::Live;
pub use policy::{MOST_OPERATIONS, MOST_SERVICES, Policies, Policy};
#[cfg(feature = "schema")]
pub use types::schema;
pub use types::{matching, units};

// Nodes and their connections; registries, config sources and contracts.
pub use cluster::{
    Connection, Grace, HoldConfig, Known, KnownServices, LastGoodConfig, Link, Load, Members, Node,
};
pub use plugin::{config_source as config, contracts, quota, registry};

// Pipelines, and layers of your own in them.
pub use runtime::{MOST_UNKNOWN, Runtime, RuntimeBuilder};
pub use stage::{Next, Placement, Stage, Stages, from_fn};

// *Did you mean*, for messages about names.
pub use algorithm::nearest;

// Observation.
pub use event::{Event, Events, NumberedEvent};
pub use metrics::{CallTotals, Metrics};
pub use types::Side;

// Registered kinds and sections.
pub use kind::Kind;
pub use policy::LiveSection;
pub use section::{Section, Sections};

pub use random::Random;

/// The parts that a protocol supplies: its rules for answers and refusals, and its transport.
pub mod protocol {
    pub use crate::{
        plugin::{
            protocol::{Protocol, Pushback},
            transport::{Leaf, LeafFuture, Transport},
        },
        types::{Answer, CallLabels, DurationFamilies, Family, FixedAnswer, InvalidAnswer},
    };
}

/// The settings of calls, and the compiler that makes [`Policies`] of them. The settings of each concern are in
/// its module of [`layer`].
pub mod settings {
    pub use crate::policy::{
        BUILT_IN_PICKERS, InboundOperationSettings, InboundSettings, LayerSwitch, ListenerSettings,
        OperationSettings, OutboundSettings, Pickers, Problem, ServiceSettings, Settings, defaults,
    };
}

/// The crates whose types appear in the interface, in the versions that this crate was built with.
pub mod reexports {
    pub use async_trait;
    pub use bytes;
    pub use http;
    pub use http_body;
    pub use prometheus;
    pub use tokio;
    pub use tower_layer;
    pub use tower_service;
}

/// An error of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
