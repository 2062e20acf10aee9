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

    fn default_of(side: Side) -> Option<Self::Written> {
        PositiveSpan::new(default_timeout(side)).map(Switch::On)
    }

    fn unwritten(level: &Level<'_>) -> Self::Resolved {
        Some(default_timeout(level.side))
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

    fn default_of(_: Side) -> Option<Self::Written> {
        Some(Switch::Off)
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

fn default_timeout(side: Side) -> Duration {
    match side {
        Side::Client => DEFAULT_TIMEOUT,
        Side::Server => DEFAULT_INBOUND_TIMEOUT,
    }
}
