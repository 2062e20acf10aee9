//! Ports that other crates implement: registries, sources of settings, protocols and their transports.
pub mod config_source;
pub(crate) mod protocol;
pub mod registry;
pub(crate) mod transport;
