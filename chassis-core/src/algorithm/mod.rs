//! Algorithms that several concerns use, as plain values: no async, no clock, no I/O. `now`, settings and
//! randomness are arguments.
pub(crate) mod circuit;
mod edit_distance;
pub(crate) mod gcra;
mod window;

pub(crate) use self::edit_distance::edit_distance;
