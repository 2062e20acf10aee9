//! Replaces the failure of a call with an answer of a user's function or of the settings.
//!
//! It is below the metrics, which keep the true outcome, and above all layers that refuse calls. It never
//! counts as a success of the endpoint: the listeners have got the failure by then.
mod config;
mod rule;
mod service;

pub use self::config::{FailedCall, FallbackConfig, FallbackFn};
#[cfg(feature = "testing")]
pub(crate) use self::service::TIME_LIMIT;
pub(crate) use self::{
    config::{Fallbacks, Protocols},
    rule::{Fallback, FallbackRule},
    service::FallbackLayer,
};
pub use crate::types::{Answer, FixedAnswer, InvalidAnswer};
