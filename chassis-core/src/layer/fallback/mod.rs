//! Answers instead, where a call failed: by a function of the user's, or from the settings.
//!
//! It stands below the metrics, which keep the true outcome, and above everything that refuses. It
//! never counts as the endpoint's success: whoever listens has heard the failure by then.
mod config;
mod rule;
mod service;

pub(crate) use self::{config::Fallbacks, rule::FallbackRule};
pub use self::{
    config::{Answer, Failed, FallbackConfig, FallbackFn},
    rule::Fallback,
    service::{FallbackLayer, TIME_LIMIT, WithFallback},
};
