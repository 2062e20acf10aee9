//! What people write about retries: the table `retry` of a service or an operation.
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
    /// When and how often a call is tried again: the `retry` table of a service or an operation.
    pub struct RetryConfig, RetryPatch {
        /// The most attempts at a call, the first included, from 1 to 5. Default 2.
        pub attempts: NonZeroU32 = const { NonZeroU32::new(2).expect("2 is not 0") },
        /// Which calls may be tried again. Default `safe`.
        pub when: When = When::Safe,
        /// How long one attempt may take to the head of its answer. Default `off`: as long as the call.
        pub per_try: Switch<PositiveSpan> = Switch::Off,
        /// The pause before the first retry is drawn from nothing to this, before later ones from twice
        /// as much each, up to ten times this. Default `25ms`.
        pub backoff: PositiveSpan = PositiveSpan::from_millis(25),
        /// How an attempt has to end to be retried: codes, statuses, `connect`, `deadline` (its own).
        /// Default: UNAVAILABLE, 502, 503, 504, connect, deadline.
        pub on: FailureSet = default_on(),
        /// What all retries of a service may add to its load; `off` for no bound.
        pub budget: Switch<BudgetPatch> = Switch::On(BudgetPatch::default()),
        /// The most bytes of a streaming request that are kept to be sent again. Default `64KiB`; `off` keeps
        /// none.
        pub replay_bytes: Switch<Size> = Switch::On(Size::from_kib(64)),
        /// Retry also while handling a call that is a retry itself? Default no: layers multiply.
        pub chained: bool = false,
    }
}

/// Which calls may be tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Those not executed, by an idempotent HTTP method, or declared idempotent.
    #[default]
    Safe,
    /// All: the handlers over there can take a call twice.
    Always,
}

settings! {
    /// How many retries a service gets, all its operations together: `budget`; `budget: off` for no bound.
    pub struct BudgetConfig, BudgetPatch {
        /// Retries as a share of the calls of the last ten seconds. Default `20%`; `0%` leaves the minimum.
        pub share: Ratio = Ratio::percent(20),
        /// Retries there may be besides, however few calls there are. Default `10/s`, to be had within ten
        /// seconds at any times; `0/s` leaves the share.
        pub min: Rate = Rate::per_second(10),
    }
}
/// gRFC A6 bounds attempts at five, whatever the settings say.
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
    /// Refuses numbers that make no sense together.
    pub(super) fn check(&self) -> Result<(), String> {
        match self.attempts.get() {
            n if n > MOST_ATTEMPTS => {
                Err(format!("{n} attempts are too many; it goes from 1 to {MOST_ATTEMPTS}"))
            }
            _ => Ok(()),
        }
    }

    /// The numbers of the budget; `None` for no bound.
    pub(super) fn bounds(&self) -> Option<BudgetConfig> {
        self.budget.on().map(|patch| {
            let mut bounds = BudgetConfig::default();
            patch.apply(&mut bounds);
            bounds
        })
    }
}
