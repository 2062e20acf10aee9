//! Compiles `rate_limits`.
//!
//! State: the bucket of each rule, or its buckets by key. Their key is the service, or the operation that has
//! rules of its own, with the name of the rule and its `key`. If the rate changes, the level stays.
use std::sync::Arc;

use http::HeaderName;
use serde::Serialize;

use super::{Gcra, Key, Keyed, RateLimitConfig};
use crate::{
    clock::Instant,
    metrics::CallCounter,
    reporter::Reporter,
    rule::{Binding, Concern, Level, Look, Visible},
    types::{Side, matching::Matcher},
};

/// A compiled rule: its settings, and its bucket, which versions share.
pub(crate) struct Limit {
    /// The settings in force.
    pub config: RateLimitConfig,
    /// The bucket, or buckets.
    pub buckets: Arc<Buckets>,
    pub(super) matcher: Matcher,
    pub(super) header: Option<HeaderName>,
    pub(super) counters: [CallCounter; 2],
    pub(super) reporter: Arc<Reporter>,
    pub(super) side: Side,
}

/// One bucket, or one for each key. The words that all calls write share no cache line with data that they only
/// read.
#[repr(align(64))]
pub(crate) enum Buckets {
    /// One for all calls.
    One(Gcra),
    /// One for each key.
    Keyed(Box<Keyed>),
}

/// A rate limit, in `inspect`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LimitView {
    /// The service called, or this one.
    pub service: String,
    /// The rule.
    pub rule: String,
    /// Its rate.
    pub rate: String,
    /// Its burst.
    pub burst: u32,
    /// The number of calls that one bucket for all calls would admit now.
    pub available: Option<u32>,
    /// The number of keys with a bucket.
    pub keys: Option<usize>,
}

/// Compiles `rate_limits`.
pub(crate) struct RateLimitRule;

// === impl RateLimitRule ===

impl Concern for RateLimitRule {
    type Written = Vec<RateLimitConfig>;
    type Resolved = Arc<[Arc<Limit>]>;
    type Rule = Arc<[Arc<Limit>]>;

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
        let mut limits = Vec::new();
        for (i, config) in written.iter().enumerate() {
            if written[..i].iter().any(|earlier| earlier.name == config.name) {
                let message =
                    format!("a second rate limit is called `{}`; each rule needs its own name", config.name);
                level.problem(&format!("[{i}].name"), message);
            }
            let matcher = level.matcher(&format!("[{i}].match"), config.matching.as_ref());
            let state = format!("limit/{}/{:?}", config.name, config.key);
            let buckets = level.state(&state, || Buckets::new(config, Instant::now()));
            match Limit::new(config.clone(), matcher, buckets, level.side, level.reporter()) {
                Ok(limit) => limits.push(Arc::new(limit)),
                Err(message) => level.problem(&format!("[{i}].key"), message),
            }
        }
        *resolved = limits.into();
        let limits = resolved.clone();
        level.on_accepted(move |now| {
            limits.iter().for_each(|limit| limit.buckets.retune(now, &limit.config));
        });
    }

    fn rule(resolved: &Self::Resolved, _: &mut Binding<'_>) -> Self::Rule {
        resolved.clone()
    }
}

impl Visible for RateLimitRule {
    type View = LimitView;

    fn view(limits: &Self::Rule, look: &mut Look<'_>) -> Vec<LimitView> {
        let limits = limits.iter().filter(|limit| look.is_first(&limit.buckets));
        let limits: Vec<_> = limits.cloned().collect();
        limits.iter().map(|limit| limit.view(look)).collect()
    }
}

// === impl Limit ===

impl Limit {
    fn new(
        config: RateLimitConfig,
        matcher: Matcher,
        buckets: Arc<Buckets>,
        side: Side,
        reporter: Arc<Reporter>,
    ) -> Result<Self, String> {
        let header = match &config.key {
            Key::Header(name) => {
                let parsed = HeaderName::try_from(name.as_str());
                Some(parsed.map_err(|_| format!("`{name}` is no name of a header"))?)
            }
            _ => None,
        };
        let counters = reporter.metrics.limit(side, &config.name);
        Ok(Limit { config, buckets, matcher, header, counters, reporter, side })
    }

    fn view(&self, look: &Look<'_>) -> LimitView {
        let (available, keys) = match &*self.buckets {
            Buckets::One(bucket) => (Some(bucket.available(look.now, self.config.burst)), None),
            Buckets::Keyed(keyed) => (None, Some(keyed.len())),
        };
        LimitView {
            service: look.service.to_owned(),
            rule: self.config.name.clone(),
            rate: self.config.rate.to_string(),
            burst: self.config.burst,
            available,
            keys,
        }
    }
}

// === impl Buckets ===

impl Buckets {
    fn new(config: &RateLimitConfig, now: Instant) -> Self {
        match config.key {
            Key::Global => Buckets::One(Gcra::new(now)),
            _ => Buckets::Keyed(Box::new(Keyed::new(now, config.most_keys()))),
        }
    }

    fn retune(&self, now: Instant, config: &RateLimitConfig) {
        match self {
            Buckets::One(bucket) => bucket.retune(now, config.rate),
            Buckets::Keyed(keyed) => {
                keyed.set_most(config.most_keys());
                keyed.retune(now, config.rate);
            }
        }
    }
}
