//! The layer and its service.
use std::time::Duration;

use tower_service::Service;

use super::Rule;
use crate::layer::forward_ready;
use crate::{
    Live,
    call::{Invocation, Reply, earlier},
    context::Context,
    policy::{Policies, Policy},
    types::{Choice, Error, Fallback, Side},
};

/// Sets the policy, the deadline and the choice of calls.
#[derive(Clone)]
pub(crate) struct RouteLayer {
    side: Side,
    policies: Live<Policies>,
}

/// The service of [`RouteLayer`].
#[derive(Clone)]
pub(crate) struct Route<S> {
    inner: S,
    with: RouteLayer,
}

/// A deadline is passed on a little shorter, so that the answer still reaches the caller that set it: by a
/// twentieth of the remaining time, at most by this.
const MARGIN: Duration = Duration::from_millis(5);

// === impl RouteLayer ===

impl RouteLayer {
    /// For the outgoing or the incoming calls of this service, under the newest `policies`.
    pub(crate) fn new(side: Side, policies: Live<Policies>) -> Self {
        RouteLayer { side, policies }
    }

    fn stamp_outgoing(&self, call: &mut Invocation) {
        call.policy =
            self.policies.with(|all| all.outbound(&call.target.service, call.target.operation.as_str()));
        call.target.caller = call.policy.common.caller();
        let started = call.started;
        // A bound too far away to be represented counts as none.
        let after = |timeout: Option<Duration>| timeout.and_then(|timeout| started.checked_add(timeout));
        call.head_by = after(call.policy.timeout);
        let own = after(call.options.timeout.or(call.policy.total_timeout));
        let detached = call.options.detached;
        let inherited = Context::with(|context| {
            call.below_retry = context.is_retry;
            call.trace = context.trace.clone();
            for name in context.headers.keys() {
                if !call.metadata.contains_key(name) {
                    for value in context.headers.get_all(name) {
                        call.metadata.append(name.clone(), value.clone());
                    }
                }
            }
            let deadline = context.deadline.filter(|_| !detached)?;
            let left = deadline.saturating_duration_since(started);
            Some(deadline - MARGIN.min(left / 20))
        });
        call.deadline = earlier(earlier(call.deadline, own), inherited.flatten());
        call.choice = match &call.options.labels {
            Some(labels) => {
                Some(Choice { rule: "pinned".into(), labels: labels.clone(), fallback: Fallback::None })
            }
            None => choose(call),
        };
    }

    fn stamp_incoming(&self, call: &mut Invocation) {
        call.policy = self.policies.with(|all| all.inbound(call.target.operation.as_str()));
        let started = call.started;
        call.head_by = call.policy.timeout.and_then(|timeout| started.checked_add(timeout));
        let total = call.policy.total_timeout.and_then(|timeout| started.checked_add(timeout));
        call.deadline = earlier(call.deadline, total);
    }
}

fn choose(call: &Invocation) -> Option<Choice> {
    let rules = &call.policy.routes;
    if rules.is_empty() {
        return None;
    }
    let subject = call.subject();
    let rule = rules.iter().find(|rule| rule.matcher.matches(&subject))?;
    rule.hits.inc();
    let labels = rule.targets.draw(&call.policy.common.random);
    Some(Choice { rule: rule.name.clone(), labels, fallback: rule.fallback.clone() })
}

impl<S> tower_layer::Layer<S> for RouteLayer {
    type Service = Route<S>;
    fn layer(&self, inner: S) -> Route<S> {
        Route { inner, with: self.clone() }
    }
}

impl<S> Service<Invocation> for Route<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = S::Future;

    forward_ready!();

    fn call(&mut self, mut call: Invocation) -> S::Future {
        match self.with.side {
            Side::Client => self.with.stamp_outgoing(&mut call),
            Side::Server => self.with.stamp_incoming(&mut call),
        }
        self.inner.call(call)
    }
}

// === impl Targets ===

impl Policy {
    /// The rules that choose the targets of calls under this policy, in order.
    pub(crate) fn rules(&self) -> &[Rule] {
        &self.routes
    }
}
