//! The calls that new settings are compared with: those under settings that are known to be good.
use std::{collections::VecDeque, time::Duration};

use chassis_core::CallTotals;
use tokio::time::Instant;

use super::guard::Totals;

/// The sums of the last time, and the difference of an earlier time.
#[derive(Default)]
pub(super) struct Baseline {
    /// The newest last.
    samples: VecDeque<(Instant, Totals)>,
    /// Compared with while there are too few calls since the first sample.
    kept: Totals,
}

/// So many samples are taken in the time that is compared.
const SAMPLES: u32 = 12;
/// The shortest time between two samples.
const SHORTEST: Duration = Duration::from_millis(500);

// === impl Baseline ===

impl Baseline {
    /// When the next sample of `window` is due.
    pub(super) fn due(&self, window: Duration) -> Option<Instant> {
        self.samples.back().map(|(at, _)| *at + (window / SAMPLES).max(SHORTEST))
    }

    /// Takes a sample, and drops those before `window`.
    pub(super) fn sample(&mut self, now: Instant, window: Duration, totals: Totals) {
        self.samples.push_back((now, totals));
        // The one at the begin of the window stays.
        while self.samples.get(1).is_some_and(|(at, _)| *at + window <= now) {
            self.samples.pop_front();
        }
    }

    /// The calls up to `totals`. Of a side with less than `min_calls` of them those of an earlier time, if they are more.
    pub(super) fn calls(&self, totals: &Totals, min_calls: u64) -> Totals {
        let recent = self.samples.front().map(|(_, first)| since(totals, first)).unwrap_or_default();
        let better = |recent: CallTotals, kept: &CallTotals| match recent.calls < min_calls.min(kept.calls) {
            true => kept.clone(),
            false => recent,
        };
        let [client, server] = recent;
        [better(client, &self.kept[0]), better(server, &self.kept[1])]
    }

    /// Begins anew with `totals`: the calls before were under other settings. Until there are more, `kept` counts.
    pub(super) fn restart(&mut self, now: Instant, totals: Totals, kept: Totals) {
        *self = Baseline { samples: VecDeque::from([(now, totals)]), kept };
    }
}

/// The calls between two sums.
pub(super) fn since(now: &Totals, earlier: &Totals) -> Totals {
    [now[0].since(&earlier[0]), now[1].since(&earlier[1])]
}
