//! Compiles `faults`.
use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{Abort, At, Delay, DelayRange, FaultConfig, Until};
use crate::{
    clock::Instant,
    event::Event,
    reporter::Reporter,
    rule::Level,
    types::{Code, Details, Error, Origin, Reason, matching::Matcher},
};

/// A compiled fault.
pub(crate) struct Fault {
    /// The settings in force.
    pub config: FaultConfig,
    pub(super) matcher: Matcher,
    ends: Option<Instant>,
    /// Kept so that the next version finds the time at which the fault was first applied.
    _applied: Arc<Instant>,
    counters: [prometheus::IntCounter; 2],
    reporter: Arc<Reporter>,
}

/// A fault, in `inspect`.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FaultView {
    /// Its name.
    pub name: String,
    /// The service whose outgoing calls it hits; `None`: incoming calls.
    pub to: Option<String>,
    /// Whether its time has passed: it hits no calls any more.
    pub is_over: bool,
    /// How long it still hits calls; `None`: without end.
    pub remaining: Option<Duration>,
    /// Calls that it delayed.
    pub delayed: u64,
    /// Calls that it ended.
    pub aborted: u64,
}

/// The faults of a policy, by their place.
#[derive(Clone, Default)]
pub(crate) struct Faults {
    call: Arc<[Arc<Fault>]>,
    attempt: Arc<[Arc<Fault>]>,
}

impl Faults {
    /// The faults of `all` that hit calls to `service`; `None` means incoming calls.
    pub(crate) fn of(all: &[Arc<Fault>], service: Option<&str>) -> Self {
        all.iter().filter(|fault| fault.config.to.as_deref() == service).cloned().collect()
    }

    /// The faults that are injected at this place.
    pub(crate) fn at(&self, at: At) -> &[Arc<Fault>] {
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

impl Fault {
    /// `applied` is the time at which a fault of this name was first applied.
    fn new(
        config: FaultConfig,
        matcher: Matcher,
        applied: Arc<Instant>,
        reporter: Arc<Reporter>,
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
        // An end too far away to be represented counts as none.
        let ends = config.until.and_then(|until| match until {
            Until::After(span) => applied.checked_add(span),
            Until::Time(time) => {
                Instant::now().checked_add(time.duration_since(SystemTime::now()).unwrap_or_default())
            }
        });
        let counters = ["delay", "abort"].map(|kind| reporter.metrics.fault(&config.name, kind));
        Ok(Fault { config, matcher, ends, _applied: applied, counters, reporter })
    }

    /// For the inspection.
    pub(crate) fn view(&self, now: Instant) -> FaultView {
        let [delayed, aborted] = [0, 1].map(|kind: usize| self.counters[kind].get());
        FaultView {
            name: self.config.name.clone(),
            to: self.config.to.clone(),
            is_over: self.is_over(now),
            remaining: self.ends.map(|ends| Duration::from_nanos(ends.nanos_since(now))),
            delayed,
            aborted,
        }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.ends.is_some_and(|ends| now >= ends)
    }

    pub(super) fn injected(&self, kind: usize, now: Instant) {
        self.counters[kind].inc();
        self.reporter.emit_throttled(now, || Event::FaultInjected { rule: self.config.name.clone() });
    }

    pub(super) fn error(&self, abort: &Abort) -> Error {
        let name = &self.config.name;
        let from_status =
            |status| http::StatusCode::from_u16(status).map_or(Code::Unavailable, Code::from_http);
        let code = abort.code.or(abort.status.map(from_status)).unwrap_or(Code::Unavailable);
        let message = abort.message.clone().unwrap_or_else(|| format!("injected by fault `{name}`"));
        // At the attempt it replaces the upstream's answer, so the call may have been executed.
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

/// Compiles the faults of a version, for all services.
///
/// State: the time at which a fault was first applied, by its name and its end. An end that is a length of time
/// counts from then.
pub(crate) fn rules(configs: &[FaultConfig], level: &mut Level<'_>) -> Arc<[Arc<Fault>]> {
    let mut faults = Vec::new();
    for (i, config) in configs.iter().enumerate() {
        if configs[..i].iter().any(|earlier| earlier.name == config.name) {
            let message = format!("a second fault is called `{}`; each rule needs its own name", config.name);
            level.problem(&format!("[{i}].name"), message);
        }
        let matcher = level.matcher(&format!("[{i}].match"), config.matching.as_ref());
        let until = config.until.map(|until| until.to_string()).unwrap_or_default();
        let key = format!("fault/{}/{until}", config.name);
        let applied = level.environment.states.cell(&key, Instant::now);
        match Fault::new(config.clone(), matcher, applied, level.reporter()) {
            Ok(fault) => faults.push(Arc::new(fault)),
            Err(message) => level.problem(&format!("[{i}]"), message),
        }
    }
    faults.into()
}
