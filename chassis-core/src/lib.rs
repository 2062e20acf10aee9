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
pub mod call;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod contain;
pub mod context;
pub mod error;
pub mod event;
pub mod files;
pub mod headers;
pub mod inspect;
pub mod kind;
pub mod labels;
pub mod layer;
pub mod live;
pub mod load;
pub mod matching;
pub mod metrics;
pub mod pipeline;
pub mod policy;
pub mod protocol;
pub mod random;
pub mod registry;
pub mod runtime;
pub mod section;
mod shard;
pub mod stage;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
pub mod units;

// A call and its answer.
pub use call::{Call, CallOptions, Invocation, Operation, Reply, ReplyBody, Target};
// Its body, and what ends it early.
pub use call::{Abort, Aborted, Body, Failure, Reader, Replay};
// How it ended, and for whom.
pub use call::{Details, Hop, Listener, Outcome, Verdict, had_waited};
pub use error::{Code, Error, Origin, Reason};
// What travels with it from hop to hop.
pub use context::Context;
pub use labels::{LabelSet, TextMap};
pub use layer::trace::TraceContext;

// The rules that calls live under, and the one place where they are swapped.
pub use live::Live;
pub use policy::{Environment, MOST_OPERATIONS, MOST_SERVICES, Policies, Policy, States};

// Where calls go.
pub use cluster::{Connection, Known, Link, Members, Node};
pub use load::Load;

// The pipeline, and layers of one's own in it.
pub use runtime::{MOST_UNKNOWN, Runtime, RuntimeBuilder};
pub use stage::{Next, Placement, Stage, Staged, Stages, from_fn};

// Watching it.
pub use event::{Event, Events, Side};
pub use metrics::{CallCounter, Metrics};

// What the settings hold beside the rules of calls.
pub use kind::Kind;
pub use section::{LiveSection, Section, Sections};

pub use random::Random;

/// What people write: the settings of calls, before they are compiled to [`Policies`]. Those of each
/// concern stand with it in [`layer`].
pub mod settings {
    pub use crate::policy::{
        BUILT_IN_PICKERS, InboundOperationSettings, InboundSettings, OperationSettings, OutboundSettings,
        Pickers, Problem, ServiceSettings, Settings,
    };
}

/// Names on the wire that all protocols have in common, and quick looks for a header.
pub mod wire {
    pub use crate::{
        headers::{contains, find},
        layer::route::CALLER,
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
