//! One suite for each port: what its documentation promises, as a test that any implementation runs.
//!
//! The suite of connectors is in `chassis_http::connector::contract`, beside its trait.
pub mod config_source;
pub mod fallback;
pub mod picker;
pub mod protocol;
pub mod registry;
pub mod transport;
