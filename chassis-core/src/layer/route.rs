//! Takes the policy of a call, works out its deadline, and chooses the labels of its target.
//!
//! It stands above everything that reads `call.policy`, and it never refuses: what leads nowhere is
//! found out where a node is picked, so that it is traced, counted, and can fall back.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tower_service::Service;

use super::forward_ready;
use crate::{
    Live,
    call::{Invocation, Reply, earlier},
    context::Context,
    metrics::CallCounter,
    policy::{Policies, Policy},
    random::Random,
    types::{
        Choice, Error, Fallback, LabelSet, Side,
        matching::{MatchRef, Matcher},
    },
};

/// One rule of a service's `routes`, tried in order; the first that matches decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteConfig {
    /// Its name, in metrics and logs.
    pub name: String,
    /// Which calls it is about. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// Only instances with these labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<BTreeMap<String, String>>,
    /// Shares of the calls by the value of the label `by`. They need not sum to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<BTreeMap<String, u32>>,
    /// The label that `split` is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What to do where no instance has the labels: `any`, `none`, or rules to try. Default `any`.
    #[serde(default, skip_serializing_if = "FallbackConfig::is_unset")]
    pub fallback: FallbackConfig,
}

/// What becomes of a call whose rule finds no instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "`any`, `none`, or a list of rule names")]
pub enum FallbackConfig {
    /// A word.
    Word(FallbackWord),
    /// The targets of these rules, in this order.
    Rules(Vec<String>),
    #[doc(hidden)]
    #[default]
    #[serde(skip)]
    Default,
}

/// `any` or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FallbackWord {
    /// Every instance will do.
    Any,
    /// The call is refused.
    None,
}

/// A rule as compiled.
pub struct Rule {
    /// Its name.
    pub name: Arc<str>,
    matcher: Matcher,
    targets: Targets,
    fallback: Fallback,
    hits: CallCounter,
}

enum Targets {
    One(Arc<LabelSet>),
    /// Running sums of the weights.
    Split(Box<[(u64, Arc<LabelSet>)]>),
}

/// Stamps policy, deadline and choice on calls.
#[derive(Clone)]
pub struct RouteLayer {
    side: Side,
    policies: Live<Policies>,
}

/// The service of [`RouteLayer`].
#[derive(Clone)]
pub struct Route<S> {
    inner: S,
    with: RouteLayer,
}

/// A deadline is sent on a little shorter, so that whoever set it still hears the answer: a twentieth
/// of what remains, at most this.
const MARGIN: Duration = Duration::from_millis(5);

// === impl FallbackConfig ===

impl FallbackConfig {
    /// Was nothing written? `any` holds then.
    fn is_unset(&self) -> bool {
        matches!(self, FallbackConfig::Default)
    }
}

// === impl RouteLayer ===

impl RouteLayer {
    /// Calls out of this service, or into it, under the newest `policies`.
    pub fn new(side: Side, policies: Live<Policies>) -> Self {
        RouteLayer { side, policies }
    }

    fn stamp_outgoing(&self, call: &mut Invocation) {
        call.policy =
            self.policies.with(|all| all.outbound(&call.target.service, call.target.operation.as_str()));
        call.target.caller = call.policy.common.caller();
        let started = call.started;
        // A bound too far away to be told as a time is none.
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

// === impl Rule ===

impl Rule {
    /// The rules of a service, in order; what is wrong with them is told with its path below theirs.
    pub(crate) fn compile_all(
        configs: &[RouteConfig],
        mut matcher: impl FnMut(usize, Option<&MatchRef>) -> Matcher,
        mut hits: impl FnMut(&str) -> CallCounter,
        problem: &mut dyn FnMut(String, String),
    ) -> Box<[Rule]> {
        let mut targets = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            if configs[..i].iter().any(|earlier| earlier.name == config.name) {
                problem(
                    format!("[{i}].name"),
                    format!("a second rule is called `{}`; names tell rules apart", config.name),
                );
            }
            targets.push(Targets::compile(config, |path, why| problem(format!("[{i}]{path}"), why)));
        }
        let mut rules = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            let fallback = match &config.fallback {
                FallbackConfig::Default | FallbackConfig::Word(FallbackWord::Any) => Fallback::Any,
                FallbackConfig::Word(FallbackWord::None) => Fallback::None,
                FallbackConfig::Rules(names) => {
                    let mut sets = Vec::new();
                    for name in names {
                        match configs.iter().position(|c| c.name == *name) {
                            Some(at) => sets.extend(targets[at].all()),
                            None => {
                                let known: Vec<_> = configs.iter().map(|c| c.name.as_str()).collect();
                                problem(
                                    format!("[{i}].fallback"),
                                    format!("no rule is called `{name}`; there are {}", known.join(", ")),
                                );
                            }
                        }
                    }
                    Fallback::Sets(sets.into())
                }
            };
            rules.push((matcher(i, config.matching.as_ref()), fallback, hits(&config.name)));
        }
        let rules =
            configs.iter().zip(targets).zip(rules).map(|((config, targets), (matcher, fallback, hits))| {
                Rule { name: config.name.as_str().into(), matcher, targets, fallback, hits }
            });
        rules.collect()
    }

    /// The same rule, of which no thread but one counts references.
    pub(crate) fn apart(&self) -> Rule {
        Rule {
            name: self.name.as_ref().into(),
            matcher: self.matcher.clone(),
            targets: self.targets.apart(),
            fallback: match &self.fallback {
                Fallback::Sets(sets) => Fallback::Sets(sets.to_vec().into()),
                any_or_none => any_or_none.clone(),
            },
            hits: self.hits.clone(),
        }
    }

    /// How many calls it has decided on.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// The labels it sends calls to.
    pub fn targets(&self) -> Vec<Arc<LabelSet>> {
        self.targets.all()
    }
}

// === impl Targets ===

impl Targets {
    fn compile(config: &RouteConfig, mut problem: impl FnMut(&str, String)) -> Self {
        let none = || Targets::One(Arc::default());
        match (&config.to, &config.split, &config.by) {
            (Some(labels), None, None) => Targets::One(Arc::new(labels.clone().into())),
            (None, Some(split), Some(by)) => {
                let mut sum = 0;
                let shares = split.iter().filter(|(_, share)| **share > 0).map(|(value, share)| {
                    sum += u64::from(*share);
                    (sum, Arc::new(LabelSet::from_iter([(by.as_str(), value.as_str())])))
                });
                let shares: Box<[_]> = shares.collect();
                if shares.is_empty() {
                    problem(
                        ".split",
                        "a split needs a share above 0, as in { stable: 95, canary: 5 }".to_owned(),
                    );
                    return none();
                }
                Targets::Split(shares)
            }
            (None, Some(_), None) => {
                problem("", "missing `by`: the label that the split is about".to_owned());
                none()
            }
            (None, None, _) => {
                problem("", "missing `to` or `split`: where the rule leads".to_owned());
                none()
            }
            (Some(_), _, _) => {
                problem(".to", "a rule has either `to`, or `split` with `by`".to_owned());
                none()
            }
        }
    }

    fn apart(&self) -> Self {
        let apart = |labels: &Arc<LabelSet>| Arc::new(LabelSet::clone(labels));
        match self {
            Targets::One(labels) => Targets::One(apart(labels)),
            Targets::Split(shares) => {
                Targets::Split(shares.iter().map(|(sum, labels)| (*sum, apart(labels))).collect())
            }
        }
    }

    fn draw(&self, random: &Random) -> Arc<LabelSet> {
        match self {
            Targets::One(labels) => labels.clone(),
            Targets::Split(shares) => {
                let total = shares.last().map_or(1, |(sum, _)| *sum);
                let at = random.below(usize::try_from(total).unwrap_or(usize::MAX)) as u64;
                let index = shares.partition_point(|(sum, _)| *sum <= at).min(shares.len() - 1);
                shares[index].1.clone()
            }
        }
    }

    fn all(&self) -> Vec<Arc<LabelSet>> {
        match self {
            Targets::One(labels) => vec![labels.clone()],
            Targets::Split(shares) => shares.iter().map(|(_, labels)| labels.clone()).collect(),
        }
    }
}

impl Policy {
    /// The rules that choose where calls under this policy go, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.routes
    }
}
