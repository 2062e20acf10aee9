//! The circuit: its states closed, open and half-open, and the transitions between them.
use std::{
    sync::atomic::{
        AtomicU32, AtomicU64,
        Ordering::{AcqRel, Acquire, Relaxed},
    },
    time::Duration,
};

use crate::{clock::Instant, random::Random};
use serde::Serialize;

pub use self::config::{BreakerConfig, BreakerPatch, Force, Scope};
use self::word::{ERA_BITS, Phase, UNHEARD, Word, mask};
use crate::algorithm::window::{Tally, UnderWay, Window};

mod config;
#[cfg(test)]
mod model;
mod word;

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Calls are admitted and counted.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls are admitted; their outcomes decide.
    HalfOpen,
}

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
///
/// ```
/// use chassis_core::layer::breaker::{BreakerConfig, Circuit, State};
/// use chassis_core::clock::Instant;
///
/// let (config, now) = (BreakerConfig { consecutive: 1, ..Default::default() }, Instant::now());
/// let circuit = Circuit::new(now);
/// let admission = circuit.admit(now, &config).unwrap();
/// circuit.record(admission.token, true, now, &config);
/// assert_eq!(circuit.admit(now, &config).unwrap_err().state, State::Open);
/// ```
#[derive(Debug)]
pub struct Circuit {
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

/// A call was admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    /// To be passed back with the outcome.
    pub token: Token,
    /// The transition, if admitting the call caused one.
    pub moved: Option<Transition>,
}

/// Identifies an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    era: u32,
    probe: bool,
    /// The call was a probe, and its answer has a good head.
    answered: bool,
    /// The time of the admission, in milliseconds on the circuit's clock.
    at: u64,
}

/// A call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// `Open`, or `HalfOpen` with all its probes under way.
    pub state: State,
    /// The time until the circuit admits a probe, if that is known.
    pub retry_after: Option<Duration>,
}

/// A change of a circuit's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state now.
    pub to: State,
}

/// A circuit's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitFigures {
    /// The state.
    pub state: State,
    /// Calls that ended in the window; while open, those that opened it, as far as they are still in the
    /// window.
    pub calls: u32,
    /// Failed calls among them.
    pub failures: u32,
    /// Failures in a row; 0 unless closed.
    pub consecutive: u32,
    /// Probes under way, those of earlier rounds included; 0 unless half-open.
    pub probing: u32,
    /// The time for which it still refuses; `None` unless open, or if forced open.
    pub retry_after: Option<Duration>,
}

/// The lowest bits of a token: whether it is a probe's, and whether the probe has an answer.
const TOKEN_FLAGS: u32 = 2;

/// The first bit of a token above its era.
const TOKEN_ERA_END: u32 = TOKEN_FLAGS + ERA_BITS + 1;

/// The latest admission time that a token can hold: after 69 years. One less than fits, so that no token
/// consists of ones only.
const LATEST: u64 = mask(64 - TOKEN_ERA_END) - 1;

// === impl Circuit ===

impl Circuit {
    /// A closed circuit; its clock starts at `now`.
    pub fn new(now: Instant) -> Self {
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
    pub fn with_jitter(now: Instant, random: &Random) -> Self {
        Circuit { seed: (random.next_u64() >> 32) as u32 | 1, ..Circuit::new(now) }
    }

    /// Whether a call may go out at `now`. An open circuit becomes half-open once `open` has passed.
    pub fn admit(&self, now: Instant, config: &BreakerConfig) -> Result<Admission, Refused> {
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
    pub fn admits(&self, now: Instant, config: &BreakerConfig) -> bool {
        let (_, word) = self.load();
        match (config.force, word.phase) {
            (Force::Open, _) => false,
            (Force::Closed, _) | (_, Phase::Closed { .. }) => true,
            (Force::Auto, _) => self.admitting(word, self.millis(now), config).is_ok(),
        }
    }

    /// Records the outcome of an admitted call; returns the transition if there is one.
    pub fn record(
        &self,
        token: Token,
        failed: bool,
        now: Instant,
        config: &BreakerConfig,
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
        config: &BreakerConfig,
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
    pub fn answered(
        &self,
        token: Token,
        now: Instant,
        config: &BreakerConfig,
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
    fn fails_later(&self, now: Instant, config: &BreakerConfig) -> Option<Transition> {
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
    pub fn release(&self, token: Token, config: &BreakerConfig) {
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
    pub fn state(&self, now: Instant, config: &BreakerConfig) -> State {
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
    pub fn figures(&self, now: Instant, config: &BreakerConfig) -> CircuitFigures {
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
        config: &BreakerConfig,
        moved: Option<Transition>,
    ) -> Admission {
        let at = self.millis(now);
        self.window.start(at, config.window.get());
        Admission { token: Token { era, probe: false, answered: false, at }, moved }
    }

    /// The word after one more call was admitted to `word`, unless the circuit is forced.
    fn admitting(&self, word: Word, millis: u64, config: &BreakerConfig) -> Result<Word, Refused> {
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

// === impl Token ===

impl Token {
    /// As one number, for places that only hold a number.
    pub fn to_bits(self) -> u64 {
        let flags = u64::from(self.answered) << 1 | u64::from(self.probe);
        self.at.min(LATEST) << TOKEN_ERA_END | u64::from(self.era) << TOKEN_FLAGS | flags
    }

    /// The inverse of [`Token::to_bits`].
    pub fn from_bits(bits: u64) -> Self {
        let era = (bits >> TOKEN_FLAGS & mask(ERA_BITS + 1)) as u32;
        Token { era, probe: bits & 1 == 1, answered: bits & 2 == 2, at: bits >> TOKEN_ERA_END }
    }

    /// Whether the call was admitted as a probe.
    pub fn is_probe(self) -> bool {
        self.probe
    }
}

// === impl State, Scope ===

impl State {
    /// `closed`, `open` or `half-open`.
    pub fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half-open",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Scope {
    /// `service`, `operation` or `endpoint`.
    pub fn name(self) -> &'static str {
        match self {
            Scope::Service => "service",
            Scope::Operation => "operation",
            Scope::Endpoint => "endpoint",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};

    use super::{config::count, *};
    use crate::{
        random::Random,
        types::units::{PositiveSpan, Ratio},
    };

    const S: Duration = Duration::from_secs(1);

    fn three_in_a_row() -> BreakerConfig {
        BreakerConfig { consecutive: 3, min_calls: count(1_000), probes: count(1), ..Default::default() }
    }

    /// Feeds `events` (S success, F failure, w a cool-down) to a circuit and compares its state after each (c
    /// closed, o open, h half-open). Calls that are refused have no outcome.
    #[track_caller]
    fn check(config: BreakerConfig, events: &str, states: &str) {
        let mut now = Instant::now();
        let circuit = Circuit::new(now);
        let got: String = events
            .chars()
            .map(|event| {
                match (event, circuit.admit_unless(event == 'w', now, &config)) {
                    ('w', _) => now += config.open.get(),
                    (event, Some(token)) => _ = circuit.record(token, event == 'F', now, &config),
                    _ => {}
                }
                letter(circuit.state(now, &config))
            })
            .collect();
        assert_eq!(got, states, "{events}");
    }

    impl Circuit {
        fn admit_unless(&self, not: bool, now: Instant, config: &BreakerConfig) -> Option<Token> {
            if not { None } else { self.admit(now, config).ok().map(|admission| admission.token) }
        }
    }

    /// Makes this many calls that fail.
    fn fail(circuit: &Circuit, times: u32, now: Instant, config: &BreakerConfig) -> Vec<Transition> {
        let call = |_| circuit.record(circuit.admit(now, config).unwrap().token, true, now, config);
        (0..times).filter_map(call).collect()
    }

    fn letter(state: State) -> char {
        match state {
            State::Closed => 'c',
            State::Open => 'o',
            State::HalfOpen => 'h',
        }
    }

    #[test]
    fn opens_on_the_third_failure_in_a_row() {
        check(three_in_a_row(), "FFSFFF", "ccccco");
    }

    #[test]
    fn one_good_probe_closes_it() {
        check(three_in_a_row(), "FFFwS", "ccohc");
    }

    #[test]
    fn one_bad_probe_opens_it_again() {
        check(three_in_a_row(), "FFFwFwS", "ccohohc");
    }

    #[test]
    fn as_many_probes_as_are_asked_for() {
        let config = BreakerConfig { probes: count(3), ..three_in_a_row() };
        check(config.clone(), "FFFwSSS", "ccohhhc");
        check(config, "FFFwSSF", "ccohhho");
    }

    #[test]
    fn opens_on_a_ratio_over_a_minimum_of_calls() {
        let config = BreakerConfig { min_calls: count(4), ..Default::default() };
        check(config.clone(), "FFF", "ccc");
        check(config.clone(), "FFFF", "ccco");
        check(config.clone(), "SSFF", "ccco");
        check(config.clone(), "FFSS", "ccco"); // a success too can be the fourth call
        check(config.clone(), "SSSFFF", "ccccco");
        check(BreakerConfig { failure_ratio: Ratio::percent(100), ..config.clone() }, "SFFFF", "ccccc");
        check(BreakerConfig { failure_ratio: Ratio::percent(0), ..config }, "SSSSF", "cccco");
    }

    /// Calls of two kinds, one every millisecond in turn: `quick` of them fail after a millisecond, the others
    /// succeed after `slow`. Compares whether the circuit opens before the first success.
    #[track_caller]
    fn check_quick_failures(quick: usize, of: usize, slow: Duration, opens: bool) {
        let (config, start) = (BreakerConfig::default(), Instant::now());
        let circuit = Circuit::new(start);
        let mut failing = None;
        for i in 0..slow.as_millis() as usize {
            let now = start + Duration::from_millis(i as u64);
            if let Some(token) = failing.take() {
                circuit.record(token, true, now, &config);
            }
            let Ok(Admission { token, .. }) = circuit.admit(now, &config) else { break };
            failing = (i * quick % of < quick).then_some(token);
        }
        let state = circuit.state(start + slow, &config);
        assert_eq!(state == State::Open, opens, "{quick} of {of}, {slow:?}");
    }

    #[test]
    fn quick_failures_do_not_outrun_slow_successes() {
        for slow in [200, 1_500, 4_000].map(Duration::from_millis) {
            check_quick_failures(1, 3, slow, false);
            check_quick_failures(9, 20, slow, false);
            check_quick_failures(12, 20, slow, true);
            check_quick_failures(1, 1, slow, true);
        }
    }

    /// Calls that all end at their time-out open the circuit with the twentieth, within a tenth of the window.
    #[test]
    fn calls_under_way_do_not_hide_a_black_hole() {
        for timeout in [50, 300, 1_000, 5_000, 30_000].map(Duration::from_millis) {
            let (config, start) = (BreakerConfig::default(), Instant::now());
            let circuit = Circuit::new(start);
            let mut under_way = std::collections::VecDeque::new();
            let opened = (0..40_000).map(|i| start + Duration::from_millis(2 * i)).find(|now| {
                if under_way.front().is_some_and(|(at, _)| *at + timeout <= *now) {
                    let (_, token) = under_way.pop_front().unwrap();
                    circuit.record(token, true, *now, &config);
                }
                match circuit.admit(*now, &config) {
                    Ok(admission) => under_way.push_back((*now, admission.token)),
                    Err(_) => return true,
                }
                false
            });
            let late = opened.unwrap() - (start + timeout);
            assert!(late <= S, "{timeout:?}: {late:?} after the first time-out");
        }
    }

    #[test]
    fn streams_that_live_on_do_not_hold_it_closed() {
        let (config, start) = (BreakerConfig::default(), Instant::now());
        let circuit = Circuit::new(start);
        let streams: Vec<_> = (0..1_000).map(|_| circuit.admit(start, &config).unwrap()).collect();
        fail(&circuit, 20, start + 11 * S, &config);
        assert_eq!(circuit.state(start + 11 * S, &config), State::Open);
        streams.into_iter().for_each(|stream| circuit.release(stream.token, &config));
    }

    #[test]
    fn what_is_cancelled_is_not_under_way() {
        let (config, now) = (BreakerConfig::default(), Instant::now());
        let circuit = Circuit::new(now);
        for _ in 0..1_000 {
            circuit.release(circuit.admit(now, &config).unwrap().token, &config);
        }
        fail(&circuit, 20, now, &config);
        assert_eq!(circuit.state(now, &config), State::Open);
    }

    #[test]
    fn tokens_keep_what_they_hold() {
        for token in [
            Token { era: mask(ERA_BITS) as u32, probe: true, answered: false, at: 0 },
            Token { era: 0, probe: false, answered: true, at: LATEST },
            Token { era: UNHEARD, probe: false, answered: false, at: 0 },
        ] {
            assert_eq!(Token::from_bits(token.to_bits()), token);
        }
        assert!(Token { era: UNHEARD, probe: true, answered: true, at: u64::MAX }.to_bits() < u64::MAX);
    }

    #[test]
    fn opens_whichever_threads_saw_the_calls() {
        let config = BreakerConfig { consecutive: 1_000, ..Default::default() };
        assert_eq!((config.min_calls.get(), config.failure_ratio), (20, Ratio::percent(50)));
        let now = Instant::now();
        let circuit = Circuit::new(now);
        let call = |failed| circuit.record(circuit.admit(now, &config).unwrap().token, failed, now, &config);
        let elsewhere = |failed| std::thread::scope(|scope| scope.spawn(|| call(failed)).join().unwrap());
        for i in 0..19 {
            assert_eq!(elsewhere(i % 2 == 1), None, "call {i}");
        }
        assert_eq!(circuit.figures(now, &config).calls, 19);
        assert!(elsewhere(true).is_some_and(|moved| moved.to == State::Open));
    }

    #[test]
    fn closing_forgets_what_opened_it() {
        let config = BreakerConfig { min_calls: count(4), probes: count(1), ..Default::default() };
        check(config, "FFFFwSFFF", "cccohcccc");
    }

    #[test]
    fn old_failures_slide_out() {
        let config = BreakerConfig { min_calls: count(4), ..Default::default() };
        check(config, "FFFwwF", "cccccc");
    }

    #[test]
    fn by_hand() {
        let mut config = three_in_a_row();
        check(BreakerConfig { force: Force::Open, ..config.clone() }, "SwS", "ooo");
        check(BreakerConfig { force: Force::Closed, ..config.clone() }, "FFFFFF", "cccccc");

        let now = Instant::now();
        let circuit = Circuit::new(now);
        fail(&circuit, 3, now, &config);
        config.force = Force::Closed;
        let token = circuit.admit(now, &config).unwrap().token;
        assert_eq!(circuit.record(token, false, now, &config), None);
        assert_eq!(circuit.state(now, &config), State::Closed);
        config.force = Force::Auto;
        assert_eq!(circuit.state(now, &config), State::Open, "goes on from where it was");
    }

    #[test]
    fn says_when_to_come_back() {
        let (config, now) = (three_in_a_row(), Instant::now());
        let circuit = Circuit::new(now);
        let moves = fail(&circuit, 3, now, &config);
        assert_eq!(moves, [Transition { from: State::Closed, to: State::Open }]);
        let refused = circuit.admit(now + 2 * S, &config).unwrap_err();
        assert_eq!(refused, Refused { state: State::Open, retry_after: Some(3 * S) });
        assert!(!circuit.admits(now + 2 * S, &config) && circuit.admits(now + 5 * S, &config));

        let probe = circuit.admit(now + 5 * S, &config).unwrap();
        assert_eq!(probe.moved, Some(Transition { from: State::Open, to: State::HalfOpen }));
        assert!(probe.token.is_probe());
        assert_eq!(Token::from_bits(probe.token.to_bits()), probe.token);
        let refused = circuit.admit(now + 5 * S, &config).unwrap_err();
        assert_eq!(refused, Refused { state: State::HalfOpen, retry_after: None });
        let figures = circuit.figures(now + 5 * S, &config);
        assert_eq!((figures.state, figures.failures, figures.probing), (State::HalfOpen, 3, 1));
    }

    #[test]
    fn a_change_of_settings_keeps_the_circuit() {
        let (mut config, now) = (three_in_a_row(), Instant::now());
        let circuit = Circuit::new(now);
        fail(&circuit, 3, now, &config);
        config.open = PositiveSpan::from_millis(60_000);
        assert_eq!(circuit.state(now + 59 * S, &config), State::Open);
        config.open = PositiveSpan::from_millis(1_000);
        assert_eq!(circuit.state(now + S, &config), State::HalfOpen);
        config.probes = count(2);
        let token = circuit.admit(now + S, &config).unwrap().token;
        circuit.record(token, false, now + S, &config);
        config.probes = count(1); // one has succeeded, which is enough now
        let admission = circuit.admit(now + S, &config).unwrap();
        assert_eq!(admission.moved, Some(Transition { from: State::HalfOpen, to: State::Closed }));
        assert!(!admission.token.is_probe());
    }

    /// A circuit that opened at `now`, and the probes that it admits after its open time.
    fn probes_of(config: &BreakerConfig, now: Instant) -> (Circuit, Vec<Token>) {
        let circuit = Circuit::new(now);
        fail(&circuit, 3, now, config);
        let admit = |_| circuit.admit(now + 5 * S, config).ok().map(|admission| admission.token);
        let probes = (0..10).filter_map(admit).collect();
        (circuit, probes)
    }

    #[test]
    fn probes_whose_answers_begin_well_close_it() {
        let (config, now) = (BreakerConfig { probes: count(3), ..three_in_a_row() }, Instant::now());
        let (circuit, probes) = probes_of(&config, now);
        assert_eq!(probes.len(), 3);
        let at = now + 6 * S;
        let answered: Vec<_> = probes.iter().map(|probe| circuit.answered(*probe, at, &config)).collect();
        assert_eq!(answered[1].1, None);
        assert_eq!(answered[2].1, Some(Transition { from: State::HalfOpen, to: State::Closed }));
        // Their ends do not count as those of probes.
        for (token, _) in &answered[..2] {
            assert_eq!(circuit.record(*token, false, at + S, &config), None);
        }
        circuit.release(answered[2].0, &config);
        let figures = circuit.figures(at + S, &config);
        assert_eq!((figures.state, figures.calls, figures.failures), (State::Closed, 0, 0));
    }

    #[test]
    fn the_rest_of_a_probes_answer_counts_like_any_calls() {
        let (config, now) = (BreakerConfig { probes: count(3), ..three_in_a_row() }, Instant::now());
        let at = now + 6 * S;
        // In a half-open circuit it opens the circuit again.
        let (circuit, probes) = probes_of(&config, now);
        let (token, _) = circuit.answered(probes[0], at, &config);
        let moved = circuit.record(token, true, at, &config);
        assert_eq!(moved, Some(Transition { from: State::HalfOpen, to: State::Open }));
        // In an open circuit it has no effect.
        assert_eq!(circuit.record(token, true, at, &config), None);
        assert_eq!(circuit.figures(at, &config).retry_after, Some(5 * S));
        // In a closed circuit it is one failure.
        let (circuit, probes) = probes_of(&config, now);
        let answered: Vec<_> = probes.iter().map(|probe| circuit.answered(*probe, at, &config).0).collect();
        assert_eq!(answered.iter().filter_map(|token| circuit.record(*token, true, at, &config)).count(), 1);
        assert_eq!((circuit.state(at, &config), config.consecutive), (State::Open, 3));
        // A forced circuit does not change its state.
        let (circuit, probes) = probes_of(&config, now);
        let (token, _) = circuit.answered(probes[0], at, &config);
        let held = BreakerConfig { force: Force::Closed, ..config.clone() };
        assert_eq!(circuit.record(token, true, at, &held), None);
        assert_eq!(circuit.figures(at, &config).probing, 2);
    }

    #[test]
    fn what_is_no_probe_is_not_answered_early() {
        let (config, now) = (three_in_a_row(), Instant::now());
        let circuit = Circuit::new(now);
        let token = circuit.admit(now, &config).unwrap().token;
        assert_eq!(circuit.answered(token, now, &config), (token, None));
    }

    #[test]
    fn open_times_differ_by_up_to_a_tenth() {
        let (config, now) = (three_in_a_row(), Instant::now());
        let random = Random::seeded(1);
        let mut times: Vec<_> = (0..200)
            .map(|_| {
                let circuit = Circuit::with_jitter(now, &random);
                fail(&circuit, 3, now, &config);
                let left = circuit.figures(now, &config).retry_after.unwrap();
                assert!(!circuit.admits(now + left - Duration::from_millis(1), &config));
                assert!(circuit.admits(now + left, &config));
                left.as_millis()
            })
            .collect();
        assert!(times.iter().all(|time| (4_500..=5_000).contains(time)), "{times:?}");
        times.sort_unstable();
        times.dedup();
        assert!(times.len() > 100, "{} different ones", times.len());
        // The jitter differs from one opening to the next, too.
        let circuit = Circuit::with_jitter(now, &random);
        let opened = fail(&circuit, 3, now, &config).len();
        let first = circuit.figures(now, &config).retry_after;
        let probe = circuit.admit(now + 5 * S, &config).unwrap().token;
        circuit.record(probe, true, now + 5 * S, &config);
        assert_eq!(opened, 1);
        assert_ne!(first, circuit.figures(now + 5 * S, &config).retry_after);
    }

    /// Admits calls at `at` until the circuit refuses.
    fn round(circuit: &Circuit, at: Instant, config: &BreakerConfig) -> Vec<Token> {
        let admitted = std::iter::from_fn(|| circuit.admit(at, config).ok());
        admitted.map(|admission| admission.token).take_while(|token| token.is_probe()).collect()
    }

    #[test]
    fn a_round_of_probes_without_outcome_gives_way_to_another() {
        let config = BreakerConfig { probes: count(2), ..three_in_a_row() };
        for (open, length) in [(5_000, 5_000), (100, 1_000), (600_000, 60_000)] {
            let open = Duration::from_millis(open);
            let config = BreakerConfig { open: PositiveSpan::new(open).unwrap(), ..config.clone() };
            let (length, mut now) = (Duration::from_millis(length), Instant::now());
            let circuit = Circuit::new(now);
            fail(&circuit, 3, now, &config);
            now += open;
            for n in 1..=10 {
                assert_eq!(round(&circuit, now, &config).len(), 2, "round {n}");
                assert_eq!(circuit.figures(now, &config).probing, 2 * n);
                assert!(!circuit.admits(now + length - Duration::from_millis(65), &config), "round {n}");
                now += length;
            }
            // At most ten rounds, and then one a minute.
            now = now - length + Duration::from_millis(59_935);
            assert!(!circuit.admits(now, &config));
            assert_eq!(round(&circuit, now + S, &config).len(), 2);
            assert_eq!(circuit.state(now + S, &config), State::HalfOpen);
        }
    }

    #[test]
    fn probes_that_end_make_room_for_rounds() {
        let (config, now) = (BreakerConfig { probes: count(2), ..three_in_a_row() }, Instant::now());
        let circuit = Circuit::new(now);
        fail(&circuit, 3, now, &config);
        for n in 1..100 {
            for token in round(&circuit, now + 5 * n * S, &config) {
                circuit.release(token, &config);
                circuit.release(circuit.admit(now + 5 * n * S, &config).unwrap().token, &config);
            }
            assert_eq!(circuit.figures(now + 5 * n * S, &config).probing, 0);
        }
    }

    /// A circuit of two probes in its second round, each round with one probe.
    fn second_round(now: Instant) -> (BreakerConfig, Circuit, Token, Token) {
        let config = BreakerConfig { probes: count(2), ..three_in_a_row() };
        let circuit = Circuit::new(now);
        fail(&circuit, 3, now, &config);
        let first = round(&circuit, now + 5 * S, &config);
        let second = round(&circuit, now + 10 * S, &config);
        circuit.release(first[1], &config);
        circuit.release(second[1], &config);
        (config, circuit, first[0], second[0])
    }

    #[test]
    fn a_probe_that_lost_its_place_counts_until_the_circuit_opens() {
        let now = Instant::now();
        let at = now + 11 * S;
        // Its success is one of the two.
        let (config, circuit, late, probe) = second_round(now);
        assert_eq!(circuit.record(late, false, at, &config), None);
        assert_eq!(circuit.figures(at, &config).probing, 1);
        assert!(!circuit.admits(at, &config), "one has succeeded, one is under way");
        let moved = circuit.record(probe, false, at, &config);
        assert_eq!(moved, Some(Transition { from: State::HalfOpen, to: State::Closed }));
        // So is the head of a good answer, and its place is not freed twice.
        let (config, circuit, late, _) = second_round(now);
        let (answered, moved) = circuit.answered(late, at, &config);
        assert_eq!((moved, circuit.record(answered, false, at, &config)), (None, None));
        assert_eq!(circuit.figures(at, &config).probing, 1);
        // A failure opens the circuit, and later outcomes have no effect.
        let (config, circuit, late, probe) = second_round(now);
        let moved = circuit.record(late, true, at, &config);
        assert_eq!(moved, Some(Transition { from: State::HalfOpen, to: State::Open }));
        assert_eq!(circuit.record(probe, false, at, &config), None);
        assert_eq!(circuit.figures(at, &config).retry_after, Some(5 * S));
        // Also if it has become half-open since.
        let (config, circuit, late, probe) = second_round(now);
        circuit.record(probe, true, at, &config);
        let later = round(&circuit, at + 5 * S, &config);
        assert_eq!((later.len(), circuit.record(late, true, at + 5 * S, &config)), (2, None));
        assert_eq!(circuit.state(at + 5 * S, &config), State::HalfOpen);
        // A forced circuit does not change its state.
        let (config, circuit, late, _) = second_round(now);
        let held = BreakerConfig { force: Force::Closed, ..config.clone() };
        assert_eq!(circuit.record(late, true, at, &held), None);
        assert_eq!(circuit.figures(at, &config).probing, 1);
    }

    #[test]
    fn a_probe_whose_circuit_has_closed_counts_like_any_call() {
        let (now, failures) = (Instant::now(), [true, false]);
        for failed in failures {
            let (config, circuit, late, probe) = second_round(now);
            let at = now + 11 * S;
            circuit.record(probe, false, at, &config);
            let other = circuit.admit(at, &config).unwrap().token;
            circuit.record(other, false, at, &config);
            assert_eq!(circuit.state(at, &config), State::Closed);
            assert_eq!(circuit.record(late, failed, at, &config), None);
            let figures = circuit.figures(at, &config);
            assert_eq!((figures.failures, figures.consecutive), (u32::from(failed), u32::from(failed)));
            assert_eq!(circuit.out.load(SeqCst), 0);
        }
    }

    #[test]
    fn settings_change_while_rounds_are_under_way() {
        let now = Instant::now();
        let (mut config, circuit, late, probe) = second_round(now);
        let at = now + 11 * S;
        // Fewer probes: the successes so far are enough.
        circuit.record(late, false, at, &config);
        config.probes = count(1);
        let admission = circuit.admit(at, &config).unwrap();
        assert_eq!(admission.moved, Some(Transition { from: State::HalfOpen, to: State::Closed }));
        assert_eq!(circuit.record(probe, true, at, &config), None, "one failure of three");
        assert_eq!(circuit.figures(at, &config).failures, 1);
        // More probes: places are free at once. A shorter `open`: shorter rounds from now on.
        let (mut config, circuit, ..) = second_round(now);
        (config.probes, config.open) = (count(4), PositiveSpan::from_millis(2_000));
        assert_eq!(round(&circuit, at, &config).len(), 3);
        assert_eq!(round(&circuit, at + S, &config).len(), 4, "the round began a second before");
        assert_eq!(circuit.figures(at, &config).probing, 9);
    }

    #[test]
    fn threads_get_so_many_rounds_and_no_more() {
        let config = BreakerConfig { probes: count(3), ..three_in_a_row() };
        let start = Instant::now();
        let circuit = Circuit::new(start);
        fail(&circuit, 3, start, &config);
        let admitted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for millis in (5_000..100_000).step_by(500) {
                        let now = start + Duration::from_millis(millis);
                        while circuit.admit(now, &config).is_ok() {
                            admitted.fetch_add(1, SeqCst);
                        }
                    }
                });
            }
        });
        let admitted = admitted.into_inner();
        assert!((27..=30).contains(&admitted), "{admitted}: ten rounds of three");
        assert_eq!(u64::from(circuit.out.load(SeqCst)), admitted);
    }

    #[test]
    fn threads_never_get_more_probes_than_there_are() {
        const PROBES: u32 = 3;
        let config = BreakerConfig {
            consecutive: 2,
            open: PositiveSpan::from_millis(1),
            probes: count(PROBES),
            ..Default::default()
        };
        let start = Instant::now();
        let circuit = Circuit::new(start);
        let (clock, moves) = (AtomicU64::new(0), AtomicU64::new(0));
        // By era: probes that are under way or have passed.
        let probes: Vec<AtomicI64> = (0..=mask(ERA_BITS)).map(|_| AtomicI64::new(0)).collect();
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let (circuit, config, clock, moves, probes) = (&circuit, &config, &clock, &moves, &probes);
                scope.spawn(move || {
                    let random = Random::seeded(seed);
                    while moves.load(SeqCst) < 1_000 {
                        let millis = clock.fetch_add(random.below(2) as u64, SeqCst);
                        let now = start + Duration::from_millis(millis);
                        let Ok(Admission { token, .. }) = circuit.admit(now, config) else { continue };
                        let here = &probes[token.era as usize];
                        if token.probe {
                            let before = here.fetch_add(1, SeqCst);
                            assert!(before < i64::from(PROBES), "{before} probes were out already");
                        }
                        if random.below(8) == 0 {
                            std::thread::yield_now();
                        }
                        match random.below(10) {
                            0..3 => {
                                if token.probe {
                                    here.fetch_sub(1, SeqCst);
                                }
                                circuit.release(token, config);
                            }
                            drawn => {
                                let moved = circuit.record(token, drawn < 5, now, config);
                                moves.fetch_add(u64::from(moved.is_some()), SeqCst);
                            }
                        }
                    }
                });
            }
        });
    }

    #[test]
    fn of_256_threads_as_many_pass_as_there_are_probes() {
        let (config, start) = (BreakerConfig { consecutive: 1, ..Default::default() }, Instant::now());
        let circuit = Circuit::new(start);
        fail(&circuit, 1, start, &config);
        let passed = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..256 {
                scope.spawn(|| {
                    let admitted = circuit.admit(start + 5 * S, &config).is_ok();
                    passed.fetch_add(u64::from(admitted), SeqCst);
                });
            }
        });
        assert_eq!(passed.into_inner(), 3);
    }
}
