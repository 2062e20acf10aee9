use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

/// How many of `calls`, one after the other at `now`, are admitted.
fn admitted(bucket: &Gcra, now: Instant, rate: Rate, burst: u32, calls: u32) -> u32 {
    (0..calls).filter(|_| bucket.take(now, rate, burst, 1).is_ok()).count() as u32
}

#[test]
fn fills_up_at_its_rate() {
    let (start, rate) = (Instant::now(), Rate::per_second(100));
    let bucket = Gcra::new(start);
    for (at, expected) in [(0, 20), (0, 0), (9, 0), (10, 1), (10, 0), (110, 10), (10_000, 20)] {
        assert_eq!(admitted(&bucket, start + at * MS, rate, 20, 100), expected, "at {at} ms");
    }
}

#[test]
fn nothing_gets_through_at_0() {
    let now = Instant::now();
    let bucket = Gcra::new(now);
    let never = Err(Wait { retry_after: None });
    assert_eq!(bucket.take(now, Rate::per_second(0), 10, 1), never);
    assert_eq!(bucket.take(now, Rate::per_second(10), 0, 1), never);
    assert_eq!(bucket.take(now, Rate::per_second(10), 3, 4), never);
    assert_eq!(bucket.take(now, Rate::per_second(10), 3, 3), Ok(()));
}

#[test]
fn who_waits_as_told_gets_through() {
    for rate in ["7/s", "1/h", "3/m", "999/s", "100000/s"].map(|rate| rate.parse::<Rate>().unwrap()) {
        let mut now = Instant::now();
        let bucket = Gcra::new(now);
        now += Duration::from_nanos(123_456_789);
        assert_eq!(admitted(&bucket, now, rate, 5, 5), 5);
        for _ in 0..100 {
            let wait = bucket.take(now, rate, 5, 1).unwrap_err().retry_after.unwrap();
            assert!(bucket.take(now + wait - wait / 100, rate, 5, 1).is_err(), "{rate}");
            now += wait;
            bucket.take(now, rate, 5, 1).unwrap();
        }
    }
}

#[test]
fn reservations_queue_up_to_a_bound() {
    let (now, rate) = (Instant::now(), Rate::per_second(10));
    let bucket = Gcra::new(now);
    let reserve = || bucket.reserve(now, rate, 2, 1, 250 * MS).map(|wait| wait.as_millis());
    assert_eq!([(); 4].map(|()| reserve()), [Ok(0), Ok(0), Ok(100), Ok(200)]);
    assert_eq!(reserve(), Err(Wait { retry_after: Some(300 * MS) }));
    bucket.give_back(now, 2, 1, 100 * MS);
    assert_eq!(bucket.reserve(now, rate, 2, 1, 250 * MS), Err(Wait { retry_after: Some(300 * MS) }));
    bucket.give_back(now, 2, 1, 200 * MS);
    assert_eq!(bucket.reserve(now, rate, 2, 1, 250 * MS), Ok(200 * MS));
    bucket.give_back(now, 2, 1_000, S);
    assert_eq!(bucket.available(now, 2), 2, "no fuller than full");
}

#[test]
fn a_change_of_rate_keeps_the_level() {
    let mut now = Instant::now();
    let bucket = Gcra::new(now);
    let [slow, fast] = ["1/m", "1000/s"].map(|rate| rate.parse::<Rate>().unwrap());
    assert_eq!(admitted(&bucket, now, slow, 100, 70), 70);
    assert_eq!(admitted(&bucket, now, fast, 100, 100), 30, "slow to fast");
    now += 50 * MS;
    assert_eq!(admitted(&bucket, now, slow, 100, 100), 50, "fast to slow");
    now += S;
    bucket.retune(now, fast);
    assert_eq!(bucket.available(now, 100), 0, "the second before the change counts as slow");
    assert_eq!(bucket.available(now + 10 * MS, 100), 10);
    now += S;
    bucket.retune(now, slow);
    assert_eq!(bucket.available(now, 100), 100, "the second before the change counts as fast");
}

#[test]
fn a_change_of_burst_keeps_what_was_taken() {
    let (now, rate) = (Instant::now(), Rate::per_second(1));
    let bucket = Gcra::new(now);
    assert_eq!(admitted(&bucket, now, rate, 10, 8), 8);
    assert_eq!(admitted(&bucket, now, rate, 5, 8), 0);
    assert_eq!(admitted(&bucket, now, rate, 20, 100), 12);
}

#[test]
fn an_earlier_now_gives_nothing_away() {
    let (now, rate) = (Instant::now() + S, Rate::per_second(100));
    let bucket = Gcra::new(now - S);
    assert_eq!(admitted(&bucket, now, rate, 10, 10), 10);
    assert_eq!(admitted(&bucket, now - 500 * MS, rate, 10, 10), 0);
    assert_eq!(admitted(&bucket, now + 20 * MS, rate, 10, 10), 2);
}

#[test]
fn who_comes_at_the_rate_gets_through_for_ever() {
    for (rate, burst) in [("3/s", 1), ("100/s", 1), ("999/s", 1), ("7/h", 2), ("50000/s", 10_000)] {
        let (start, rate) = (Instant::now(), rate.parse::<Rate>().unwrap());
        let bucket = Gcra::new(start);
        admitted(&bucket, start, rate, burst, burst - 1);
        // In nanoseconds, each rounded down.
        let at = |i: u32| Duration::from_nanos((1e9 / rate.hertz() * f64::from(i)) as u64);
        let refused = (0..200_000).find(|i| bucket.take(start + at(*i), rate, burst, 1).is_err());
        assert_eq!(refused, None, "{rate}");
    }
}

#[test]
fn no_arithmetic_is_too_much() {
    let now = Instant::now();
    let bucket = Gcra::new(now);
    for rate in [Rate::new(1, Duration::MAX), Rate::new(u32::MAX, Duration::ZERO)] {
        for at in [now, now + S, now + 1_000_000_000 * S] {
            let _ = bucket.reserve(at, rate, u32::MAX, u32::MAX, S);
            let _ = bucket.take(at, rate, 1, 1);
            bucket.give_back(at, u32::MAX, u32::MAX, Duration::MAX);
        }
    }
    let _ = bucket.take(now, Rate::per_second(1), 1, 1);
}

#[test]
fn threads_share_one_bucket() {
    let (now, rate) = (Instant::now(), Rate::per_second(1));
    let bucket = Gcra::new(now);
    let total: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| admitted(&bucket, now, rate, 10_000, 5_000))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(total, 10_000);
}

/// Gaps of very different length, some of them exactly one interval.
fn gaps() -> impl Strategy<Value = Vec<(u8, f64)>> {
    prop::collection::vec((0u8..5, 0.0..1.0f64), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Never differs from `governor` by more than one call, and admits ≤ burst + rate · t over any window.
    #[test]
    fn admits_what_governor_admits(hertz in 1u32..20_000, burst in 1u32..300, gaps in gaps()) {
        let (rate, start) = (Rate::per_second(hertz), Instant::now());
        let bucket = Gcra::new(start);
        let quota = Quota::per_second(hertz.try_into().unwrap()).allow_burst(burst.try_into().unwrap());
        let clock = FakeRelativeClock::default();
        let oracle = RateLimiter::direct_with_clock(quota, clock.clone());

        let interval = rate.interval().unwrap();
        let mut elapsed = Duration::ZERO;
        let (mut ours, mut theirs) = (Vec::new(), 0);
        for (kind, share) in gaps {
            let gap = match kind {
                0 | 1 => Duration::ZERO,
                2 => interval,
                3 => interval.mul_f64(share * 3.0),
                _ => interval.mul_f64(share * f64::from(burst)),
            };
            elapsed += gap;
            clock.advance(gap);
            if bucket.take(start + elapsed, rate, burst, 1).is_ok() {
                ours.push(elapsed.as_secs_f64());
            }
            theirs += usize::from(oracle.check().is_ok());
            prop_assert!(ours.len().abs_diff(theirs) <= 1, "{} against {theirs}", ours.len());
        }
        for (i, from) in ours.iter().enumerate() {
            for (j, to) in ours.iter().enumerate().skip(i) {
                let most = f64::from(burst) + (to - from) * f64::from(hertz) + 2.0 * SLACK;
                prop_assert!(((j - i + 1) as f64) <= most, "{} in {}", j - i + 1, to - from);
            }
        }
    }

    /// Callers that take all they can get, over minutes, get the rate within a ten-thousandth.
    #[test]
    fn keeps_its_rate(hertz in 1u32..5_000, burst in 2u32..50) {
        let (rate, start) = (Rate::per_second(hertz), Instant::now());
        let bucket = Gcra::new(start);
        let (steps, step) = (2_000, rate.interval().unwrap() / 2);
        let got: u32 = (0..steps).map(|i| admitted(&bucket, start + step * i, rate, burst, 2)).sum();
        let due = f64::from(burst) + (step * steps).as_secs_f64() * f64::from(hertz);
        prop_assert!((f64::from(got) - due).abs() <= due / 10_000.0 + 1.0, "{got} of {due}");
    }
}
