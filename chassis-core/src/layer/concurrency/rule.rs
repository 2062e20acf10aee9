//! Compiles `concurrency`.
//!
//! State: the count of calls under way. Its key is the service, or the operation if the bound is the
//! operation's own. At the scope `endpoint` the node counts.
use std::sync::Arc;

use serde::Serialize;

use super::{ConcurrencyConfig, Gauge, Scope};
use crate::{
    reporter::Reporter,
    rule::{Binding, Concern, Level, Look, Of, Visible},
    types::{Side, units::Switch},
};

/// The bound of one policy: its settings, and the shared count.
#[derive(Clone)]
pub(crate) struct Bound {
    /// The settings in force.
    pub config: ConcurrencyConfig,
    /// The calls under way; shared by all policies of the same scope, across versions.
    pub gauge: Arc<Gauge>,
    pub(crate) reporter: Arc<Reporter>,
}

/// A bound on concurrent calls, in `inspect`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ConcurrencyView {
    /// The service called, or this one.
    pub service: String,
    /// The operation, if the bound is the operation's own.
    pub operation: String,
    /// The most at once.
    pub limit: u32,
    /// Under way.
    pub in_use: u32,
}

/// Compiles `concurrency`.
pub(crate) struct ConcurrencyRule;

/// The resolved settings of `concurrency`.
#[derive(Clone)]
pub(crate) struct Resolved {
    config: Option<ConcurrencyConfig>,
    /// The operation has settings of its own, and so its own count.
    is_own: bool,
    reporter: Arc<Reporter>,
}

// === impl ConcurrencyRule ===

impl Concern for ConcurrencyRule {
    type Written = Switch<ConcurrencyConfig>;
    type Resolved = Resolved;
    /// The bound here, and the bound of each node.
    type Rule = (Option<Bound>, Option<u32>);

    fn none() -> Self::Rule {
        (None, None)
    }

    fn default_of(_: Side) -> Option<Self::Written> {
        Some(Switch::Off)
    }

    fn unwritten(level: &Level<'_>) -> Resolved {
        Resolved { config: None, is_own: false, reporter: level.reporter() }
    }

    fn overlay(resolved: &mut Resolved, written: &Self::Written, level: &mut Level<'_>) {
        resolved.config = written.on().copied();
        resolved.is_own = level.is_operation();
        // Incoming calls have no endpoint, so they can't be counted by endpoint.
        let is_at_nodes = resolved.config.is_some_and(|config| config.scope == Scope::Endpoint);
        if level.side == Side::Server && is_at_nodes {
            let message =
                "calls that come in are counted over the service or an operation, not over endpoints";
            level.problem(".scope", message);
        }
    }

    fn rule(resolved: &Resolved, binding: &mut Binding<'_>) -> Self::Rule {
        let Some(config) = resolved.config else { return Self::none() };
        let of = match config.scope {
            Scope::Endpoint => return (None, Some(config.limit.get())),
            Scope::Operation => Of::Operation,
            Scope::Service if resolved.is_own => Of::Operation,
            Scope::Service => Of::Service,
        };
        let gauge = binding.state(of, "gauge", Gauge::default);
        (Some(Bound { config, gauge, reporter: resolved.reporter.clone() }), None)
    }
}

impl Visible for ConcurrencyRule {
    type View = ConcurrencyView;

    fn view((bound, _): &Self::Rule, look: &mut Look<'_>) -> Vec<ConcurrencyView> {
        let Some(bound) = bound.as_ref().filter(|bound| look.is_first(&bound.gauge)) else {
            return Vec::new();
        };
        vec![ConcurrencyView {
            service: look.service.to_owned(),
            operation: look.operation.to_owned(),
            limit: bound.config.limit.get(),
            in_use: bound.gauge.in_use(),
        }]
    }
}
