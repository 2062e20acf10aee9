//! Passes a call's deadline, trace, baggage and chosen headers to the calls of its handler.
//!
//! In the other direction, if such a call was retried without success, a failing answer forbids retries. So
//! only the service directly above the failing one retries, instead of each service of a chain.
mod service;

pub(crate) use self::service::ContextLayer;
