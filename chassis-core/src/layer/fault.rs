//! Injects faults: delays and aborts, for a share of the calls that match, until a time if one is set.
//!
//! At the `call` (the default) a fault is not hidden by retries, as in Envoy and gRPC. At the
//! `attempt` it is judged like the upstream's answer, by retries and by the service's circuit; it
//! blames no node. What is injected into calls that come in is for their caller a failure like any other of
//! this node, which may have been executed.
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tower_service::Service;

use super::{Decided, forward_ready};
use crate::{
    call::{CallError, Invocation, Reply},
    clock::Instant,
    event::Event,
    random::Random,
    site::Site,
    types::{
        Code, Details, Error, Origin, Reason,
        matching::{MatchRef, Matcher},
        units::{Ratio, Span},
    },
};

/// One fault, as people write it in `faults`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    /// Its name, in answers, metrics and logs.
    pub name: String,
    /// The service whose calls it hits on their way out. Without it, calls that come in are hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Which calls it is about. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// Holds calls up: `200ms`, or `{ from: 100ms, to: 300ms, share: 5% }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Ends calls: `{ code: UNAVAILABLE, message: …, share: 1% }` or `{ status: 503, body: … }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// The share of calls that delay and abort each hit, drawn independently. Default `100%`.
    #[serde(default = "all")]
    pub share: Ratio,
    /// Above the retries, or below them. Default `call`.
    #[serde(default)]
    pub at: At,
    /// When it is over: an RFC 3339 time in UTC, or a length of time from when it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
}

/// How long calls are held up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "a length of time as in 200ms, or a map of from, to and share")]
pub enum Delay {
    /// Always as long.
    Fixed(Span),
    /// Anything in between.
    Range(DelayRange),
}

/// A delay between two bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelayRange {
    /// The shortest.
    pub from: Span,
    /// The longest.
    pub to: Span,
    /// Its own share, in place of the fault's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Ratio>,
}

/// What is answered instead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Abort {
    /// A gRPC code by name. Default: what says the same as `status`, or UNAVAILABLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// An HTTP status. Default: what says the same as `code`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The message. Default: says that it is an injected fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The body of an HTTP answer, in place of a problem document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its own share, in place of the fault's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Ratio>,
}

/// Where a fault is injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// Above the retries: the caller sees it.
    #[default]
    Call,
    /// Below the retries: each attempt draws anew.
    Attempt,
}

/// When a fault is over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Until {
    /// At a time.
    Time(SystemTime),
    /// That long after it was first applied.
    After(Duration),
}

/// A fault as compiled.
pub struct Fault {
    /// What is in force.
    pub config: FaultConfig,
    matcher: Matcher,
    ends: Option<Instant>,
    /// Held, so that the next version finds when it all began.
    _applied: Arc<Instant>,
    counters: [prometheus::IntCounter; 2],
    site: Arc<Site>,
}

/// The faults of a policy, by where they are injected.
#[derive(Clone, Default)]
pub struct Faults {
    call: Arc<[Arc<Fault>]>,
    attempt: Arc<[Arc<Fault>]>,
}

/// Injects the faults of a policy.
#[derive(Clone, Copy, Debug)]
pub struct FaultLayer {
    at: At,
}

/// The service of [`FaultLayer`].
#[derive(Clone, Debug)]
pub struct InjectFault<S> {
    inner: S,
    with: FaultLayer,
}

fn all() -> Ratio {
    Ratio::percent(100)
}

impl FaultLayer {
    /// Injects those faults that are for this place.
    pub fn new(at: At) -> Self {
        FaultLayer { at }
    }

    /// May any fault hit `call`?
    fn is_about(&self, call: &Invocation) -> bool {
        let subject = call.subject();
        call.policy.faults.at(self.at).iter().any(|fault| fault.matcher.matches(&subject))
    }

    /// The delay and the abort that hit `call`, if any do.
    fn draw(&self, call: &Invocation) -> (Duration, Option<Error>) {
        let mut delay = Duration::ZERO;
        let mut abort = None;
        let (random, subject) = (&call.policy.common.random, call.subject());
        for fault in call.policy.faults.at(self.at) {
            if fault.is_over(call.attempt_started()) || !fault.matcher.matches(&subject) {
                continue;
            }
            let config = &fault.config;
            if let Some(by) = &config.delay
                && random.chance(by.share().unwrap_or(config.share))
            {
                delay += by.draw(random);
                fault.injected(0, call.attempt_started());
            }
            if let Some(with) = config.abort.as_ref().filter(|_| abort.is_none())
                && random.chance(with.share.unwrap_or(config.share))
            {
                abort = Some(fault.error(with));
                fault.injected(1, call.attempt_started());
            }
        }
        (delay, abort)
    }
}

impl<S> tower_layer::Layer<S> for FaultLayer {
    type Service = InjectFault<S>;
    fn layer(&self, inner: S) -> InjectFault<S> {
        InjectFault { inner, with: *self }
    }
}

impl<S> Service<Invocation> for InjectFault<S>
where
    S: Service<Invocation, Response = Reply, Error: CallError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Reply;
    type Error = S::Error;
    type Future = Decided<S::Future, S::Error>;

    forward_ready!();

    #[inline]
    fn call(&mut self, call: Invocation) -> Self::Future {
        match call.policy.faults.at(self.with.at).is_empty() {
            true => Decided::inner(self.inner.call(call)),
            false => self.drawn(call),
        }
    }
}

impl<S> InjectFault<S>
where
    S: Service<Invocation, Response = Reply, Error: CallError> + Clone + Send + 'static,
    S::Future: Send,
{
    /// Draws whether a fault hits. Apart, so that a layer without faults is a branch.
    #[inline(never)]
    fn drawn(&mut self, mut call: Invocation) -> Decided<S::Future, S::Error> {
        if !self.with.is_about(&call) {
            return Decided::inner(self.inner.call(call));
        }
        match self.with.draw(&call) {
            (Duration::ZERO, None) => Decided::inner(self.inner.call(call)),
            (Duration::ZERO, Some(error)) => Decided::refused(call.refuse(error)),
            (delay, abort) => {
                let mut inner = self.inner.clone();
                Decided::later(async move {
                    tokio::time::sleep(delay).await;
                    match abort {
                        Some(error) => Err(call.refuse(error)),
                        None => {
                            call.attempt_waited(Instant::now());
                            inner.call(call).await
                        }
                    }
                })
            }
        }
    }
}

// === impl Faults ===

impl Faults {
    /// Those that are injected there.
    pub fn at(&self, at: At) -> &[Arc<Fault>] {
        match at {
            At::Call => &self.call,
            At::Attempt => &self.attempt,
        }
    }
}

impl FromIterator<Arc<Fault>> for Faults {
    fn from_iter<I: IntoIterator<Item = Arc<Fault>>>(faults: I) -> Self {
        let (call, attempt): (Vec<_>, Vec<_>) =
            faults.into_iter().partition(|fault| fault.config.at == At::Call);
        Faults { call: call.into(), attempt: attempt.into() }
    }
}

// === impl Fault ===

impl Fault {
    /// `applied` is when a fault of this name was first applied.
    pub(crate) fn new(
        config: FaultConfig,
        matcher: Matcher,
        applied: Arc<Instant>,
        site: Arc<Site>,
    ) -> Result<Self, String> {
        if config.delay.is_none() && config.abort.is_none() {
            return Err("a fault needs a delay or an abort".to_owned());
        }
        if let Some(Delay::Range(DelayRange { from, to, .. })) = &config.delay
            && from > to
        {
            return Err(format!("a delay from {from} to {to} ends before it starts"));
        }
        if let Some(status) = config.abort.as_ref().and_then(|abort| abort.status)
            && !(200..600).contains(&status)
        {
            return Err(format!("{status} is no HTTP status to answer with; it goes from 200 to 599"));
        }
        // An end too far away to be told as a time is none.
        let ends = config.until.and_then(|until| match until {
            Until::After(span) => applied.checked_add(span),
            Until::Time(time) => {
                Instant::now().checked_add(time.duration_since(SystemTime::now()).unwrap_or_default())
            }
        });
        let counters = ["delay", "abort"].map(|kind| site.metrics.fault(&config.name, kind));
        Ok(Fault { config, matcher, ends, _applied: applied, counters, site })
    }

    fn is_over(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now >= ends)
    }

    fn injected(&self, kind: usize, now: Instant) {
        self.counters[kind].inc();
        self.site.pulse(now, || Event::FaultInjected { rule: self.config.name.clone() });
    }

    fn error(&self, abort: &Abort) -> Error {
        let name = &self.config.name;
        let from_status =
            |status| http::StatusCode::from_u16(status).map_or(Code::Unavailable, Code::from_http);
        let code = abort.code.or(abort.status.map(from_status)).unwrap_or(Code::Unavailable);
        let message = abort.message.clone().unwrap_or_else(|| format!("injected by fault `{name}`"));
        // At the attempt it stands for the upstream's answer: that one may have been worked on.
        let error = match self.config.at {
            At::Call => {
                Error::local(Reason::FaultInjected, message).with_maybe_executed(self.config.to.is_none())
            }
            At::Attempt => Error::remote(Reason::FaultInjected, message),
        };
        debug_assert_eq!(error.origin() == Origin::Local, self.config.at == At::Call);
        let details = Details { status: abort.status, body: abort.body.clone() };
        error.with_code(code).with_rule(name.clone()).with_details(details)
    }
}

impl Delay {
    fn share(&self) -> Option<Ratio> {
        match self {
            Delay::Fixed(_) => None,
            Delay::Range(range) => range.share,
        }
    }

    fn draw(&self, random: &Random) -> Duration {
        match self {
            Delay::Fixed(span) => span.0,
            Delay::Range(range) => random.between(range.from.0, range.to.0),
        }
    }
}

// === impl Until ===

impl std::str::FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Span>() {
            Ok(span) => Ok(Until::After(span.0)),
            Err(_) => humantime::parse_rfc3339(text).map(Until::Time).map_err(|_| {
                format!("`{text}` is no end; write a time as 2026-11-21T18:00:00Z, or a length of time as 2h")
            }),
        }
    }
}

impl std::fmt::Display for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Until::After(span) => Span(*span).fmt(f),
            Until::Time(time) => humantime::format_rfc3339_seconds(*time).fmt(f),
        }
    }
}

crate::types::units::text!(Until: "a time as in 2026-11-21T18:00:00Z, or a length of time as in 2h");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_times_or_lengths() {
        for text in ["2026-11-21T18:00:00Z", "1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "2h", "90s"] {
            let parsed: Until = text.parse().unwrap();
            assert_eq!(parsed.to_string().parse::<Until>().unwrap(), parsed, "{text}");
        }
        assert_eq!("2026-11-21T18:00:00Z".parse::<Until>().unwrap().to_string(), "2026-11-21T18:00:00Z");
        for text in ["2026-02-30T00:00:00Z", "2026-11-21 18:00", "tomorrow", "2026-13-01T00:00:00Z"] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }
}
