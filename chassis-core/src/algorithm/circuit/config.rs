//! The settings of circuit breakers.
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
    /// It can change while calls are under way: counts, an open circuit and its remaining time stay.
    pub struct BreakerConfig, BreakerPatch {
        /// Share of failed calls in `window` that opens a circuit. A call that has been under way for longer
        /// than the failed call took counts as not failed. Default `50%`; at `0%` one failure opens it.
        pub failure_ratio: Ratio = Ratio::percent(50),
        /// Number of calls that ended in `window` below which `failure_ratio` does not apply. Default 20; 0 is
        /// refused.
        pub min_calls: NonZeroU32 = count(20),
        /// Failures in a row that open a circuit at any ratio. Default 0: never.
        pub consecutive: u32 = 0,
        /// Time for which calls count. Default `10s`, which moves in tenths; `0s` is refused.
        pub window: PositiveSpan = PositiveSpan::from_millis(10_000),
        /// Time for which an open circuit refuses calls before it admits probes; a random part of up to a tenth
        /// is subtracted, so that the probes of many callers do not come together. Default `5s`; `0s` is
        /// refused.
        pub open: PositiveSpan = PositiveSpan::from_millis(5_000),
        /// Calls that a half-open circuit admits; it closes when as many have succeeded or have the head of a
        /// good answer. While they have no outcome it admits as many again after each `open` (at least 1 s, at
        /// most 60 s), up to ten times as many at once, and then as many a minute. Default 3; at most 1,000; 0
        /// is refused.
        pub probes: NonZeroU32 = count(3),
        /// The scope of a circuit. Default `service`.
        pub scope: Scope = Scope::Service,
        /// Forces the circuit open or closed. Default `auto`.
        pub force: Force = Force::Auto,
        /// The outcomes that count as failures. Default UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE,
        /// DATA_LOSS, 5xx, connect and deadline; with an empty list it never opens.
        pub failures: FailureSet = FailureSet::server_faults(),
    }
}

/// The scope of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// One circuit for the service.
    Service,
    /// One for each operation.
    Operation,
    /// One for each endpoint; an endpoint with an open circuit is not picked.
    Endpoint,
}

/// Whether a circuit's state is forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Force {
    /// Not forced: the outcomes of calls change the state.
    Auto,
    /// Forced open: it refuses all calls. Back at `auto` it continues from its former state.
    Open,
    /// Forced closed: it admits all calls, and counts. Back at `auto` it continues from its former state.
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

    /// The time until another round of probes may start, if `passed` probes succeeded and `out` are under way.
    pub(super) fn round_millis(&self, passed: u32, out: u32) -> u64 {
        let (probes, longest) = (self.probes(), LONGEST_ROUND.as_millis() as u64);
        match out.saturating_add(probes.saturating_sub(passed)) <= MOST_ROUNDS * probes {
            true => self.open_millis().clamp(SHORTEST_ROUND.as_millis() as u64, longest),
            false => longest,
        }
    }

    /// Whether these figures open a closed circuit.
    pub(super) fn trips(&self, consecutive: u32, tally: Tally) -> bool {
        let in_a_row = self.consecutive > 0 && consecutive >= self.consecutive;
        let by_ratio = tally.calls >= self.min_calls.get()
            && tally.failures > 0
            && f64::from(tally.failures) / (f64::from(tally.calls) + f64::from(tally.under_way))
                >= self.failure_ratio.get();
        self.force == Force::Auto && (in_a_row || by_ratio)
    }
}

// === impl Scope ===

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
