use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use super::{
    model::{count, defaults},
    token::LATEST,
    word::{ERA_BITS, mask},
    *,
};
use crate::{
    random::Random,
    types::units::{PositiveSpan, Ratio},
};

const S: Duration = Duration::from_secs(1);

fn three_in_a_row() -> CircuitConfig {
    CircuitConfig { consecutive: 3, min_calls: count(1_000), probes: count(1), ..defaults() }
}

/// Feeds `events` (S success, F failure, w a cool-down) to a circuit and compares its state after each (c
/// closed, o open, h half-open). Calls that are refused have no outcome.
#[track_caller]
fn check(config: CircuitConfig, events: &str, states: &str) {
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
    fn admit_unless(&self, not: bool, now: Instant, config: &CircuitConfig) -> Option<Token> {
        if not { None } else { self.admit(now, config).ok().map(|admission| admission.token) }
    }
}

/// Makes this many calls that fail.
fn fail(circuit: &Circuit, times: u32, now: Instant, config: &CircuitConfig) -> Vec<Transition> {
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
    let config = CircuitConfig { probes: count(3), ..three_in_a_row() };
    check(config, "FFFwSSS", "ccohhhc");
    check(config, "FFFwSSF", "ccohhho");
}

#[test]
fn opens_on_a_ratio_over_a_minimum_of_calls() {
    let config = CircuitConfig { min_calls: count(4), ..defaults() };
    check(config, "FFF", "ccc");
    check(config, "FFFF", "ccco");
    check(config, "SSFF", "ccco");
    check(config, "FFSS", "ccco"); // a success too can be the fourth call
    check(config, "SSSFFF", "ccccco");
    check(CircuitConfig { failure_ratio: Ratio::percent(100), ..config }, "SFFFF", "ccccc");
    check(CircuitConfig { failure_ratio: Ratio::percent(0), ..config }, "SSSSF", "cccco");
}

/// Calls of two kinds, one every millisecond in turn: `quick` of them fail after a millisecond, the others
/// succeed after `slow`. Compares whether the circuit opens before the first success.
#[track_caller]
fn check_quick_failures(quick: usize, of: usize, slow: Duration, opens: bool) {
    let (config, start) = (defaults(), Instant::now());
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
        let (config, start) = (defaults(), Instant::now());
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
    let (config, start) = (defaults(), Instant::now());
    let circuit = Circuit::new(start);
    let streams: Vec<_> = (0..1_000).map(|_| circuit.admit(start, &config).unwrap()).collect();
    fail(&circuit, 20, start + 11 * S, &config);
    assert_eq!(circuit.state(start + 11 * S, &config), State::Open);
    streams.into_iter().for_each(|stream| circuit.release(stream.token, &config));
}

#[test]
fn what_is_cancelled_is_not_under_way() {
    let (config, now) = (defaults(), Instant::now());
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
    let config = CircuitConfig { consecutive: 1_000, ..defaults() };
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
    let config = CircuitConfig { min_calls: count(4), probes: count(1), ..defaults() };
    check(config, "FFFFwSFFF", "cccohcccc");
}

#[test]
fn old_failures_slide_out() {
    let config = CircuitConfig { min_calls: count(4), ..defaults() };
    check(config, "FFFwwF", "cccccc");
}

#[test]
fn by_hand() {
    let mut config = three_in_a_row();
    check(CircuitConfig { force: Force::Open, ..config }, "SwS", "ooo");
    check(CircuitConfig { force: Force::Closed, ..config }, "FFFFFF", "cccccc");

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
fn probes_of(config: &CircuitConfig, now: Instant) -> (Circuit, Vec<Token>) {
    let circuit = Circuit::new(now);
    fail(&circuit, 3, now, config);
    let admit = |_| circuit.admit(now + 5 * S, config).ok().map(|admission| admission.token);
    let probes = (0..10).filter_map(admit).collect();
    (circuit, probes)
}

#[test]
fn probes_whose_answers_begin_well_close_it() {
    let (config, now) = (CircuitConfig { probes: count(3), ..three_in_a_row() }, Instant::now());
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
    let (config, now) = (CircuitConfig { probes: count(3), ..three_in_a_row() }, Instant::now());
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
    let held = CircuitConfig { force: Force::Closed, ..config };
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
fn round(circuit: &Circuit, at: Instant, config: &CircuitConfig) -> Vec<Token> {
    let admitted = std::iter::from_fn(|| circuit.admit(at, config).ok());
    admitted.map(|admission| admission.token).take_while(|token| token.is_probe()).collect()
}

#[test]
fn a_round_of_probes_without_outcome_gives_way_to_another() {
    let config = CircuitConfig { probes: count(2), ..three_in_a_row() };
    for (open, length) in [(5_000, 5_000), (100, 1_000), (600_000, 60_000)] {
        let open = Duration::from_millis(open);
        let config = CircuitConfig { open: PositiveSpan::new(open).unwrap(), ..config };
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
    let (config, now) = (CircuitConfig { probes: count(2), ..three_in_a_row() }, Instant::now());
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
fn second_round(now: Instant) -> (CircuitConfig, Circuit, Token, Token) {
    let config = CircuitConfig { probes: count(2), ..three_in_a_row() };
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
    let held = CircuitConfig { force: Force::Closed, ..config };
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
    let config = CircuitConfig { probes: count(3), ..three_in_a_row() };
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
    let config = CircuitConfig {
        consecutive: 2,
        open: PositiveSpan::from_millis(1),
        probes: count(PROBES),
        ..defaults()
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
    let (config, start) = (CircuitConfig { consecutive: 1, ..defaults() }, Instant::now());
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
