//! Admits calls at a rate (GCRA): refuses the rest at once, or lets them wait up to a bound.
//!
//! Each rule is a bucket, or one for each value of its key. A changed rate keeps the level of the
//! bucket. Rules are asked in order and all that match have to admit; what was taken for a call that
//! is then refused, or given up while it waits, goes back.
mod gcra;
mod keys;

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use http::HeaderName;
use serde::{Deserialize, Deserializer, Serialize, de};
use smallvec::SmallVec;
use tower_service::Service;

pub use self::{
    gcra::{Gcra, Wait},
    keys::{Keyed, MostKeys},
};
use super::{Decided, forward_ready};
use crate::{
    call::{Invocation, Reply},
    clock::Instant,
    event::Event,
    metrics::CallCounter,
    site::Site,
    types::{
        Error, Reason, Side,
        matching::{MatchRef, Matcher},
        units::{Rate, Span},
    },
};

/// One rate limit, as people write it in `rate_limits`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Its name, in refusals, metrics and logs.
    pub name: String,
    /// How many in how long: `100/s`. `0/s` refuses everything.
    pub rate: Rate,
    /// How many at once after a pause. 0 refuses everything.
    pub burst: u32,
    /// What has a bucket of its own. Default `global`: all calls share one.
    #[serde(default)]
    pub key: Key,
    /// Which calls it is about. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// How long a call may wait for its turn rather than be refused. Default `0s`.
    #[serde(default = "no_wait")]
    pub max_wait: Span,
    /// The most keys that have a bucket of their own; the rest share some. Default 10,000.
    #[serde(default = "most_keys")]
    pub max_keys: std::num::NonZeroU32,
    /// The most of them that calls of one peer address (IPv6: of one /64) may take. Further keys from there
    /// share a bucket, and others still get theirs. Calls without a peer address are not bounded by it.
    /// Default a quarter of `max_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_keys_per_peer: Option<std::num::NonZeroU32>,
}

/// What has a bucket of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Nothing: one bucket for all.
    #[default]
    Global,
    /// Each calling service.
    Caller,
    /// Each operation.
    Operation,
    /// Each peer address; of IPv6 each /64, which one machine has as a whole.
    Peer,
    /// Each value of a header.
    Header(String),
}

/// A rule as compiled: its numbers, and the bucket it shares across versions.
pub struct Limit {
    /// What is in force.
    pub config: RateLimitConfig,
    /// The bucket, or buckets.
    pub buckets: Arc<Buckets>,
    matcher: Matcher,
    header: Option<HeaderName>,
    counters: [CallCounter; 2],
    site: Arc<Site>,
    side: Side,
}

/// One bucket, or one for each key. What all calls write shares its cache line with nothing that they read.
#[repr(align(64))]
pub enum Buckets {
    /// For all calls.
    One(Gcra),
    /// For each key.
    Keyed(Box<Keyed>),
}

/// Refuses, or delays, calls above the rates of their policy.
#[derive(Clone, Copy, Debug, Default)]
pub struct RateLimitLayer;

/// The service of [`RateLimitLayer`].
#[derive(Clone, Debug)]
pub struct RateLimit<S> {
    inner: S,
}

/// A call that waits for its turn, and gives it back if it is given up meanwhile.
struct Waiting {
    call: Option<Invocation>,
    taken: Taken,
}

/// The limits, by their place, that let a call in, and how long each lets it wait.
type Taken = SmallVec<[(usize, Duration); 2]>;

fn no_wait() -> Span {
    Span(Duration::ZERO)
}

fn most_keys() -> std::num::NonZeroU32 {
    const { std::num::NonZeroU32::new(10_000).expect("10,000 is not 0") }
}

impl<S> tower_layer::Layer<S> for RateLimitLayer {
    type Service = RateLimit<S>;
    fn layer(&self, inner: S) -> RateLimit<S> {
        RateLimit { inner }
    }
}

impl<S> Service<Invocation> for RateLimit<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = Error;
    type Future = Decided<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.rate_limits.is_empty() {
            true => Decided::inner(self.inner.call(call)),
            false => self.limited(call),
        }
    }
}

impl<S> RateLimit<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Passes the call on as the limits let it. Apart, so that a layer without limits is a branch.
    #[inline(never)]
    fn limited(&mut self, call: Invocation) -> Decided<S::Future> {
        // One alone that lets the call in at once, which is usual, has nothing to give back.
        let alone = match &*call.policy.rate_limits {
            [limit] if limit.is_about(&call) => Some(limit.take(&call)),
            [_] => Some(Ok(Duration::ZERO)),
            _ => None,
        };
        let (wait, taken) = match alone {
            Some(Ok(Duration::ZERO)) => return Decided::inner(self.inner.call(call)),
            Some(Ok(wait)) => (wait, Taken::from_iter([(0, wait)])),
            Some(Err(error)) => return Decided::refused(call.refuse(error)),
            None => match take_all(&call) {
                Ok((Duration::ZERO, _)) => return Decided::inner(self.inner.call(call)),
                Ok(waits) => waits,
                Err(error) => return Decided::refused(call.refuse(error)),
            },
        };
        // The deadline layer stands above: a wait beyond it is dropped there.
        let mut inner = self.inner.clone();
        Decided::later(async move {
            let mut waiting = Waiting { call: Some(call), taken };
            tokio::time::sleep(wait).await;
            let mut call = waiting.call.take().expect("nobody else takes it");
            call.attempt_waited(Instant::now());
            inner.call(call).await
        })
    }
}

/// Takes from all limits that are about the call, or from none: the longest wait, and what was taken.
fn take_all(call: &Invocation) -> Result<(Duration, Taken), Error> {
    let (limits, mut longest, mut taken) = (&*call.policy.rate_limits, Duration::ZERO, Taken::new());
    for (i, limit) in limits.iter().enumerate() {
        if !limit.is_about(call) {
            continue;
        }
        match limit.take(call) {
            Ok(wait) => {
                longest = longest.max(wait);
                taken.push((i, wait));
            }
            Err(error) => {
                give_back(&taken, call, call.started);
                return Err(error);
            }
        }
    }
    Ok((longest, taken))
}

/// Puts back what was taken for a call that does not go out.
fn give_back(taken: &Taken, call: &Invocation, now: Instant) {
    let waited = now.saturating_duration_since(call.started);
    for (i, wait) in taken {
        call.policy.rate_limits[*i].give_back(call, now, wait.saturating_sub(waited));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(call) = &self.call {
            give_back(&self.taken, call, Instant::now());
        }
    }
}

/// What one machine has: an address of IPv4, a /64 of IPv6.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

// === impl RateLimitConfig, Key ===

impl RateLimitConfig {
    pub(crate) fn most_keys(&self) -> MostKeys {
        let all = self.max_keys.get() as usize;
        let of_a_peer = self.max_keys_per_peer.map_or(all.div_ceil(4), |most| most.get() as usize);
        MostKeys { all, of_a_peer }
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            header: String,
        }

        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Key;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`global`, `caller`, `operation`, `peer` or `{ header: x-tenant }`")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Key, E> {
                match word {
                    "global" => Ok(Key::Global),
                    "caller" => Ok(Key::Caller),
                    "operation" => Ok(Key::Operation),
                    "peer" => Ok(Key::Peer),
                    "header" => Err(E::custom("`header` needs a name; write `key: { header: x-tenant }`")),
                    word => {
                        Err(E::unknown_variant(word, &["global", "caller", "operation", "peer", "header"]))
                    }
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Key, A::Error> {
                let Table { header } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Key::Header(header))
            }
        }
        from.deserialize_any(Visitor)
    }
}

// === impl Limit ===

impl Limit {
    pub(crate) fn new(
        config: RateLimitConfig,
        matcher: Matcher,
        buckets: Arc<Buckets>,
        side: Side,
        site: Arc<Site>,
    ) -> Result<Self, String> {
        let header = match &config.key {
            Key::Header(name) => {
                let parsed = HeaderName::try_from(name.as_str());
                Some(parsed.map_err(|_| format!("`{name}` is no name of a header"))?)
            }
            _ => None,
        };
        let counters = site.metrics.limit(side, &config.name);
        Ok(Limit { config, buckets, matcher, header, counters, site, side })
    }

    fn is_about(&self, call: &Invocation) -> bool {
        self.matcher.is_any() || self.matcher.matches(&call.subject())
    }

    /// How long to wait: nothing, mostly.
    fn take(&self, call: &Invocation) -> Result<Duration, Error> {
        let (rate, burst) = (self.config.rate, self.config.burst);
        // What is left of the time bounds the wait: to be let in after it is as good as not at all.
        let left = || call.bound().map(|bound| bound.saturating_duration_since(call.started));
        let bound = match self.config.max_wait.0 {
            Duration::ZERO => Duration::ZERO,
            most => left().map_or(most, |left| left.min(most)),
        };
        let taken = match &*self.buckets {
            Buckets::One(bucket) => bucket.reserve(call.started, rate, burst, 1, bound),
            Buckets::Keyed(keyed) => {
                keyed.reserve(self.key(call).as_ref(), call.peer, call.started, rate, burst, 1, bound)
            }
        };
        match taken {
            Ok(wait) => {
                self.counters[0].inc();
                Ok(wait)
            }
            Err(wait) => {
                self.counters[1].inc();
                Err(self.error(call, wait))
            }
        }
    }

    fn give_back(&self, call: &Invocation, now: Instant, left: Duration) {
        match &*self.buckets {
            Buckets::One(bucket) => bucket.give_back(now, self.config.burst, 1, left),
            Buckets::Keyed(keyed) => {
                keyed.give_back(self.key(call).as_ref(), call.peer, now, self.config.burst, 1, left);
            }
        }
    }

    fn key<'a>(&self, call: &'a Invocation) -> std::borrow::Cow<'a, str> {
        match (&self.config.key, &self.header) {
            (Key::Caller, _) => call.target.caller_name().unwrap_or("").into(),
            (Key::Operation, _) => call.target.operation.as_str().into(),
            (Key::Peer, _) => call.peer.map(|ip| network(ip).to_string()).unwrap_or_default().into(),
            (Key::Header(_), Some(name)) => {
                call.metadata.get(name).map_or("".into(), |value| String::from_utf8_lossy(value.as_bytes()))
            }
            _ => "".into(),
        }
    }

    fn error(&self, call: &Invocation, wait: Wait) -> Error {
        let (name, rate, burst) = (&self.config.name, self.config.rate, self.config.burst);
        self.site.pulse(call.started, || Event::Refusing {
            side: self.side,
            service: call.policy.service.clone(),
            reason: Reason::RateLimited,
            rule: name.clone(),
        });
        let message = match wait.retry_after {
            None => format!("rate limit `{name}` admits nothing ({rate}, burst {burst})"),
            Some(_) => format!("rate limit `{name}` of {rate}, burst {burst}, is used up"),
        };
        let error = Error::local(Reason::RateLimited, message).with_rule(name.clone());
        match wait.retry_after {
            Some(after) => error.with_retry_after(after),
            None => error,
        }
    }
}
