//! The registry with real servers on loopback, each on a thread of its own that can be ended or blocked at once.
#![allow(clippy::unwrap_used)]
mod outages;
mod process;
mod registry;
mod rude;
