//! A look into policies: which mechanisms are on, and the state that they share.
use std::sync::Arc;

use crate::{
    layer::{breaker::BreakerConfig, fault::At},
    policy::Policy,
};

/// The mechanisms that are on, by their keys in the settings; bounds on messages are not among them.
pub fn mechanisms(policy: &Policy) -> Vec<&'static str> {
    let faults = [At::Call, At::Attempt].iter().any(|at| !policy.faults.at(*at).is_empty());
    let all = [
        ("timeout", policy.timeout.is_some()),
        ("total_timeout", policy.total_timeout.is_some()),
        ("concurrency", policy.concurrency.is_some() || policy.node_concurrency.is_some()),
        ("rate_limits", !policy.rate_limits.is_empty()),
        ("retry", policy.retry.is_some()),
        ("breaker", policy.breaker.is_some() || policy.node_breaker.is_some()),
        ("fallback", policy.fallback.is_some()),
        ("faults", faults),
    ];
    all.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect()
}

/// Whether a circuit of `of`, a service or an operation, with the numbers of `config` guards the calls.
pub fn is_guarded(policy: &Policy, of: &str, config: &BreakerConfig) -> bool {
    policy.breaker.as_ref().is_some_and(|guard| *guard.config == config.circuit() && *guard.cell.of == *of)
}

/// Whether two policies share their circuit, count of concurrent calls, retry budget, first bucket and metrics. What
/// both are without counts as shared.
pub fn share_state(one: &Policy, other: &Policy) -> bool {
    fn same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
        match (one, other) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        }
    }
    let circuit = |policy: &Policy| policy.breaker.as_ref().map(|guard| guard.cell.clone());
    let gauge = |policy: &Policy| policy.concurrency.as_ref().map(|bound| bound.gauge.clone());
    let budget = |policy: &Policy| policy.retry.as_ref().map(|retries| retries.budget.clone());
    let buckets = |policy: &Policy| policy.rate_limits.first().map(|limit| limit.buckets.clone());
    same(circuit(one).as_ref(), circuit(other).as_ref())
        && same(gauge(one).as_ref(), gauge(other).as_ref())
        && same(budget(one).as_ref(), budget(other).as_ref())
        && same(one.metrics.as_ref(), other.metrics.as_ref())
        && one.rate_limits.len() == other.rate_limits.len()
        && same(buckets(one).as_ref(), buckets(other).as_ref())
}
