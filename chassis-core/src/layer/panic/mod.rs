//! Turns a handler's panic into an error of that one call: 500, or INTERNAL.
//!
//! What a panic says stays in the log; the caller learns only that there was one.
//!
//! Where it happened only a panic hook learns. Ours notes that down and calls the hook that was there before, so
//! that what prints or reports panics goes on doing so; [`quiet_panics`] keeps it from those that are caught here.
mod service;

pub use self::service::{PanicFuture, PanicGuard, PanicLayer, caught, quiet_panics};
