//! The summary of all calls.
use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use super::{Class, Load, Operation, Options, Outcome, Protocol};

/// The report on all calls.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The service called.
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The operation.
    pub operation: Operation,
    /// When calls were made.
    pub load: Load,
    /// The duration up to the last answer.
    pub seconds: f64,
    /// The start, in milliseconds since 1970.
    pub began_unix_ms: u64,
    /// The number of calls.
    pub calls: u64,
    /// The number of each class; they add up to `calls`.
    pub classes: BTreeMap<Class, u64>,
    /// The number of calls by gRPC status code.
    pub codes: BTreeMap<&'static str, u64>,
    /// The number of calls by the mechanism that refused or failed.
    pub reasons: BTreeMap<&'static str, u64>,
    /// The first message of each mechanism or code.
    pub messages: BTreeMap<&'static str, String>,
    /// Attempts that were sent to a node and have ended.
    pub attempts: u64,
    /// The instances that answered successfully.
    pub endpoints: BTreeMap<String, u64>,
    /// The labels `version` of those instances.
    pub labels: BTreeMap<String, u64>,
    /// Of successful calls, in milliseconds.
    pub latency_ok_ms: Latencies,
    /// Of all calls.
    pub latency_ms: Latencies,
    /// The largest delay of a start: more than a few milliseconds means that the generator was too slow.
    pub latest_start_ms: f64,
    /// The counts in each tenth of a second.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<Slot>,
}

/// Percentiles, in milliseconds.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)] // the names of the fields describe them
pub struct Latencies {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

/// A tenth of a second. Calls count in the slot in which they began or were due, attempts in the one in which
/// they ended.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Slot {
    pub calls: u64,
    pub ok: u64,
    pub attempts: u64,
}

/// The counts during the run.
pub(super) struct Tally {
    classes: BTreeMap<Class, u64>,
    codes: BTreeMap<&'static str, u64>,
    reasons: BTreeMap<&'static str, u64>,
    messages: BTreeMap<&'static str, String>,
    endpoints: BTreeMap<String, u64>,
    labels: BTreeMap<String, u64>,
    ok: Histogram<u64>,
    all: Histogram<u64>,
    latest: Duration,
    timeline: Vec<Slot>,
}

/// The length of a slot.
pub(crate) const SLOT: Duration = Duration::from_millis(100);
/// Latencies are accurate to a thousandth.
const DIGITS: u8 = 3;
/// In microseconds; longer latencies count as this one.
const HOUR: u64 = 3_600_000_000;

// === impl Tally ===

impl Tally {
    pub(super) fn new(time: Duration) -> Self {
        let slots = time.as_millis().div_ceil(SLOT.as_millis());
        Tally { timeline: vec![Slot::default(); slots as usize], ..Tally::default() }
    }

    /// Adds a call that began, or was due, `at` after the start.
    pub(super) fn add(&mut self, at: Duration, took: Duration, outcome: &Outcome) {
        *self.classes.entry(outcome.class).or_default() += 1;
        *self.codes.entry(outcome.code.name()).or_default() += 1;
        if let Some(reason) = outcome.reason {
            *self.reasons.entry(reason.name()).or_default() += 1;
        }
        if !outcome.message.is_empty() {
            let of = outcome.reason.map_or(outcome.code.name(), |reason| reason.name());
            self.messages.entry(of).or_insert_with(|| outcome.message.clone());
        }
        if let Some(hop) = outcome.hops.first() {
            count(&mut self.endpoints, &hop.instance);
            if !hop.version.is_empty() {
                count(&mut self.labels, &hop.version);
            }
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.all.saturating_record(micros);
        let ok = outcome.class == Class::Ok;
        if ok {
            self.ok.saturating_record(micros);
        }
        if let Some(slot) = self.slot(at) {
            slot.calls += 1;
            slot.ok += u64::from(ok);
        }
    }

    pub(super) fn late(&mut self, late: Duration) {
        self.latest = self.latest.max(late);
    }

    pub(super) fn attempts(&mut self, at: Duration, attempts: u64) {
        if let Some(slot) = self.slot(at) {
            slot.attempts += attempts;
        }
    }

    fn slot(&mut self, at: Duration) -> Option<&mut Slot> {
        self.timeline.get_mut((at.as_millis() / SLOT.as_millis()) as usize)
    }
}

impl Default for Tally {
    fn default() -> Self {
        let histogram = || Histogram::new_with_bounds(1, HOUR, DIGITS).expect("these bounds are sound");
        Tally {
            classes: BTreeMap::new(),
            codes: BTreeMap::new(),
            reasons: BTreeMap::new(),
            messages: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            labels: BTreeMap::new(),
            ok: histogram(),
            all: histogram(),
            latest: Duration::ZERO,
            timeline: Vec::new(),
        }
    }
}

/// Counts `name`; copies the name only the first time.
fn count(names: &mut BTreeMap<String, u64>, name: &str) {
    match names.get_mut(name) {
        Some(count) => *count += 1,
        None => drop(names.insert(name.to_owned(), 1)),
    }
}

// === impl Report ===

impl Report {
    pub(super) fn new(
        options: &Options,
        tally: Tally,
        attempts: u64,
        took: Duration,
        began: SystemTime,
    ) -> Self {
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let classes = Class::ALL.map(|class| (class, tally.classes.get(&class).copied().unwrap_or(0)));
        Report {
            to: options.to.clone(),
            protocol: options.protocol,
            operation: options.operation,
            load: options.load,
            seconds: took.as_secs_f64(),
            began_unix_ms: u64::try_from(began.as_millis()).unwrap_or(u64::MAX),
            calls: tally.all.len(),
            classes: classes.into(),
            codes: tally.codes,
            reasons: tally.reasons,
            messages: tally.messages,
            attempts,
            endpoints: tally.endpoints,
            labels: tally.labels,
            latency_ok_ms: Latencies::of(&tally.ok),
            latency_ms: Latencies::of(&tally.all),
            latest_start_ms: tally.latest.as_secs_f64() * 1e3,
            timeline: tally.timeline,
        }
    }

    /// The number of calls of this class.
    pub fn class(&self, class: Class) -> u64 {
        self.classes.get(&class).copied().unwrap_or(0)
    }

    /// The percentage of successful calls.
    pub fn good(&self) -> f64 {
        100.0 * self.class(Class::Ok) as f64 / self.calls.max(1) as f64
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let map = |map: &BTreeMap<&'static str, u64>| {
            map.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let own = |map: &BTreeMap<String, u64>| {
            map.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
        };
        let rate = self.calls as f64 / self.seconds.max(f64::EPSILON);
        writeln!(
            f,
            "{} calls in {:.1} s ({rate:.0}/s), {} attempts",
            self.calls, self.seconds, self.attempts
        )?;
        for class in Class::ALL {
            let name = match class {
                Class::Ok => "ok",
                Class::RefusedBeforeWork => "refused before work",
                Class::FailedNotExecuted => "failed, not executed",
                Class::MaybeExecuted => "maybe executed",
                Class::Hang => "hang",
            };
            writeln!(f, "  {name:22} {}", self.class(class))?;
        }
        writeln!(f, "codes      {}", map(&self.codes))?;
        writeln!(f, "reasons    {}", map(&self.reasons))?;
        self.messages.iter().try_for_each(|(of, said)| writeln!(f, "  {of}: {said}"))?;
        writeln!(f, "endpoints  {}", own(&self.endpoints))?;
        writeln!(f, "labels     {}", own(&self.labels))?;
        for (what, l) in [("ok", &self.latency_ok_ms), ("all", &self.latency_ms)] {
            let Latencies { mean, p50, p90, p99, p999, max } = l;
            writeln!(
                f,
                "latency, {what:4} mean {mean:.3}  p50 {p50:.3}  p90 {p90:.3}  p99 {p99:.3}  p99.9 {p999:.3}  max {max:.3} ms"
            )?;
        }
        writeln!(f, "latest start {:.1} ms after it was due", self.latest_start_ms)?;
        let timeline = self.timeline.iter().enumerate();
        timeline.filter(|(_, slot)| slot.calls + slot.attempts > 0).try_for_each(|(at, slot)| {
            let Slot { calls, ok, attempts } = slot;
            writeln!(f, "{:7.1} s  {calls} calls, {ok} ok, {attempts} attempts", at as f64 / 10.0)
        })
    }
}

// === impl Latencies ===

impl Latencies {
    fn of(micros: &Histogram<u64>) -> Self {
        let at = |quantile| micros.value_at_quantile(quantile) as f64 / 1e3;
        Latencies {
            mean: micros.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: micros.max() as f64 / 1e3,
        }
    }
}
