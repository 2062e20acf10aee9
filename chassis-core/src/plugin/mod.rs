//! Ports that other crates implement: registries, sources of settings, contracts, quotas, protocols and their transports.
pub mod config_source;
pub mod contracts;
pub(crate) mod protocol;
pub mod quota;
pub mod registry;
pub(crate) mod transport;
