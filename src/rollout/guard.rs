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
/// `min_calls` of them. Failed and refused calls are compared with none where there were no calls before; latency is
/// compared only if there were `min_calls` before, too.
pub(super) fn judge(
    config: &RolloutGuardConfig,
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
        if after.calls < min_calls {
            return None;
        }
        let rose = |limit: Option<&Ratio>, count: fn(&CallTotals) -> u64, verb: &str| {
            let (now, then) = (share(count(after), after.calls), share(count(before), before.calls));
            let noise = STANDARD_ERRORS * (variance(now, after.calls) + variance(then, before.calls)).sqrt();
            let is_worse = limit.is_some_and(|limit| now - then > limit.get() + noise);
            let all = after.calls;
            let (now, then) = (now * 100.0, then * 100.0);
            is_worse.then(|| format!("{now:.1}% of {all} {calls} calls {verb}, {then:.1}% before"))
        };
        let slower = || {
            let factor = config.latency.on()?;
            let (now, then) = (after.quantile(QUANTILE)?, before.quantile(QUANTILE)?);
            let is_worse = before.calls >= min_calls && now.as_secs_f64() > then.as_secs_f64() * factor.get();
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

/// Of a share of so many calls.
fn variance(share: f64, calls: u64) -> f64 {
    if calls == 0 { 0.0 } else { share * (1.0 - share) / calls as f64 }
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
        let judged = |before, after| judge(&RolloutGuardConfig::default(), 100, &before, &after);
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
        check((1_000, 0, 0), (100, 14, 0), None);
        check((1_000, 0, 0), (100, 16, 0), Some("16.0% of 100 incoming calls failed, 0.0% before"));
        check(
            (100_000, 0, 0),
            (100_000, 5_400, 0),
            Some("5.4% of 100000 incoming calls failed, 0.0% before"),
        );
    }

    #[test]
    fn what_is_off_decides_nothing() {
        let off =
            RolloutGuardConfig { error_ratio: Switch::Off, refusals: Switch::Off, latency: Switch::Off };
        let all = || [calls(1_000, 1_000, 1_000), calls(1_000, 1_000, 1_000)];
        assert_eq!(judge(&off, 100, &Totals::default(), &all()), None);
        let full = Switch::On(Ratio::percent(100));
        let never = RolloutGuardConfig { error_ratio: full.clone(), refusals: full, ..off };
        assert_eq!(judge(&never, 100, &Totals::default(), &all()), None);
    }

    #[test]
    fn a_process_without_calls_has_done_no_harm() {
        let metrics = Metrics::new(prometheus::Registry::new()).expect("the registry is empty");
        let none = || [metrics.call_totals(Side::Client), metrics.call_totals(Side::Server)];
        assert_eq!(judge(&RolloutGuardConfig::default(), 1, &none(), &none()), None);
    }
}
