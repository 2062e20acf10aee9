//! One contract suite for each port: the promises of its documentation as a test for every implementation.
//!
//! The suite of connectors is in `chassis_http::connector::contract`, beside its trait.
pub mod config_source;
pub mod contracts;
pub mod fallback;
pub mod picker;
pub mod protocol;
pub mod quota;
pub mod registry;
pub mod transport;
