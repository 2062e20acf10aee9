//! Compares a circuit with a model of it under random schedules.
use std::{num::NonZeroU32, time::Duration};

use super::{word::*, *};
use crate::{
    layer::breaker::BreakerConfig,
    random::Random,
    types::units::{PositiveSpan, Ratio},
};

pub(super) fn defaults() -> CircuitConfig {
    BreakerConfig::default().circuit()
}

pub(super) fn count(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// The circuit in its simplest form: for one thread, with a list as the window.
#[derive(Debug)]
struct Model {
    state: ModelState,
    era: u32,
    /// The end of each call, in milliseconds, and whether it failed.
    ended: Vec<(u64, bool)>,
    /// The starts of the calls that are under way.
    under_way: Vec<u64>,
    consecutive: u32,
    /// Probes without an outcome.
    out: u32,
    /// The era of the latest opening.
    opened: u32,
}

/// The era, whether the call is a probe, and the time of its admission.
type Known = (u32, bool, u64);

#[derive(Clone, Copy, Debug)]
enum ModelState {
    Closed,
    Open { since: u64 },
    HalfOpen { out: u32, passed: u32, since: u64 },
}

impl Model {
    /// The token's era, and whether the call is a probe.
    fn admit(&mut self, now: u64, config: &CircuitConfig) -> Option<Known> {
        let probes = config.probes.get();
        match self.state {
            _ if config.force == Force::Open => return None,
            ModelState::Closed => return Some(self.started(now)),
            _ if config.force == Force::Closed => return Some((UNHEARD, false, 0)),
            ModelState::Open { since } if now < since + config.open.get().as_millis() as u64 => return None,
            ModelState::Open { .. } => self.go(ModelState::HalfOpen { out: 1, passed: 0, since: now }),
            ModelState::HalfOpen { passed, .. } if passed >= probes => {
                self.close();
                return Some(self.started(now));
            }
            ModelState::HalfOpen { ref mut out, passed, ref mut since } if *out + passed < probes => {
                *since = if *out == 0 { now } else { *since };
                *out += 1;
            }
            ModelState::HalfOpen { passed, since, .. }
                if now - since / 64 * 64 >= self.round(passed, config) =>
            {
                self.go(ModelState::HalfOpen { out: 1, passed, since: now });
            }
            ModelState::HalfOpen { .. } => return None,
        }
        self.out += 1;
        Some((self.era, true, now))
    }

    /// The length of a round of probes in which `passed` have succeeded.
    fn round(&self, passed: u32, config: &CircuitConfig) -> u64 {
        match self.out + config.probes.get() - passed > 10 * config.probes.get() {
            true => 60_000,
            false => (config.open.get().as_millis() as u64).clamp(1_000, 60_000),
        }
    }

    fn started(&mut self, now: u64) -> Known {
        self.under_way.push(now);
        (self.era, false, now)
    }

    fn over(&mut self, started: u64) {
        let found = self.under_way.iter().position(|at| *at == started).unwrap();
        self.under_way.swap_remove(found);
    }

    fn record(&mut self, (era, probe, at): Known, failed: bool, now: u64, config: &CircuitConfig) {
        self.out -= u32::from(probe);
        if probe && era != self.era && era > self.opened {
            match &mut self.state {
                ModelState::HalfOpen { .. } if config.force != Force::Auto => {}
                ModelState::HalfOpen { .. } if failed => self.open(now),
                ModelState::HalfOpen { passed, .. } => {
                    *passed += 1;
                    if *passed >= config.probes.get() {
                        self.close();
                    }
                }
                ModelState::Closed if failed => {
                    let known = self.started(now);
                    self.record(known, true, now, config);
                }
                ModelState::Closed => {}
                ModelState::Open { .. } => unreachable!("it opened after the probe was admitted"),
            }
            return;
        }
        if era != self.era {
            return;
        }
        match &mut self.state {
            ModelState::HalfOpen { out, .. } if config.force != Force::Auto => *out -= 1,
            ModelState::HalfOpen { .. } if failed => self.open(now),
            ModelState::HalfOpen { out, passed, .. } => {
                (*out, *passed) = (*out - 1, *passed + 1);
                if *passed >= config.probes.get() {
                    self.close();
                }
            }
            ModelState::Closed => {
                assert!(!probe);
                self.over(at);
                self.ended.push((now, failed));
                self.consecutive = if failed { self.consecutive + 1 } else { 0 };
                let (length, width) = (config.window.get().as_millis() as u64, BUCKET_MS);
                let inside = self.ended.iter().filter(|(at, _)| now - at / width * width < length);
                let (calls, failures) =
                    inside.fold((0, 0), |(calls, failures), (_, f)| (calls + 1, failures + u32::from(*f)));
                let in_a_row = config.consecutive > 0 && self.consecutive >= config.consecutive;
                // The calls under way that started no later than the call that failed: to the precision of
                // buckets, and without the call's own bucket if the call took longer than one lasts.
                let bucket = |at: u64| at / width * width;
                let before = if now - at >= width { bucket(at) } else { at + 1 };
                let waits = |at: &&u64| now - bucket(**at) < length && (!failed || bucket(**at) < before);
                let under_way = self.under_way.iter().filter(waits).count() as u32;
                let ratio = f64::from(failures) / f64::from(calls + under_way);
                let by_ratio = calls >= config.min_calls.get() && ratio >= config.failure_ratio.get();
                if config.force == Force::Auto && (in_a_row || by_ratio) {
                    self.open(now);
                }
            }
            ModelState::Open { .. } => unreachable!("no token is of an open circuit's era"),
        }
    }

    fn release(&mut self, (era, probe, at): Known) {
        self.out -= u32::from(probe);
        match &mut self.state {
            _ if era != self.era => {}
            ModelState::HalfOpen { out, .. } => *out -= 1,
            ModelState::Closed => self.over(at),
            ModelState::Open { .. } => unreachable!("no token is of an open circuit's era"),
        }
    }

    fn open(&mut self, now: u64) {
        self.go(ModelState::Open { since: now });
        self.opened = self.era;
    }

    fn close(&mut self) {
        self.ended.clear();
        self.under_way.clear();
        self.consecutive = 0;
        self.go(ModelState::Closed);
    }

    fn go(&mut self, to: ModelState) {
        (self.state, self.era) = (to, self.era + 1);
    }
}

const BUCKET_MS: u64 = 100;

/// Runs one random schedule of calls that overlap, end, are cancelled or never end, under settings that change,
/// on a clock that steps; then checks that the circuit still closes. Returns the highest number of probes under
/// way.
fn schedule(seed: u64) -> usize {
    let random = Random::seeded(seed);
    let pick = |from: &[u32]| from[random.below(from.len())];
    let mut config = CircuitConfig {
        failure_ratio: Ratio::percent(pick(&[10, 50, 100]) as u8),
        min_calls: count(pick(&[1, 4, 10])),
        consecutive: pick(&[0, 0, 2, 5]),
        window: PositiveSpan::from_millis(10 * BUCKET_MS),
        open: PositiveSpan::from_millis(u64::from(pick(&[1, 70, 500]))),
        probes: count(pick(&[1, 2, 5])),
        ..defaults()
    };
    let start = Instant::now();
    let circuit = Circuit::new(start);
    let closed = ModelState::Closed;
    let (ended, under_way) = (Vec::new(), Vec::new());
    let mut model = Model { state: closed, era: 0, ended, under_way, consecutive: 0, out: 0, opened: 0 };
    let mut millis = 0u64;
    let mut out: Vec<(Token, Known)> = Vec::new();
    let mut most = 0;
    let failing = Ratio::percent(pick(&[5, 40, 95]) as u8);

    for step in 0..120 {
        let now = start + Duration::from_millis(millis);
        let drawn = if out.is_empty() { None } else { Some(random.below(out.len())) };
        match (random.below(20), drawn) {
            (0..8, _) | (8..16, None) => {
                let would = circuit.admits(now, &config);
                let got = circuit.admit(now, &config).ok();
                let expected = model.admit(millis, &config);
                let said =
                    got.map(|admission| (admission.token.era, admission.token.probe, admission.token.at));
                assert_eq!(said, expected, "seed {seed}, step {step}: admit, {model:?}");
                assert_eq!(would, expected.is_some(), "seed {seed}, step {step}: admits");
                out.extend(got.map(|admission| admission.token).zip(expected));
            }
            (8..13, Some(i)) => {
                let (token, known) = out.swap_remove(i);
                let failed = random.chance(failing);
                circuit.record(token, failed, now, &config);
                model.record(known, failed, millis, &config);
            }
            (13..16, Some(i)) => {
                let (token, known) = out.swap_remove(i);
                circuit.release(token, &config);
                model.release(known);
            }
            (16..18, _) => millis += u64::from(pick(&[1, 30, 100, 600, 20_000])),
            (18, _) => config.force = [Force::Auto, Force::Auto, Force::Open, Force::Closed][random.below(4)],
            _ => config.probes = count(pick(&[1, 2, 5])),
        }
        let state = match model.state {
            ModelState::Closed => State::Closed,
            ModelState::Open { .. } => State::Open,
            ModelState::HalfOpen { .. } => State::HalfOpen,
        };
        let (_, word) = circuit.load();
        assert_eq!(word.phase.state(), state, "seed {seed}, step {step}: {model:?}");
        if let Phase::HalfOpen { probing, .. } = word.phase {
            let held = out.iter().filter(|(token, _)| token.era == word.era).count();
            assert_eq!(held, probing as usize, "seed {seed}, step {step}: places and probes");
        }
        let probes = out.iter().filter(|(token, _)| token.probe).count();
        assert_eq!(circuit.out.load(Relaxed), probes as u32, "seed {seed}, step {step}: probes under way");
        most = most.max(probes);
    }

    // Calls that never end must not matter.
    (config.force, config.consecutive) = (Force::Auto, 0);
    config.min_calls = count(1_000);
    let now = start + Duration::from_millis(millis) + config.open.get() + LONGEST_ROUND;
    for _ in 0..config.probes.get() {
        let admission = circuit.admit(now, &config).unwrap_or_else(|_| panic!("seed {seed}: wedged"));
        circuit.record(admission.token, false, now, &config);
    }
    assert_eq!(circuit.state(now, &config), State::Closed, "seed {seed}: wedged");
    most
}

#[test]
fn ten_thousand_schedules_go_as_in_the_model() {
    let most = (0..10_000).map(schedule).max().unwrap();
    assert!((6..=60).contains(&most), "several rounds, and not all there could be: {most}");
}
