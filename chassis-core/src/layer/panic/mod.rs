//! Turns a handler's panic into an error of that one call: 500, or INTERNAL.
//!
//! The message of a panic stays in the log; the caller only learns that there was one.
//!
//! Only a panic hook gets the place of a panic. Ours records it and calls the former hook, which still prints
//! or reports panics; [`quiet_panics`] does not call it for panics that are caught here.
mod service;

pub(crate) use self::service::PanicLayer;
pub use self::service::{caught, quiet_panics};
