//! The circuit: its states closed, open and half-open, and the transitions between them.
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use crate::{clock::Instant, random::Random};

use self::word::{Phase, UNHEARD, Word};
pub(crate) use self::{
    config::CircuitConfig,
    state::{Admission, CircuitFigures, Refused, Transition},
    token::Token,
};
pub use self::{config::Force, state::State};
use crate::algorithm::window::{Tally, UnderWay, Window};

mod config;
#[cfg(test)]
mod model;
mod state;
mod token;
mod word;

#[cfg(test)]
mod tests;

/// A circuit, shared by all calls that it guards, without locks.
///
/// A closed circuit opens at a share of failures among the calls that ended and those that have been under way
/// for longer than the failed call took: quick failures end before slow successes, and must not be all that
/// counts.
///
/// Every admission is reported exactly once: by [`Circuit::record`] when the outcome is known, or by
/// [`Circuit::release`] if there is none. Outcomes of calls that were admitted before the latest transition are
/// ignored, except those of probes.
///
/// A half-open circuit admits a round of `probes` calls, closes when as many succeeded and opens at the first
/// failure. A probe succeeds with the head of a good answer ([`Circuit::answered`]): the rest, perhaps a long
/// stream, counts like that of any call if it fails.
///
/// If a round has not decided after `open`, at least a second and at most a minute, another round may start, so
/// that calls without an outcome, long uploads for instance, do not keep the circuit half-open. Until the
/// circuit opens again, the outcomes of earlier rounds count; after it has closed, their failures count like
/// those of any call. Ten rounds may be under way at once; after that the next one waits for a minute.
///
/// With a seed, an open circuit waits up to a tenth less than `open`, at random, so that many processes whose
/// circuits opened together do not send their probes together.
///
/// After Resilience4j and failsafe-go; another round after `open` as in Hystrix and Polly, which send one more
/// probe.
#[derive(Debug)]
pub(crate) struct Circuit {
    epoch: Instant,
    word: AtomicU64,
    window: Window,
    /// The seed of the jitter of its open times; 0 turns the jitter off.
    seed: u32,
    /// Probes of any round that were admitted and have neither an outcome nor an answer yet.
    out: AtomicU32,
    /// The era of the latest opening.
    opened: AtomicU32,
}

// === impl Circuit ===

impl Circuit {
    /// A closed circuit; its clock starts at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        let word = Word { era: 0, phase: Phase::Closed { consecutive: 0 } };
        Circuit {
            epoch: now,
            word: AtomicU64::new(word.pack()),
            window: Window::default(),
            seed: 0,
            out: AtomicU32::new(0),
            opened: AtomicU32::new(0),
        }
    }

    /// The same, with a random jitter of open times.
    pub(crate) fn with_jitter(now: Instant, random: &Random) -> Self {
        Circuit { seed: (random.next_u64() >> 32) as u32 | 1, ..Circuit::new(now) }
    }

    /// Whether a call may go out at `now`. An open circuit becomes half-open once `open` has passed.
    pub(crate) fn admit(&self, now: Instant, config: &CircuitConfig) -> Result<Admission, Refused> {
        loop {
            let (seen, word) = self.load();
            match (config.force, word.phase) {
                (Force::Open, _) => return Err(Refused { state: State::Open, retry_after: None }),
                (_, Phase::Closed { .. }) => return Ok(self.started(word.era, now, config, None)),
                (Force::Closed, _) => {
                    let token = Token { era: UNHEARD, probe: false, answered: false, at: 0 };
                    return Ok(Admission { token, moved: None });
                }
                (Force::Auto, _) => {}
            }
            let at = self.millis(now);
            let next = self.admitting(word, at, config)?;
            if next.is_closed() {
                self.window.clear();
            }
            if self.swap(seen, next) {
                let moved = word.moved_to(next);
                if next.is_closed() {
                    return Ok(self.started(next.era, now, config, moved));
                }
                self.out.fetch_add(1, Relaxed);
                let token = Token { era: next.era, probe: true, answered: false, at };
                return Ok(Admission { token, moved });
            }
        }
    }

    /// Whether [`Circuit::admit`] would admit a call. Changes nothing; for pickers.
    pub(crate) fn admits(&self, now: Instant, config: &CircuitConfig) -> bool {
        let (_, word) = self.load();
        match (config.force, word.phase) {
            (Force::Open, _) => false,
            (Force::Closed, _) | (_, Phase::Closed { .. }) => true,
            (Force::Auto, _) => self.admitting(word, self.millis(now), config).is_ok(),
        }
    }

    /// Records the outcome of an admitted call; returns the transition if there is one.
    pub(crate) fn record(
        &self,
        token: Token,
        failed: bool,
        now: Instant,
        config: &CircuitConfig,
    ) -> Option<Transition> {
        if token.probe {
            self.out.fetch_sub(1, Relaxed);
            return self.record_probe(token, failed, now, config);
        }
        if token.answered {
            return if failed { self.fails_later(now, config) } else { None };
        }
        let (millis, length) = (self.millis(now), config.window.get());
        let (_, word) = self.load();
        if word.era != token.era {
            return None;
        }
        self.window.add(failed, token.at, millis, length);
        let at_rest = word.phase == Phase::Closed { consecutive: 0 };
        if !failed && at_rest && !self.window.has_failures(millis, length) {
            return None; // the usual case: a success of a circuit without failures
        }
        loop {
            let (seen, word) = self.load();
            if word.era != token.era {
                return None;
            }
            let next = match word.phase {
                Phase::Closed { consecutive } => {
                    let consecutive = if failed { consecutive.saturating_add(1) } else { 0 };
                    // Without failures there is nothing to count.
                    let any = failed || self.window.has_failures(millis, length);
                    let which = if failed { UnderWay::SinceBefore(token.at) } else { UnderWay::All };
                    match any && config.trips(consecutive, self.window.tally(millis, length, which)) {
                        true => word.opened(millis),
                        false => Word { phase: Phase::Closed { consecutive }, ..word },
                    }
                }
                // A call failed that had succeeded as a probe.
                Phase::HalfOpen { .. } if failed => word.opened(millis),
                // A half-open circuit admits only probes, an open one nothing.
                Phase::HalfOpen { .. } | Phase::Open { .. } => return None,
            };
            if next == word {
                return None;
            }
            if self.swap(seen, next) {
                return word.moved_to(next);
            }
        }
    }

    /// Records the outcome of a probe, of the present round or an earlier one.
    #[cold]
    fn record_probe(
        &self,
        token: Token,
        failed: bool,
        now: Instant,
        config: &CircuitConfig,
    ) -> Option<Transition> {
        loop {
            let (seen, word) = self.load();
            let has_place = word.era == token.era;
            if !has_place && !self.is_since_opening(token, word) {
                return None;
            }
            let next = match word.phase {
                Phase::HalfOpen { probing, passed, since } => {
                    let probing = probing.saturating_sub(u32::from(has_place));
                    let decides = config.force == Force::Auto;
                    match (decides, failed) {
                        (true, true) => word.opened(self.millis(now)),
                        (true, false) if passed + 1 >= config.probes() => word.closed(),
                        (_, _) => {
                            let passed = passed + u32::from(decides);
                            Word { phase: Phase::HalfOpen { probing, passed, since }, ..word }
                        }
                    }
                }
                Phase::Closed { .. } if failed => return self.fails_later(now, config),
                Phase::Closed { .. } | Phase::Open { .. } => return None,
            };
            if next == word {
                return None;
            }
            if next.is_closed() {
                self.window.clear(); // before any thread can see it closed and count in it
            }
            if self.swap(seen, next) {
                return word.moved_to(next);
            }
        }
    }

    /// The head of the answer to an admitted call is good, with which a probe succeeds; returns the transition
    /// if there is one. The returned token replaces `token` for the outcome of the whole call.
    pub(crate) fn answered(
        &self,
        token: Token,
        now: Instant,
        config: &CircuitConfig,
    ) -> (Token, Option<Transition>) {
        match token.probe {
            false => (token, None),
            true => {
                let moved = self.record(token, false, now, config);
                (Token { probe: false, answered: true, ..token }, moved)
            }
        }
    }

    /// A call failed that had succeeded as a probe, or whose circuit has closed meanwhile: it counts like any
    /// other.
    #[cold]
    fn fails_later(&self, now: Instant, config: &CircuitConfig) -> Option<Transition> {
        let (_, word) = self.load();
        match word.phase {
            Phase::Open { .. } => return None,
            Phase::HalfOpen { .. } if config.force != Force::Auto => return None,
            Phase::HalfOpen { .. } | Phase::Closed { .. } => {}
        }
        let at = self.millis(now);
        self.window.start(at, config.window.get());
        self.record(Token { era: word.era, probe: false, answered: false, at }, true, now, config)
    }

    /// An admitted call has no outcome: it was cancelled, or an inner layer refused it. Frees a probe's place.
    pub(crate) fn release(&self, token: Token, config: &CircuitConfig) {
        if !token.probe {
            if !token.answered && self.load().1.era == token.era {
                self.window.cancel(token.at, config.window.get());
            }
            return;
        }
        self.out.fetch_sub(1, Relaxed);
        loop {
            let (seen, word) = self.load();
            let Phase::HalfOpen { probing, passed, since } = word.phase else { return };
            if word.era != token.era {
                return;
            }
            let phase = Phase::HalfOpen { probing: probing.saturating_sub(1), passed, since };
            if self.swap(seen, Word { phase, ..word }) {
                return;
            }
        }
    }

    /// The state. A circuit that was open for longer than `open` is reported as half-open: the next call finds
    /// it so.
    pub(crate) fn state(&self, now: Instant, config: &CircuitConfig) -> State {
        let (_, word) = self.load();
        match (config.force, word.phase) {
            (Force::Open, _) => State::Open,
            (Force::Closed, _) => State::Closed,
            (Force::Auto, Phase::Open { .. }) if self.admitting(word, self.millis(now), config).is_ok() => {
                State::HalfOpen
            }
            (Force::Auto, phase) => phase.state(),
        }
    }

    /// All figures, for inspection.
    pub(crate) fn figures(&self, now: Instant, config: &CircuitConfig) -> CircuitFigures {
        let (_, word) = self.load();
        let Tally { calls, failures, .. } =
            self.window.tally(self.millis(now), config.window.get(), UnderWay::All);
        let state = self.state(now, config);
        let (consecutive, probing) = match word.phase {
            Phase::Closed { consecutive } => (consecutive, 0),
            Phase::HalfOpen { .. } => (0, self.out.load(Relaxed)),
            Phase::Open { .. } => (0, 0),
        };
        let retry_after = match (config.force, self.admitting(word, self.millis(now), config)) {
            (Force::Auto, Err(refused)) => refused.retry_after,
            _ => None,
        };
        CircuitFigures { state, calls, failures, consecutive, probing, retry_after }
    }

    /// Admits a call to the closed circuit of `era`.
    fn started(
        &self,
        era: u32,
        now: Instant,
        config: &CircuitConfig,
        moved: Option<Transition>,
    ) -> Admission {
        let at = self.millis(now);
        self.window.start(at, config.window.get());
        Admission { token: Token { era, probe: false, answered: false, at }, moved }
    }

    /// The word after one more call was admitted to `word`, unless the circuit is forced.
    fn admitting(&self, word: Word, millis: u64, config: &CircuitConfig) -> Result<Word, Refused> {
        word.admitting(millis, config, self.seed, self.out.load(Relaxed))
    }

    /// Whether this probe was admitted after the circuit's last opening.
    fn is_since_opening(&self, token: Token, word: Word) -> bool {
        word.eras_since(token.era) < word.eras_since(self.opened.load(Relaxed))
    }

    fn millis(&self, now: Instant) -> u64 {
        now.millis_since(self.epoch)
    }

    fn load(&self) -> (u64, Word) {
        let seen = self.word.load(Acquire);
        (seen, Word::unpack(seen))
    }

    fn swap(&self, seen: u64, next: Word) -> bool {
        let swapped = self.word.compare_exchange_weak(seen, next.pack(), AcqRel, Acquire).is_ok();
        if swapped && matches!(next.phase, Phase::Open { .. }) {
            // Read in later eras only, which begin at least `open` from here.
            self.opened.store(next.era, Relaxed);
        }
        swapped
    }
}
