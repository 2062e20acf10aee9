//! Measures the cost of chassis and its behaviour, side by side with its peers: one binary, so that both
//! sides of every ratio are built alike. As a library it offers its parts to peers that are too heavy for
//! this crate.
//!
//! - [`layers`] counts instructions and allocations per call, [`memory`] bytes; these are exact, so they
//!   decide.
//! - [`compare`] measures time in interleaved slices; [`serve`] and [`drive`] test behaviour under load, and
//!   [`behaviour`] has experiments with them.
#![allow(missing_docs, unreachable_pub, reason = "a tool of ours: no crate depends on its items")]
#![allow(clippy::disallowed_methods, reason = "it measures the time that passes")]

pub mod behaviour;
pub mod compare;
pub mod drive;
pub mod layers;
pub mod memory;
pub mod micro;
#[cfg(feature = "registries")]
pub mod registry;
pub mod serve;

/// For the servers of the adapters' tests, which the experiments use too.
#[cfg(feature = "registries")]
mod trials {
    /// Why a server cannot be started: it is not installed.
    pub(crate) struct NotRun(pub(crate) String);
}

/// The service of all measurements.
#[allow(missing_docs)]
pub mod echo {
    tonic::include_proto!("bench.v1");

    /// The encoded descriptors of this package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));
}

/// An error that ends a measurement early, for the person who started it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The result of every subcommand.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;
