//! What others implement: where instances and settings come from.
pub mod config_source;
pub mod registry;
