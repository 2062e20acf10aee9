//! Algorithms that several concerns use, as plain values: no async, no clock, no I/O. `now`, settings and
//! randomness are arguments.
pub(crate) mod circuit;
pub(crate) mod gcra;
mod hash_key;
mod nearest;
pub(crate) mod spill;
mod window;

pub use self::{hash_key::HashKey, nearest::nearest};
