//! Whether settings do harm: the calls since they were applied, compared with those before.
use std::time::Duration;

use chassis_core::{CallTotals, Side, units::Ratio};

use crate::document::RolloutGuardConfig;

/// Calls of both sides: outgoing and incoming ones.
pub(super) type Totals = [CallTotals; 2];

/// The part of the calls below the compared latency.
const QUANTILE: f64 = 0.9;
/// A share must have risen by so many standard errors beside its limit: with few calls, chance alone makes shares differ.
const STANDARD_ERRORS: f64 = 3.0;

/// The reason why the calls `after` are worse than those `before`; `None` if they are not, or if each side has less than
/// `enough` of them. Failed and refused calls are compared with none where there were no calls before; latency is compared
/// only if there were `min_calls` before and after.
pub(super) fn judge(
    config: &RolloutGuardConfig,
    enough: u64,
    min_calls: u64,
    before: &Totals,
    after: &Totals,
) -> Option<String> {
    [Side::Client, Side::Server].into_iter().find_map(|side| {
        let (before, after) = (&before[side as usize], &after[side as usize]);
        let calls = match side {
            Side::Client => "outgoing",
            Side::Server => "incoming",
        };
        if after.calls < enough {
            return None;
        }
        let rose = |limit: Option<&Ratio>, count: fn(&CallTotals) -> u64, verb: &str| {
            let (now, then) = (share(count(after), after.calls), share(count(before), before.calls));
            let variance = variance(count(after), after.calls) + variance(count(before), before.calls);
            let noise = STANDARD_ERRORS * variance.sqrt();
            let is_worse = limit.is_some_and(|limit| now - then > limit.get() + noise);
            let all = after.calls;
            let (now, then) = (now * 100.0, then * 100.0);
            is_worse.then(|| format!("{now:.1}% of {all} {calls} calls {verb}, {then:.1}% before"))
        };
        let slower = || {
            let factor = config.latency.on()?;
            let (now, then) = (after.quantile(QUANTILE)?, before.quantile(QUANTILE)?);
            let is_worse = before.calls.min(after.calls) >= min_calls
                && is_slower(before.bucket(QUANTILE)?, after.bucket(QUANTILE)?, factor.get());
            is_worse.then(|| {
                let (now, then) = (millis(now), millis(then));
                format!("the 90th percentile of {calls} calls took {now} ms, {then} ms before")
            })
        };
        rose(config.error_ratio.on(), |totals| totals.errors, "failed")
            .or_else(|| rose(config.refusals.on(), |totals| totals.refusals, "were refused"))
            .or_else(slower)
    })
}

fn share(count: u64, calls: u64) -> f64 {
    if calls == 0 { 0.0 } else { (count as f64 / calls as f64).min(1.0) }
}

/// Of the share of `count` in so many calls: by the adjusted share of Agresti and Coull, which two more calls of either
/// outcome change. The plain one would be 0 where all calls fail, however few there are.
fn variance(count: u64, calls: u64) -> f64 {
    if calls == 0 {
        return 0.0;
    }
    let (count, calls) = (count.min(calls) as f64 + 2.0, calls as f64 + 4.0);
    let share = count / calls;
    share * (1.0 - share) / calls
}

/// Whether a latency in the bucket `after` of a histogram is `factor` times one in the bucket `before`, wherever in them both
/// are.
fn is_slower(before: (Duration, Duration), after: (Duration, Duration), factor: f64) -> bool {
    after.0.as_secs_f64() >= before.1.as_secs_f64() * factor
}

fn millis(span: Duration) -> String {
    format!("{:.1}", span.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use chassis_core::{Metrics, units::Switch};

    use super::*;

    /// Sums of calls that a test states: the number, the failed and the refused ones.
    fn calls(calls: u64, errors: u64, refusals: u64) -> CallTotals {
        let mut totals = CallTotals::default();
        (totals.calls, totals.errors, totals.refusals) = (calls, errors, refusals);
        totals
    }

    /// Whether the second calls are worse than the first, incoming and outgoing ones alike.
    #[track_caller]
    fn check(before: (u64, u64, u64), after: (u64, u64, u64), expected: Option<&str>) {
        let of = |(all, errors, refusals)| calls(all, errors, refusals);
        let none = CallTotals::default;
        let judged = |before, after| judge(&RolloutGuardConfig::default(), 100, 100, &before, &after);
        let incoming = judged([none(), of(before)], [none(), of(after)]);
        assert_eq!(incoming.as_deref(), expected);
        let outgoing = judged([of(before), none()], [of(after), none()]);
        let expected = expected.map(|why| why.replace("incoming", "outgoing"));
        assert_eq!(outgoing, expected);
    }

    #[test]
    fn shares_are_compared_with_those_before() {
        check((1_000, 0, 0), (99, 99, 99), None);
        check((1_000, 0, 0), (100, 100, 0), Some("100.0% of 100 incoming calls failed, 0.0% before"));
        check((1_000, 300, 0), (100, 30, 0), None);
        check((1_000, 300, 0), (100, 60, 0), Some("60.0% of 100 incoming calls failed, 30.0% before"));
        check((1_000, 900, 0), (1_000, 100, 0), None);
        check((1_000, 0, 0), (100, 0, 40), Some("40.0% of 100 incoming calls were refused, 0.0% before"));
        check((0, 0, 0), (100, 50, 0), Some("50.0% of 100 incoming calls failed, 0.0% before"));
    }

    #[test]
    fn chance_decides_nothing() {
        check((1_000, 10, 0), (100, 10, 0), None);
        check((1_000, 0, 0), (100, 16, 0), None);
        check((1_000, 0, 0), (100, 17, 0), Some("17.0% of 100 incoming calls failed, 0.0% before"));
        check(
            (100_000, 0, 0),
            (100_000, 5_400, 0),
            Some("5.4% of 100000 incoming calls failed, 0.0% before"),
        );
    }

    /// One call that fails is no proof, whatever its share is.
    #[test]
    fn a_share_of_few_calls_varies() {
        assert_eq!((variance(0, 0), variance(7, 1)), (0.0, variance(1, 1)));
        assert!(variance(1, 1) > 0.04 && variance(20, 20) > 0.003 && variance(0, 1_000) < 1e-5);
        let of = |all, errors| [CallTotals::default(), calls(all, errors, 0)];
        let judged = |after| judge(&RolloutGuardConfig::default(), 1, 100, &of(1_000, 400), &after);
        assert_eq!((judged(of(1, 1)), judged(of(2, 2))), (None, None));
        assert!(judged(of(20, 20)).is_some());
    }

    #[test]
    fn latency_is_compared_beyond_the_width_of_its_buckets() {
        let ms = Duration::from_millis;
        let bucket = |lower, upper| (ms(lower), ms(upper));
        let slower = |before, after| is_slower(before, after, 2.0);
        // From one bucket to the next an interpolated figure may double, however little the calls changed.
        assert!(!slower(bucket(5, 10), bucket(10, 25)) && !slower(bucket(75, 100), bucket(100, 250)));
        assert!(!slower(bucket(25, 50), bucket(50, 75)) && slower(bucket(25, 50), bucket(100, 250)));
        let longest = (ms(10_000), Duration::MAX);
        assert!(!slower(longest, longest) && slower(bucket(2_500, 5_000), longest));
    }

    #[test]
    fn what_is_off_decides_nothing() {
        let off =
            RolloutGuardConfig { error_ratio: Switch::Off, refusals: Switch::Off, latency: Switch::Off };
        let all = || [calls(1_000, 1_000, 1_000), calls(1_000, 1_000, 1_000)];
        assert_eq!(judge(&off, 100, 100, &Totals::default(), &all()), None);
        let full = Switch::On(Ratio::percent(100));
        let never = RolloutGuardConfig { error_ratio: full.clone(), refusals: full, ..off };
        assert_eq!(judge(&never, 100, 100, &Totals::default(), &all()), None);
    }

    #[test]
    fn a_process_without_calls_has_done_no_harm() {
        let metrics = Metrics::new(prometheus::Registry::new()).expect("the registry is empty");
        let none = || [metrics.call_totals(Side::Client), metrics.call_totals(Side::Server)];
        assert_eq!(judge(&RolloutGuardConfig::default(), 1, 1, &none(), &none()), None);
    }
}
