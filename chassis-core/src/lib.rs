//! The protocol-neutral half of chassis: what a call is, the rules it lives under, and the layers it
//! passes through. It knows neither tonic nor axum nor hyper.
//!
//! Where to start reading: [`call`] is what moves, [`pipeline`] is where it moves through, [`policy`]
//! is what it lives under. Each concern of the pipeline is one entry in [`layer`].
#![cfg_attr(docsrs, feature(doc_cfg))]
pub mod call;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod context;
pub mod error;
pub mod event;
pub mod files;
pub mod headers;
pub mod inspect;
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
mod shard;
pub mod stage;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
pub mod units;

pub use error::{Code, Error, Origin, Reason};
pub use live::Live;
pub use runtime::Runtime;

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
