//! One suite for each port: what its documentation promises, as a test that any implementation runs.
pub mod config_source;
pub mod picker;
pub mod protocol;
pub mod registry;
