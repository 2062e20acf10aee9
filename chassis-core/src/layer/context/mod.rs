//! Makes a call's deadline, trace, baggage and chosen headers those of the calls its handler makes.
//!
//! And the other way: where such a call was retried without success, a failing answer tells the caller not to
//! retry. Of a chain of services only the one above what fails tries again, instead of each.
mod service;

pub use self::service::{ContextFuture, ContextLayer, WithContext};
