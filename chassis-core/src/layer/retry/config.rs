//! The settings of retries: the table `retry` of a service or an operation.
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::{
    settings,
    types::{
        Code, FailureSet,
        units::{Patch, PositiveSpan, Rate, Ratio, Size, Switch},
    },
};

settings! {
    /// When and how often a call is retried: the `retry` table of a service or an operation.
    pub struct RetryConfig, RetryPatch {
        /// The most attempts at a call, the first included, from 1 to 5. Default 2.
        pub attempts: NonZeroU32 = const { NonZeroU32::new(2).expect("2 is not 0") },
        /// The calls that may be retried. Default `safe`.
        pub when: When = When::Safe,
        /// The time that one attempt may take to the head of its answer. Default `off`: as long as the call.
        pub per_try: Switch<PositiveSpan> = Switch::Off,
        /// The pause before the first retry is random between 0 and this value; the range doubles with each
        /// further retry, up to ten times this value. Default `25ms`.
        pub backoff: PositiveSpan = PositiveSpan::from_millis(25),
        /// The outcomes of an attempt after which it is retried: codes, statuses, `connect`, `deadline` (the
        /// attempt's own). Default: UNAVAILABLE, 502, 503, 504, connect, deadline.
        pub on: FailureSet = default_on(),
        /// The load that all retries of a service may add; `off` for no limit.
        pub budget: Switch<BudgetPatch> = Switch::On(BudgetPatch::default()),
        /// The most bytes of a streaming request that are kept for a retry. Default `64KiB`; `off` keeps none.
        pub replay_bytes: Switch<Size> = Switch::On(Size::from_kib(64)),
        /// Whether calls are retried while an incoming retry is being handled. Default no: retries on several
        /// levels multiply.
        pub chained: bool = false,
    }
}

/// The calls that may be retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum When {
    /// Calls that were not executed, that use an idempotent HTTP method, or that are declared idempotent.
    #[default]
    Safe,
    /// All calls: the handlers of the service must accept a call twice.
    Always,
}

settings! {
    /// The number of retries of a service, for all its operations together: `budget`; `budget: off` for no
    /// limit.
    pub struct BudgetConfig, BudgetPatch {
        /// Retries as a share of the calls of the last ten seconds. Default `20%`; `0%` leaves the minimum.
        pub share: Ratio = Ratio::percent(20),
        /// Retries that are allowed in addition, with any number of calls. Default `10/s`, for use at any times
        /// within ten seconds; `0/s` leaves only the share.
        pub min: Rate = Rate::per_second(10),
    }
}
/// gRFC A6 limits attempts to five, whatever the settings are.
pub(super) const MOST_ATTEMPTS: u32 = 5;

fn default_on() -> FailureSet {
    FailureSet::NONE
        .with_codes([Code::Unavailable])
        .with_statuses([502, 503, 504])
        .with_connect()
        .with_deadline()
}

// === impl RetryConfig ===

impl RetryConfig {
    /// Refuses settings that contradict each other.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.attempts.get() {
            n if n > MOST_ATTEMPTS => {
                Err(format!("{n} attempts are too many; it goes from 1 to {MOST_ATTEMPTS}"))
            }
            _ => Ok(()),
        }
    }

    /// The settings of the budget; `None` for no limit.
    pub(super) fn bounds(&self) -> Option<BudgetConfig> {
        self.budget.on().map(|patch| {
            let mut bounds = BudgetConfig::default();
            patch.apply(&mut bounds);
            bounds
        })
    }
}
