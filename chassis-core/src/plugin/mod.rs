//! What others implement: where instances and settings come from, what a protocol says, how its calls travel.
pub mod config_source;
pub(crate) mod protocol;
pub mod registry;
pub(crate) mod transport;
