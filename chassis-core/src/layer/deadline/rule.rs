//! Compiles `timeout` and `total_timeout`: two lengths of time, without state.
use std::time::Duration;

use super::{DEFAULT_INBOUND_TIMEOUT, DEFAULT_TIMEOUT};
use crate::{
    rule::{Binding, Concern, Level},
    types::{
        Side,
        units::{PositiveSpan, Switch},
    },
};

/// Compiles `timeout`.
pub(crate) struct TimeoutRule;

/// Compiles `total_timeout`.
pub(crate) struct TotalTimeoutRule;

impl Concern for TimeoutRule {
    type Written = Switch<PositiveSpan>;
    type Resolved = Option<Duration>;
    type Rule = Option<Duration>;

    fn none() -> Self::Rule {
        None
    }

    fn unwritten(level: &Level<'_>) -> Self::Resolved {
        Some(match level.side {
            Side::Client => DEFAULT_TIMEOUT,
            Side::Server => DEFAULT_INBOUND_TIMEOUT,
        })
    }

    fn overlay(resolved: &mut Self::Resolved, written: &Self::Written, _: &mut Level<'_>) {
        *resolved = written.on().map(|span| span.get());
    }

    fn rule(resolved: &Self::Resolved, _: &mut Binding<'_>) -> Self::Rule {
        *resolved
    }
}

impl Concern for TotalTimeoutRule {
    type Written = Switch<PositiveSpan>;
    type Resolved = Option<Duration>;
    type Rule = Option<Duration>;

    fn none() -> Self::Rule {
        None
    }

    fn unwritten(_: &Level<'_>) -> Self::Resolved {
        None
    }

    fn overlay(resolved: &mut Self::Resolved, written: &Self::Written, _: &mut Level<'_>) {
        *resolved = written.on().map(|span| span.get());
    }

    fn rule(resolved: &Self::Resolved, _: &mut Binding<'_>) -> Self::Rule {
        *resolved
    }
}
