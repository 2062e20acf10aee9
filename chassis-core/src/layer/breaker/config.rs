//! The settings of circuit breakers: the table `breaker`.
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use super::{CircuitConfig, Force};
use crate::{
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
        pub min_calls: NonZeroU32 = const { NonZeroU32::new(20).expect("20 is not 0") },
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
        pub probes: NonZeroU32 = const { NonZeroU32::new(3).expect("3 is not 0") },
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
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scope {
    /// One circuit for the service.
    Service,
    /// One for each operation.
    Operation,
    /// One for each endpoint; an endpoint with an open circuit is not picked.
    Endpoint,
}

// === impl BreakerConfig ===

impl BreakerConfig {
    /// The numbers of the circuit.
    pub(crate) fn circuit(&self) -> CircuitConfig {
        let &BreakerConfig { failure_ratio, min_calls, consecutive, window, open, probes, force, .. } = self;
        CircuitConfig { failure_ratio, min_calls, consecutive, window, open, probes, force }
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
    use crate::types::units::Patch;

    #[test]
    fn reads_its_settings() {
        let read = |json| serde_json::from_str::<BreakerPatch>(json);
        let patch = read(r#"{ "scope": "endpoint", "failure_ratio": "20%", "force": "open" }"#).unwrap();
        let mut config = BreakerConfig::default();
        patch.apply(&mut config);
        assert_eq!((config.scope, config.force), (Scope::Endpoint, Force::Open));
        assert_eq!(config.min_calls.get(), 20);
        assert!(read(r#"{ "min_calls": 0 }"#).is_err() && read(r#"{ "probe": 1 }"#).is_err());
    }
}
