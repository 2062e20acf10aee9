//! What people write about breakers.
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::word::{LONGEST_ROUND, MOST_PROBES, MOST_ROUNDS, SHORTEST_ROUND};
use crate::{
    algorithm::window::Tally,
    settings,
    types::{
        FailureSet,
        units::{PositiveSpan, Ratio},
    },
};

settings! {
    /// When a circuit opens and closes: the `breaker` table; `breaker: off` disables it.
    ///
    /// It can be changed while calls are under way: counts, an open circuit and its time stay.
    pub struct BreakerConfig, BreakerPatch {
        /// Share of failed calls in `window` that opens a circuit. A call that is under way for longer than the
        /// failure took has not failed. Default `50%`; at `0%` one failure does.
        pub failure_ratio: Ratio = Ratio::percent(50),
        /// Calls that ended in `window` below which `failure_ratio` says nothing. Default 20; 0 is refused.
        pub min_calls: NonZeroU32 = count(20),
        /// Failures in a row that open a circuit whatever the ratio. Default 0: never.
        pub consecutive: u32 = 0,
        /// How far back calls count. Default `10s`, which moves in tenths; `0s` is refused.
        pub window: PositiveSpan = PositiveSpan::from_millis(10_000),
        /// How long an open circuit refuses before it admits probes; by chance up to a tenth less, so that
        /// those of many callers do not come together. Default `5s`; `0s` is refused.
        pub open: PositiveSpan = PositiveSpan::from_millis(5_000),
        /// Calls that a half-open circuit admits; when as many have succeeded, or have answers that begin
        /// well, it closes. While they have no outcome it admits as many again after each `open` (at least 1 s, at
        /// most 60 s), up to ten times as many at once, and then as many a minute. Default 3; at most 1,000; 0 is
        /// refused.
        pub probes: NonZeroU32 = count(3),
        /// What has a circuit of its own. Default `service`.
        pub scope: Scope = Scope::Service,
        /// Holds the circuit open or closed by hand. Default `auto`.
        pub force: Force = Force::Auto,
        /// What counts as a failure. Default UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, DATA_LOSS,
        /// 5xx, connect and deadline; an empty list never opens.
        pub failures: FailureSet = FailureSet::server_faults(),
    }
}

/// What has a circuit of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// The service as a whole.
    Service,
    /// Each of its operations.
    Operation,
    /// Each endpoint; one that is open is not picked.
    Endpoint,
}

/// Who moves a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Force {
    /// The outcomes of calls.
    Auto,
    /// Nobody: it refuses everything. Back at `auto` it goes on from where it was.
    Open,
    /// Nobody: it admits everything, and counts. Back at `auto` it goes on from where it was.
    Closed,
}

// === impl BreakerConfig ===

pub(super) const fn count(n: u32) -> NonZeroU32 {
    match NonZeroU32::new(n) {
        Some(n) => n,
        None => NonZeroU32::MIN,
    }
}

impl BreakerConfig {
    pub(super) fn probes(&self) -> u32 {
        self.probes.get().min(MOST_PROBES)
    }

    pub(super) fn open_millis(&self) -> u64 {
        u64::try_from(self.open.get().as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
    }

    /// How long a round of probes has before another one takes its places, where `passed` succeeded before and `out`
    /// are under way.
    pub(super) fn round_millis(&self, passed: u32, out: u32) -> u64 {
        let (probes, longest) = (self.probes(), LONGEST_ROUND.as_millis() as u64);
        match out.saturating_add(probes.saturating_sub(passed)) <= MOST_ROUNDS * probes {
            true => self.open_millis().clamp(SHORTEST_ROUND.as_millis() as u64, longest),
            false => longest,
        }
    }

    /// Do these figures open a closed circuit?
    pub(super) fn trips(&self, consecutive: u32, tally: Tally) -> bool {
        let in_a_row = self.consecutive > 0 && consecutive >= self.consecutive;
        let by_ratio = tally.calls >= self.min_calls.get()
            && tally.failures > 0
            && f64::from(tally.failures) / (f64::from(tally.calls) + f64::from(tally.under_way))
                >= self.failure_ratio.get();
        self.force == Force::Auto && (in_a_row || by_ratio)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_met_exactly() {
        for percent in 1..=100 {
            let config = BreakerConfig {
                failure_ratio: format!("{percent}%").parse().unwrap(),
                min_calls: count(100),
                ..Default::default()
            };
            let tally = |failures| Tally { calls: 100, failures, under_way: 0 };
            assert!(config.trips(0, tally(percent)) && !config.trips(0, tally(percent - 1)), "{percent}");
        }
    }

    #[test]
    fn reads_its_settings() {
        let read = |json| serde_json::from_str::<BreakerPatch>(json);
        let patch = read(r#"{ "scope": "endpoint", "failure_ratio": "20%", "force": "open" }"#).unwrap();
        let mut config = BreakerConfig::default();
        crate::types::units::Patch::apply(&patch, &mut config);
        assert_eq!((config.scope, config.force), (Scope::Endpoint, Force::Open));
        assert_eq!(config.min_calls, count(20));
        assert!(read(r#"{ "min_calls": 0 }"#).is_err() && read(r#"{ "probe": 1 }"#).is_err());
    }
}
