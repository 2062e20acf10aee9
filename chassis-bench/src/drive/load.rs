//! The times at which calls are made.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use chassis::{Chassis, Metrics};
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, interval, sleep_until},
};

use super::{
    Options,
    call::Caller,
    report::{Report, Tally},
};
use crate::Result;

/// When calls are made.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub enum Load {
    /// A fixed number of callers, each calling again after its answer.
    Closed {
        /// The number of callers.
        #[serde(rename = "concurrency")]
        callers: usize,
    },
    /// Calls are due at this rate, regardless of earlier ones.
    Open {
        /// In calls per second.
        rate: f64,
    },
}

/// A load generator.
pub struct Drive {
    options: Options,
    caller: Caller,
    metrics: Metrics,
    limit: Duration,
}

/// Without a deadline a call counts as hanging after this time.
const LONGEST: Duration = Duration::from_secs(60);
/// Time beyond the deadline after which a call counts as hanging.
const GRACE: Duration = Duration::from_millis(100);
/// The resolution of the timeline.
const TICK: Duration = Duration::from_millis(100);

// === impl Drive ===

impl Drive {
    /// Creates a generator of calls by `app`.
    pub fn new(app: &Chassis, options: Options) -> Result<Self> {
        let caller = Caller::new(app, &options)?;
        let runtime = app.runtime();
        let policy = runtime.policies().get().outbound(&options.to.as_str().into(), caller.operation());
        let bounds = [options.timeout, policy.timeout(), policy.total_timeout()];
        let limit = bounds.into_iter().flatten().min().unwrap_or(LONGEST) + GRACE;
        let metrics = runtime.metrics().clone();
        Ok(Drive { options, caller, metrics, limit })
    }

    /// Makes the calls, waits for the last answers, and returns the report.
    pub async fn run(self) -> Report {
        let (start, attempts) = (Instant::now(), self.attempts());
        let began = SystemTime::now();
        let tally = Arc::new(Mutex::new(Tally::new(self.options.time)));
        let watch = self.watch_attempts(start, tally.clone());
        let calls = async {
            match self.options.load {
                Load::Closed { callers } => self.closed(callers, start, &tally).await,
                Load::Open { rate } => self.open(rate, start, &tally).await,
            }
        };
        tokio::select! { () = calls => {}, () = watch => {} }
        let attempts = self.attempts() - attempts;
        let tally = std::mem::take(&mut *lock(&tally));
        Report::new(&self.options, tally, attempts, start.elapsed(), began)
    }

    async fn closed(&self, callers: usize, start: Instant, tally: &Arc<Mutex<Tally>>) {
        let mut tasks = JoinSet::new();
        for _ in 0..callers {
            let (caller, tally, end, limit) =
                (self.caller.clone(), tally.clone(), start + self.options.time, self.limit);
            tasks.spawn(async move {
                loop {
                    let began = Instant::now();
                    if began >= end {
                        return;
                    }
                    let outcome = caller.call(limit).await;
                    lock(&tally).add(began - start, began.elapsed(), &outcome);
                }
            });
        }
        tasks.join_all().await;
    }

    async fn open(&self, rate: f64, start: Instant, tally: &Arc<Mutex<Tally>>) {
        let mut tasks = JoinSet::new();
        let count = (self.options.time.as_secs_f64() * rate).round() as u64;
        for number in 0..count {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            let now = Instant::now();
            if now < due {
                while tasks.try_join_next().is_some() {}
                sleep_until(due).await;
            }
            let (caller, tally, limit) = (self.caller.clone(), tally.clone(), self.limit);
            tasks.spawn(async move {
                let late = due.elapsed();
                let outcome = caller.call(limit).await;
                let mut tally = lock(&tally);
                tally.late(late);
                tally.add(due - start, due.elapsed(), &outcome);
            });
        }
        tasks.join_all().await;
    }

    /// Records the number of attempts in each tick.
    async fn watch_attempts(&self, start: Instant, tally: Arc<Mutex<Tally>>) {
        let (mut ticks, mut before) = (interval(TICK), self.attempts());
        ticks.tick().await; // the first tick completes at once
        loop {
            let at = ticks.tick().await;
            let now = self.attempts();
            lock(&tally).attempts((at - start).saturating_sub(TICK / 2), now - before);
            before = now;
        }
    }

    fn attempts(&self) -> u64 {
        let families = self.metrics.registry().gather();
        let attempts = families.iter().filter(|family| family.name() == "chassis_attempts_total");
        let ours = attempts.flat_map(|family| family.get_metric()).filter(|metric| {
            let labels = metric.get_label();
            labels.iter().any(|label| label.name() == "service" && label.value() == self.options.to)
        });
        ours.map(|metric| metric.get_counter().get_value() as u64).sum()
    }
}

fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
