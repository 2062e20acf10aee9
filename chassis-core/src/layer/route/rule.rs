//! Compiles `routes`. Their only state are their counters, by service and rule.
use std::sync::Arc;

use super::{FallbackConfig, FallbackWord, RouteConfig};
use crate::{
    metrics::CallCounter,
    random::Random,
    rule::{Binding, Concern, Level},
    types::{Fallback, LabelSet, Side, matching::Matcher},
};

/// A compiled rule.
pub(crate) struct Rule {
    /// Its name.
    pub name: Arc<str>,
    pub(super) matcher: Matcher,
    pub(super) targets: Targets,
    pub(super) fallback: Fallback,
    pub(super) hits: CallCounter,
}

pub(super) enum Targets {
    One(Arc<LabelSet>),
    /// Running sums of the weights.
    Split(Box<[(u64, Arc<LabelSet>)]>),
}

impl Rule {
    /// The rules of a service, in order.
    fn compile_all(configs: &[RouteConfig], level: &mut Level<'_>) -> Arc<[Rule]> {
        let mut targets = Vec::new();
        for (i, config) in configs.iter().enumerate() {
            if configs[..i].iter().any(|earlier| earlier.name == config.name) {
                let message =
                    format!("a second rule is called `{}`; each rule needs its own name", config.name);
                level.problem(&format!("[{i}].name"), message);
            }
            targets.push(Targets::compile(config, |key, why| level.problem(&format!("[{i}]{key}"), why)));
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
                                let message =
                                    format!("no rule is called `{name}`; there are {}", known.join(", "));
                                level.problem(&format!("[{i}].fallback"), message);
                            }
                        }
                    }
                    Fallback::Sets(sets.into())
                }
            };
            let matcher = level.matcher(&format!("[{i}].match"), config.matching.as_ref());
            let hits = level.environment.metrics.route(level.service, &config.name);
            rules.push((matcher, fallback, hits));
        }
        let rules =
            configs.iter().zip(targets).zip(rules).map(|((config, targets), (matcher, fallback, hits))| {
                Rule { name: config.name.as_str().into(), matcher, targets, fallback, hits }
            });
        rules.collect()
    }

    /// A copy of the rule whose reference counts only one thread uses.
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

    /// The number of calls that it decided.
    pub(crate) fn hits(&self) -> u64 {
        self.hits.get()
    }
}

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

    pub(super) fn draw(&self, random: &Random) -> Arc<LabelSet> {
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

/// Compiles `routes`.
pub(crate) struct RouteRule;

// === impl RouteRule ===

impl Concern for RouteRule {
    type Written = Vec<RouteConfig>;
    type Resolved = Arc<[Rule]>;
    type Rule = Arc<[Rule]>;

    fn none() -> Self::Rule {
        Arc::new([])
    }

    fn default_of(_: Side) -> Option<Self::Written> {
        Some(Vec::new())
    }

    fn unwritten(_: &Level<'_>) -> Self::Resolved {
        Arc::new([])
    }

    fn overlay(resolved: &mut Self::Resolved, written: &Self::Written, level: &mut Level<'_>) {
        *resolved = Rule::compile_all(written, level);
    }

    fn rule(resolved: &Self::Resolved, _: &mut Binding<'_>) -> Self::Rule {
        resolved.clone()
    }
}
