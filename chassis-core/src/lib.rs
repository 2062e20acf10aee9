//! The protocol-neutral half of chassis: a call, the rules it lives under, and the layers it passes
//! through. It knows neither tonic nor axum nor hyper.
//!
//! Everything is used by the paths of this page; where a thing stands inside is not part of them.
//!
//! - [`Invocation`] and [`Reply`] are what moves, [`pipeline`] is where it moves through, [`Policy`] is
//!   what it lives under. Each concern of the pipeline is one entry in [`layer`].
//! - [`Runtime`] holds what all pipelines of a process share.
//! - To be implemented by others: [`registry`], [`config`], [`protocol`], layers at a [`Stage`],
//!   [pickers](layer::balance::Picker) and [fallbacks](layer::fallback::FallbackFn).
#![cfg_attr(docsrs, feature(doc_cfg))]
mod algorithm;
mod call;
pub mod clock;
mod cluster;
pub mod contain;
mod context;
mod event;
pub mod files;
pub mod inspect;
pub mod kind;
pub mod layer;
mod live;
mod metrics;
pub mod pipeline;
mod plugin;
mod policy;
mod random;
mod rule;
mod runtime;
pub mod section;
mod shard;
mod site;
mod stage;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
mod types;

// A call and its answer.
pub use call::{Call, CallOptions, Invocation, Reply, ReplyBody};
pub use types::{Operation, Target};
// Its body, and what ends it early.
pub use types::{Abort, Aborted, Body, Failure, Reader, Replay};
// How it ended, and for whom.
pub use call::{CallError, Failed, Listener, Outcome, had_waited};
pub use types::{Code, Details, Error, Hop, Origin, Reason, Verdict};
// What travels with it from hop to hop.
pub use context::Context;
pub use types::wire;
pub use types::{LabelSet, TextMap, TraceContext};

// The rules that calls live under, and the one place where they are swapped.
pub use live::Live;
pub use policy::{MOST_OPERATIONS, MOST_SERVICES, Policies, Policy, States};
pub use types::{matching, units};

// Where calls go, and where that and the settings are said.
pub use cluster::{Connection, Known, Link, Load, Members, Node};
pub use plugin::{config_source as config, registry};

// The pipeline, and layers of one's own in it.
pub use runtime::{MOST_UNKNOWN, Runtime, RuntimeBuilder};
pub use stage::{Next, Placement, Stage, Staged, Stages, from_fn};

// Watching it.
pub use event::{Event, Events};
pub use metrics::{CallCounter, Metrics};
pub use types::Side;

// What the settings hold beside the rules of calls.
pub use kind::Kind;
pub use policy::LiveSection;
pub use section::{Section, Sections};

pub use random::Random;

/// What a protocol supplies: its own words, and how its calls reach endpoints.
pub mod protocol {
    pub use crate::{
        plugin::{
            protocol::{Protocol, Pushback},
            transport::{Leaf, LeafFuture, Transport},
        },
        types::{CallLabels, DurationFamilies, Family},
    };
}

/// What people write: the settings of calls, and what they are compiled to [`Policies`] with. The settings of
/// each concern stand with it in [`layer`].
pub mod settings {
    pub use crate::policy::{
        BUILT_IN_PICKERS, Common, Environment, InboundOperationSettings, InboundSettings, LayerSwitch,
        ListenerSettings, OperationSettings, OutboundSettings, Pickers, Problem, ServiceSettings, Settings,
    };
}

/// The crates whose types are in the interface, as this one was built with them: for code that has to match.
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

/// An error of any type, as a source.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;
