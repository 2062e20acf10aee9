//! Measures what chassis costs and how it behaves, side by side with its peers: one binary, so that both
//! sides of every ratio are built alike. As a library it lends its parts to peers too heavy to live here.
//!
//! - [`layers`] counts instructions and allocations a call; [`memory`] bytes; exact, so they decide.
//! - [`compare`] measures time in interleaved slices; [`serve`] and [`drive`] are for behaviour under load,
//!   [`behaviour`] the experiments with them.
#![allow(missing_docs, unreachable_pub, reason = "a tool of ours: nobody builds on its items")]
#![allow(clippy::disallowed_methods, reason = "it measures the time that passes")]

pub mod behaviour;
pub mod compare;
pub mod drive;
pub mod layers;
pub mod memory;
pub mod micro;
pub mod serve;

/// The service that everything is measured with.
#[allow(missing_docs)]
pub mod echo {
    tonic::include_proto!("bench.v1");

    /// The encoded descriptors of this package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));
}

/// What ends a measurement early, for the person who started it.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What every subcommand returns.
pub type Result<T = (), E = Error> = std::result::Result<T, E>;
