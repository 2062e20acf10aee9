//! The load and the history of a node: the input of balancing, and the figures of the inspection.
use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::{clock::Instant, striped::StripedCells};

/// Calls in flight, the share of failures, and the latency, without locks.
#[derive(Debug)]
pub struct Load {
    epoch: Instant,
    counts: Counts,
    /// Created by the first call that is judged: many endpoints may never be called.
    judged: StripedCells<Judged>,
}

/// The values that picks read, together: threads take turns at a cache line, so fewer lines are better.
#[derive(Debug, Default)]
#[repr(C)]
struct Counts {
    in_flight: AtomicU32,
    /// Failures since the last success.
    consecutive: AtomicU32,
    failed: AtomicU64,
    failures: Average,
    charged: Charged,
}

/// The values that only the inspection reads: each thread counts separately.
#[derive(Debug, Default)]
struct Judged {
    calls: AtomicU64,
    latencies: Histogram,
}

/// A node's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LoadFigures {
    /// The number of judged calls so far.
    pub calls: u64,
    /// The number of successes among them.
    pub successes: u64,
    /// Calls that have started and not ended.
    pub in_flight: u32,
    /// The median duration of the latest calls, within an eighth; `None` before the first.
    pub p50: Option<Duration>,
    /// The 99th percentile of the duration of the latest calls, within an eighth.
    pub p99: Option<Duration>,
    /// The value of [`Load::failure_share`].
    pub failure_share: f64,
}

/// A moving average of zeros and ones, packed: the value as `f32` above the milliseconds of its time.
#[derive(Debug, Default)]
struct Average(AtomicU64);

/// Calls that ended too early and still count as in flight, packed like an [`Average`], and their rate of
/// decay.
#[derive(Debug, Default)]
struct Charged {
    packed: AtomicU64,
    /// In milliseconds.
    fades: AtomicU32,
}

/// The usual duration of successes: an average of the latest ones, which each thread keeps separately.
#[derive(Debug, Default)]
pub(crate) struct UsualLatency(StripedCells<AtomicU64>);

/// Counts of latencies in microseconds: four buckets to every doubling, from 1 µs to two hours.
#[derive(Debug)]
struct Histogram([AtomicU32; BUCKETS]);

/// An event this long ago has a weight of a third (1/e): the τ of Finagle, linkerd and Envoy.
const DECAY: Duration = Duration::from_secs(10);

/// The minimum weight of one outcome, so that within a burst every call counts, not only its first.
const LEAST_WEIGHT: f64 = 1.0 / 64.0;

/// The maximum weight of one outcome, so that a single failure does not exclude a node with few calls.
const MOST_WEIGHT: f64 = 1.0 / 4.0;

/// A node that always fails costs nine times as much as one that never does.
const FAILURE_FACTOR: f64 = 8.0;

/// A smaller share of failures costs nothing: one old failure must not starve a node.
const NEGLIGIBLE: f64 = 0.02;

/// From this share of failures on a node counts as failing: another one is better, whatever its load.
const FAILING: f64 = 0.5;

/// With this many failures in a row a node counts as failing, however short the time that they took: the limit
/// at which Envoy and Finagle eject.
const IN_A_ROW: u32 = 5;

/// The share of failures that such a row sets. It decays to [`FAILING`] within four seconds, then the node is
/// tried again: one more failure in the same row makes it failing once more.
const SHARE_IN_A_ROW: f64 = 0.75;

/// A smaller charge counts as none.
const NO_CHARGE: f64 = 0.02;

/// The assumed duration of a success before the first one, as in Finagle, tower and linkerd: a node that
/// answers first must not look fast because it refuses.
const UNSEEN: u64 = 1_000_000_000;

/// Longer calls, such as streams, count as this long: they are no measure for other calls. linkerd's penalty.
const LONGEST: u64 = 5_000_000_000;

/// The usual latency averages this many of the latest successes.
const OF_THE_LATEST: u64 = 16;

/// While nothing fails, the time of the latest call is stored with this precision, in milliseconds: most calls
/// then write nothing. It is a tenth of the time for which [`LEAST_WEIGHT`] stands, so the difference is
/// invisible.
const PRECISION: u32 = 16;

const BUCKETS: usize = 128;

/// After this many calls of a thread all buckets are halved, so that the figures are those of the latest few
/// thousand.
const HALVE_EVERY: u64 = 4096;

// === impl Load ===

impl Load {
    /// No calls yet; the clock starts at `now`.
    pub fn new(now: Instant) -> Self {
        Load { epoch: now, counts: Counts::default(), judged: StripedCells::new() }
    }

    /// Records the start of a call.
    pub fn started(&self) {
        self.counts.in_flight.fetch_add(1, Relaxed);
    }

    /// Records that nothing of a call is in flight any more. Once for every [`Load::started`].
    pub fn ended(&self) {
        // One call too many would wrap to four billion in flight: a node that is never picked again.
        if self.counts.in_flight.fetch_sub(1, Relaxed) == 0 {
            self.counts.in_flight.fetch_add(1, Relaxed);
        }
    }

    /// Records the verdict on a call that took `latency`. Not for calls that were cancelled or not sent.
    pub fn judged(&self, success: bool, latency: Duration, now: Instant) {
        self.judged_in(success, u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), now);
    }

    /// The same, with the latency in nanoseconds.
    pub(crate) fn judged_in(&self, success: bool, latency: u64, now: Instant) {
        let judged = self.judged.cell();
        judged.latencies.add(latency / 1_000);
        if (judged.calls.fetch_add(1, Relaxed) + 1).is_multiple_of(HALVE_EVERY) {
            self.judged.cells().for_each(|judged| judged.latencies.halve());
        }
        if success {
            if self.counts.consecutive.load(Relaxed) != 0 {
                self.counts.consecutive.store(0, Relaxed);
            }
            return self.counts.failures.add(false, 0.0, self.millis(now));
        }
        self.counts.failed.fetch_add(1, Relaxed);
        let row = self.counts.consecutive.fetch_add(1, Relaxed).saturating_add(1);
        let least = if row >= IN_A_ROW { SHARE_IN_A_ROW } else { 0.0 };
        self.counts.failures.add(true, least, self.millis(now));
    }

    /// Records an unsuccessful answer after `latency`; successes take `usual` nanoseconds. Until that time has
    /// passed, the answer costs as much as a call in flight.
    pub(crate) fn charge(&self, latency: u64, usual: u64, now: Instant) {
        if latency < usual {
            self.counts.charged.add(usual - latency, usual, self.millis(now));
        }
    }

    /// The number of calls in flight.
    pub fn in_flight(&self) -> u32 {
        self.counts.in_flight.load(Relaxed)
    }

    /// The share of failures among the latest calls, from 0 to 1: an exponential average that also decays
    /// without calls, so that a node that is not picked can recover.
    pub fn failure_share(&self, now: Instant) -> f64 {
        self.counts.failures.get(self.millis(now))
    }

    /// The cost of one more call to this node, for comparison between nodes: the calls in flight and this one,
    /// up to nine times as much if calls fail. A share of failures under 2 % costs nothing.
    ///
    /// A call that ended early without success is charged for as long as a success would have taken.
    pub fn cost(&self, now: Instant) -> f64 {
        let calls = f64::from(self.in_flight()) + 1.0;
        if self.is_plain() { calls } else { self.cost_of_failures(calls, now) }
    }

    #[cold]
    fn cost_of_failures(&self, calls: f64, now: Instant) -> f64 {
        let calls = calls + self.counts.charged.get(self.millis(now));
        match self.failure_share(now) {
            share if share < NEGLIGIBLE => calls,
            share => calls * (1.0 + FAILURE_FACTOR * share),
        }
    }

    /// Whether the cost consists of the calls in flight alone.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        // Shares and charges only decrease: there is no need to compute by how much.
        self.counts.failures.is_negligible() && self.counts.charged.is_none()
    }

    /// Whether most calls failed in the latest few seconds.
    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        self.counts.failures.last() >= FAILING && self.failure_share(now) >= FAILING
    }

    /// All figures, for the inspection.
    pub(crate) fn figures(&self, now: Instant) -> LoadFigures {
        let (mut calls, mut counts) = (0u64, [0u32; BUCKETS]);
        let failed = self.counts.failed.load(Relaxed); // before the calls, which it must not exceed
        for judged in self.judged.cells() {
            calls += judged.calls.load(Relaxed);
            judged.latencies.add_to(&mut counts);
        }
        let quantile = |share| quantile(&counts, share);
        LoadFigures {
            calls,
            successes: calls.saturating_sub(failed),
            in_flight: self.in_flight(),
            p50: quantile(0.50),
            p99: quantile(0.99),
            failure_share: self.failure_share(now),
        }
    }

    /// Wraps after 49 days, which [`elapsed`] handles.
    fn millis(&self, now: Instant) -> u32 {
        now.millis_since(self.epoch) as u32
    }
}

// === impl Average ===

impl Average {
    /// Adds a one or a zero; the value is then at least `least`.
    fn add(&self, one: bool, least: f64, now: u32) {
        let mut packed = self.0.load(Relaxed);
        loop {
            let (value, then) = unpack(packed);
            if value == 0.0 && !one {
                // Nothing has failed: there is nothing to decay, only the time to be stored.
                if passed(then, now) < PRECISION {
                    return;
                }
                match self.0.compare_exchange_weak(packed, pack(0.0, latest(then, now)), Relaxed, Relaxed) {
                    Ok(_) => return,
                    Err(newer) => packed = newer,
                }
                continue;
            }
            let kept = (-elapsed(then, now).as_secs_f64() / DECAY.as_secs_f64()).exp();
            let weight = (1.0 - kept).clamp(LEAST_WEIGHT, MOST_WEIGHT);
            let value = (value * kept.min(1.0 - weight) + if one { weight } else { 0.0 }).max(least);
            match self.0.compare_exchange_weak(packed, pack(value, latest(then, now)), Relaxed, Relaxed) {
                Ok(_) => return,
                Err(newer) => packed = newer,
            }
        }
    }

    /// The value at `now`: computed, not stored, so that reading changes nothing.
    fn get(&self, now: u32) -> f64 {
        let (value, then) = unpack(self.0.load(Relaxed));
        value * (-elapsed(then, now).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    /// Whether the value was negligible when it was stored. Positive numbers have the order of their bits.
    #[inline]
    fn is_negligible(&self) -> bool {
        const NEGLIGIBLE_BITS: u32 = (NEGLIGIBLE as f32).to_bits();
        (self.0.load(Relaxed) >> 32) as u32 <= NEGLIGIBLE_BITS
    }

    /// The stored value.
    fn last(&self) -> f64 {
        unpack(self.0.load(Relaxed)).0
    }
}

// === impl Charged ===

impl Charged {
    /// Charges a call for `early` more nanoseconds, if it should have taken `usual`.
    fn add(&self, early: u64, usual: u64, now: u32) {
        // Over `usual` a charge of one call decays to a third: in total that is one call for that time.
        let fades = usual.div_ceil(1_000_000).clamp(1, u32::MAX.into()) as u32;
        let charge = early as f64 / (f64::from(fades) * 1e6);
        let faded = |packed| self.faded(packed, now) + charge;
        let _ = self.packed.fetch_update(Relaxed, Relaxed, |packed| {
            Some(pack(faded(packed), latest(unpack(packed).1, now)))
        });
        self.fades.store(fades, Relaxed);
    }

    /// The charged calls at `now`.
    fn get(&self, now: u32) -> f64 {
        let packed = self.packed.load(Relaxed);
        match self.faded(packed, now) {
            charge if charge >= NO_CHARGE => charge,
            _ => {
                // So that picks need not compute it again. A charge that another thread adds meanwhile stays.
                let _ = self.packed.compare_exchange(packed, 0, Relaxed, Relaxed);
                0.0
            }
        }
    }

    fn faded(&self, packed: u64, now: u32) -> f64 {
        if packed == 0 {
            return 0.0;
        }
        let (charge, then) = unpack(packed);
        let fades = f64::from(self.fades.load(Relaxed).max(1));
        charge * (-f64::from(passed(then, now)) / fades).exp()
    }

    fn is_none(&self) -> bool {
        self.packed.load(Relaxed) == 0
    }
}

// === impl UsualLatency ===

impl UsualLatency {
    /// Records a success of this duration.
    #[inline]
    pub(crate) fn add(&self, latency: u64) {
        let (cell, latency) = (self.0.cell(), latency.clamp(1, LONGEST));
        let average = match cell.load(Relaxed) {
            0 => latency,
            average => average - average / OF_THE_LATEST + latency / OF_THE_LATEST,
        };
        // If two threads share a cell, one value may get lost: it is an average.
        cell.store(average.max(1), Relaxed);
    }

    /// The usual duration of a success in nanoseconds.
    pub(crate) fn get(&self) -> u64 {
        let seen = self.0.cells().map(|cell| cell.load(Relaxed)).filter(|average| *average > 0);
        let (sum, count) = seen.fold((0u64, 0u64), |(sum, count), average| (sum + average, count + 1));
        sum.checked_div(count).unwrap_or(UNSEEN)
    }
}

fn pack(value: f64, millis: u32) -> u64 {
    u64::from((value as f32).to_bits()) << 32 | u64::from(millis)
}

fn unpack(packed: u64) -> (f64, u32) {
    (f64::from(f32::from_bits((packed >> 32) as u32)), packed as u32)
}

/// The time from `then` to `now` on a clock that wraps; zero if another thread was later.
fn elapsed(then: u32, now: u32) -> Duration {
    Duration::from_millis(passed(then, now).into())
}

/// The same in milliseconds.
fn passed(then: u32, now: u32) -> u32 {
    let ahead = now.wrapping_sub(then);
    if ahead > u32::MAX / 2 { 0 } else { ahead }
}

fn latest(then: u32, now: u32) -> u32 {
    if elapsed(then, now).is_zero() { then } else { now }
}

// === impl Histogram ===

impl Default for Histogram {
    fn default() -> Self {
        Histogram([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl Histogram {
    fn add(&self, micros: u64) {
        self.0[bucket(micros)].fetch_add(1, Relaxed);
    }

    fn halve(&self) {
        for count in &self.0 {
            let _ = count.fetch_update(Relaxed, Relaxed, |n| Some(n / 2));
        }
    }

    fn add_to(&self, sums: &mut [u32; BUCKETS]) {
        for (sum, count) in sums.iter_mut().zip(&self.0) {
            *sum = sum.saturating_add(count.load(Relaxed));
        }
    }
}

/// Below 4 µs one bucket per microsecond, then four to a doubling: the exponent, and the two bits after the
/// first.
fn bucket(micros: u64) -> usize {
    let Some(exponent @ 2..) = micros.checked_ilog2() else { return micros as usize };
    let step = (micros >> (exponent - 2)) & 3;
    (4 * (exponent as usize - 1) + step as usize).min(BUCKETS - 1)
}

/// The start of a bucket in microseconds: the inverse of [`bucket`].
fn start(bucket: usize) -> f64 {
    match bucket {
        0..4 => bucket as f64,
        _ => (4 + bucket % 4) as f64 * 2f64.powi(bucket as i32 / 4 - 1),
    }
}

/// The middle of the bucket that contains the `share`-th call.
fn quantile(counts: &[u32; BUCKETS], share: f64) -> Option<Duration> {
    let total: u64 = counts.iter().copied().map(u64::from).sum();
    let rank = (total as f64 * share).ceil();
    let mut passed = 0u64;
    let found = counts.iter().position(|&count| {
        passed += u64::from(count);
        count > 0 && passed as f64 >= rank
    })?;
    Some(Duration::from_secs_f64((start(found) + start(found + 1)) / 2e6))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);

    /// Judges the calls of `outcomes` (S success, F failure), one every `apart`.
    fn load(outcomes: &str, apart: Duration) -> (Load, Instant) {
        let mut now = Instant::now();
        let load = Load::new(now);
        for outcome in outcomes.chars() {
            now += apart;
            load.judged(outcome == 'S', MS, now);
        }
        (load, now)
    }

    #[track_caller]
    fn check_share(outcomes: &str, apart: Duration, expected: std::ops::Range<f64>) {
        let (load, now) = load(outcomes, apart);
        let share = load.failure_share(now);
        assert!(expected.contains(&share), "{share} is not in {expected:?}");
    }

    #[test]
    fn share_of_failures() {
        check_share("", MS, 0.0..0.000_1);
        check_share(&"S".repeat(1000), MS, 0.0..0.000_1);
        check_share(&"F".repeat(1000), MS, 0.999..1.000_1);
        check_share(&"F".repeat(1000), Duration::ZERO, 0.999..1.000_1);
        check_share(&"SSF".repeat(400), MS, 0.30..0.37);
        check_share("F", MS, 0.0..0.02);
        check_share("F", 60 * S, 0.24..0.26);
        check_share(&"F".repeat(20), S, 0.8..0.95);
    }

    #[test]
    fn failures_fade_while_nothing_is_called() {
        let (load, now) = load(&"F".repeat(1000), MS);
        assert!(load.cost(now) > 8.9);
        assert!((load.failure_share(now + 10 * S) - 0.368).abs() < 0.001);
        assert_eq!(load.cost(now + 40 * S), 1.0);
    }

    #[test]
    fn one_failure_among_many_costs_nothing() {
        let (load, now) = load("SSSSSSSSSF", 10 * MS);
        assert_eq!(load.cost(now), 1.0);
    }

    #[test]
    fn one_failure_weighs_by_when_the_call_before_it_was() {
        for (apart, expected) in [(MS, 0.0..0.02), (10 * MS, 0.0..0.02), (S, 0.09..0.1), (60 * S, 0.24..0.26)]
        {
            check_share(&("S".repeat(1000) + "F"), apart, expected);
        }
    }

    #[test]
    fn cost_counts_what_is_under_way() {
        let (load, now) = load("", MS);
        (0..3).for_each(|_| load.started());
        load.ended();
        assert_eq!((load.in_flight(), load.cost(now)), (2, 3.0));
        (0..5).for_each(|_| load.ended());
        assert_eq!((load.in_flight(), load.cost(now)), (0, 1.0));
    }

    #[test]
    fn five_failures_in_a_row_are_enough_and_fade() {
        for (outcomes, failing) in
            [("FFFF", false), ("FFFFF", true), ("FFFFSFFFF", false), ("SSSFFFFF", true)]
        {
            let (load, now) = load(outcomes, MS);
            assert_eq!(load.is_failing(now), failing, "{outcomes}");
        }
        let (load, now) = load("FFFFF", MS);
        assert!(!load.is_failing(now + 5 * S), "then it is tried again");
        load.judged(false, MS, now + 5 * S);
        assert!(load.is_failing(now + 5 * S), "and one more in the same row is enough");
        let (load, now) = self::load(&("FFFFF".to_owned() + &"S".repeat(40)), MS);
        assert!(!load.is_failing(now), "{}", load.failure_share(now));
    }

    #[test]
    fn who_ends_early_is_charged_for_the_rest() {
        let (load, now) = load("", MS);
        load.charge(1_000_000, 50_000_000, now);
        let costs = [0, 10, 50, 100, 300].map(|ms| load.cost(now + ms * MS));
        let expected = [1.98, 1.80, 1.36, 1.13, 1.0];
        assert!(costs.iter().zip(expected).all(|(cost, near)| (cost - near).abs() < 0.01), "{costs:?}");
        assert!(load.is_plain(), "it has faded");
        load.charge(50_000_000, 50_000_000, now);
        assert!(load.is_plain(), "what took as long as a success is charged nothing");
    }

    /// Under a steady stream of immediate answers, a node looks as loaded as if they had taken as long as
    /// successes.
    #[test]
    fn charges_add_up_to_what_successes_would_cost() {
        for usual in [MS, 20 * MS, S] {
            let (load, mut now) = load("", MS);
            let nanos = usual.as_nanos() as u64;
            let mut costs = Vec::new();
            for i in 0..4_000 {
                now += usual / 10;
                load.charge(0, nanos, now);
                costs.extend((i > 100).then(|| load.cost(now) - 1.0));
            }
            let mean = costs.iter().sum::<f64>() / costs.len() as f64;
            assert!((8.5..11.5).contains(&mean), "{mean} instead of ten at {usual:?}");
        }
    }

    #[test]
    fn the_usual_latency_is_that_of_the_latest_successes() {
        let usual = UsualLatency::default();
        assert_eq!(usual.get(), UNSEEN);
        (0..1_000).for_each(|_| usual.add(7_000_000));
        assert!(usual.get().abs_diff(7_000_000) < 100);
        (0..100).for_each(|_| usual.add(1_000_000));
        assert!(usual.get().abs_diff(1_000_000) < 20_000, "{}", usual.get());
        (0..1_000).for_each(|_| usual.add(u64::MAX));
        assert!(usual.get() <= LONGEST);
    }

    #[test]
    fn an_earlier_now_changes_no_time() {
        let (load, now) = load(&"F".repeat(100), 100 * MS);
        let before = load.failure_share(now);
        load.judged(false, MS, now - S);
        assert!(load.failure_share(now) >= before);
    }

    #[test]
    fn buckets_are_in_order_and_hold_what_they_say() {
        for micros in (0..5_000).chain([1 << 20, 3 << 30, 8_000_000_000]) {
            let i = bucket(micros);
            assert!(start(i) <= micros as f64 && (micros as f64) < start(i + 1), "{micros} in {i}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_within_an_eighth() {
        let now = Instant::now();
        let load = Load::new(now);
        assert_eq!(load.figures(now).p50, None);
        (1..=1000).for_each(|i| load.judged(true, i * MS, now));
        let figures = load.figures(now);
        let near =
            |got: Option<Duration>, ms: f64| (got.unwrap().as_secs_f64() * 1e3 / ms - 1.0).abs() < 0.125;
        assert!(near(figures.p50, 500.0) && near(figures.p99, 990.0), "{figures:?}");
        assert_eq!((figures.calls, figures.successes, figures.failure_share), (1000, 1000, 0.0));
    }

    #[test]
    fn quantiles_are_those_of_the_latest_calls() {
        let now = Instant::now();
        let load = Load::new(now);
        (0..100_000).for_each(|_| load.judged(true, S, now));
        (0..20_000).for_each(|_| load.judged(true, MS, now));
        assert!(load.figures(now).p50.unwrap() < 2 * MS);
    }

    #[test]
    fn is_small_until_it_is_called() {
        assert!(size_of::<Load>() <= 64, "{}", size_of::<Load>());
        let (load, now) = load("", MS);
        load.started();
        load.ended();
        assert_eq!((load.figures(now).p50, load.judged.cells().next().is_none()), (None, true));
    }

    #[test]
    fn no_count_is_lost_between_threads() {
        let now = Instant::now();
        let load = Load::new(now);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..5_000 {
                        load.started();
                        load.judged(i % 2 == 0, MS, now);
                        load.ended();
                    }
                });
            }
        });
        let figures = load.figures(now);
        assert_eq!((figures.calls, figures.successes, figures.in_flight), (20_000, 10_000, 0));
    }
}
