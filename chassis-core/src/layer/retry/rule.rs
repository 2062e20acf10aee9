//! Compiles `retry` and `idempotent`.
//!
//! State: the budget, one for all retries of a service; its key is the service.
use std::{collections::HashSet, sync::Arc};

use serde::Serialize;

use super::{Budget, BudgetConfig, RetryConfig, RetryPatch};
use crate::{
    clock::Instant,
    reporter::Reporter,
    rule::{Binding, Concern, Level, Look, Of, Visible},
    types::{Side, units::Switch},
};

/// The retries of one policy: their settings, and their shared budget.
#[derive(Clone)]
pub(crate) struct Retries {
    /// The settings in force.
    pub config: Arc<RetryConfig>,
    /// The settings of the budget; `None` for no limit.
    pub bounds: Option<BudgetConfig>,
    /// Shared by all retries of a service, across versions.
    pub budget: Arc<Budget>,
    pub(crate) reporter: Arc<Reporter>,
}

/// The budget of a service's retries, in `inspect`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BudgetView {
    /// The service called.
    pub service: String,
    /// Calls in the last ten seconds.
    pub calls: u64,
    /// Retries among them.
    pub retries: u64,
    /// The retries that are allowed now; `None`: no limit.
    pub available: Option<u32>,
}

/// Compiles `retry`.
pub(crate) struct RetryRule;

/// The resolved settings of `retry`.
#[derive(Clone)]
pub(crate) struct Resolved {
    config: Option<Arc<RetryConfig>>,
    reporter: Arc<Reporter>,
}

/// Operations that their protos declare idempotent.
#[derive(Clone, Default)]
pub(crate) struct Idempotent(pub(crate) HashSet<String>);

/// Compiles `idempotent`.
pub(crate) struct IdempotentRule;

// === impl RetryRule ===

impl Concern for RetryRule {
    type Written = Switch<RetryPatch>;
    type Resolved = Resolved;
    type Rule = Option<Retries>;

    fn none() -> Self::Rule {
        None
    }

    fn default_of(side: Side) -> Option<Self::Written> {
        Some(match side {
            Side::Client => Switch::On(RetryPatch::default()),
            Side::Server => Switch::Off,
        })
    }

    fn unwritten(level: &Level<'_>) -> Resolved {
        let config = (level.side == Side::Client).then(Arc::default);
        Resolved { config, reporter: level.reporter() }
    }

    fn overlay(resolved: &mut Resolved, written: &Self::Written, level: &mut Level<'_>) {
        let below = resolved.config.as_deref().cloned();
        resolved.config = Switch::over(Some(written), below).map(Arc::new);
        if let Some(Err(message)) = resolved.config.as_deref().map(RetryConfig::check) {
            level.problem(".attempts", message);
        }
    }

    fn rule(resolved: &Resolved, binding: &mut Binding<'_>) -> Self::Rule {
        resolved.config.as_ref().map(|config| Retries {
            config: config.clone(),
            bounds: config.bounds(),
            budget: binding.state(Of::Service, "budget", || Budget::new(Instant::now())),
            reporter: resolved.reporter.clone(),
        })
    }
}

impl Visible for RetryRule {
    type View = BudgetView;

    fn view(rule: &Self::Rule, look: &mut Look<'_>) -> Vec<BudgetView> {
        let Some(retries) = rule.as_ref().filter(|retries| look.is_first(&retries.budget)) else {
            return Vec::new();
        };
        let (calls, used) = retries.budget.figures(look.now);
        vec![BudgetView {
            service: look.service.to_owned(),
            calls,
            retries: used,
            available: retries.bounds.as_ref().map(|bounds| retries.budget.balance(look.now, bounds)),
        }]
    }
}

// === impl IdempotentRule ===

impl Concern for IdempotentRule {
    type Written = bool;
    type Resolved = Option<bool>;
    type Rule = bool;

    fn none() -> bool {
        false
    }

    fn default_of(_: Side) -> Option<Self::Written> {
        None // it follows from the method or the proto
    }

    fn unwritten(_: &Level<'_>) -> Self::Resolved {
        None
    }

    fn overlay(resolved: &mut Self::Resolved, written: &bool, _: &mut Level<'_>) {
        *resolved = Some(*written);
    }

    /// Without a setting, the operation's proto decides.
    fn rule(resolved: &Self::Resolved, binding: &mut Binding<'_>) -> bool {
        let declared = || binding.environment.extensions.get::<Idempotent>();
        resolved.unwrap_or_else(|| declared().is_some_and(|all| all.0.contains(&**binding.operation)))
    }
}
