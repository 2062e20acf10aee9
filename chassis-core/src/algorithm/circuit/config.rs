//! The numbers of a circuit.
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::word::{LONGEST_ROUND, MOST_PROBES, MOST_ROUNDS, SHORTEST_ROUND};
use crate::{
    algorithm::window::Tally,
    types::units::{PositiveSpan, Ratio},
};

/// The numbers of a circuit. [`BreakerConfig`](crate::layer::breaker::BreakerConfig) has their defaults and their
/// bounds, and makes them by `circuit`.
///
/// They can change while calls are under way: counts, an open circuit and its remaining time stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct CircuitConfig {
    /// Share of failed calls in `window` that opens the circuit.
    pub failure_ratio: Ratio,
    /// Number of calls that ended in `window` below which `failure_ratio` does not apply.
    pub min_calls: NonZeroU32,
    /// Failures in a row that open the circuit at any ratio; 0: never.
    pub consecutive: u32,
    /// Time for which calls count.
    pub window: PositiveSpan,
    /// Time for which the open circuit refuses calls before it admits probes.
    pub open: PositiveSpan,
    /// Calls that the half-open circuit admits, and that have to succeed to close it.
    pub probes: NonZeroU32,
    /// Whether its state is forced.
    pub force: Force,
}

/// Whether a circuit's state is forced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Force {
    /// Not forced: the outcomes of calls change the state.
    Auto,
    /// Forced open: it refuses all calls. Back at `auto` it continues from its former state.
    Open,
    /// Forced closed: it admits all calls, and counts. Back at `auto` it continues from its former state.
    Closed,
}

// === impl CircuitConfig ===

impl CircuitConfig {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::breaker::BreakerConfig;

    #[test]
    fn ratios_are_met_exactly() {
        for percent in 1..=100 {
            let config = CircuitConfig {
                failure_ratio: Ratio::percent(percent),
                min_calls: NonZeroU32::new(100).unwrap(),
                ..BreakerConfig::default().circuit()
            };
            let tally = |failures| Tally { calls: 100, failures, under_way: 0 };
            let percent = u32::from(percent);
            assert!(config.trips(0, tally(percent)) && !config.trips(0, tally(percent - 1)), "{percent}");
        }
    }
}
