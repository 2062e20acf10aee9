//! Continuous calls in the background of a test.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use tokio::{sync::watch, task::JoinSet};

use super::{Ask, Caller, Outcome, Wire};

/// Callers that each call again and again until they are stopped.
pub(crate) struct Load {
    callers: JoinSet<Vec<Outcome>>,
    enough: Arc<AtomicBool>,
    answered: watch::Receiver<u64>,
}

// === impl Load ===

impl Load {
    /// `callers` at once, each with a short pause between its calls: the clock must advance.
    pub(crate) fn new(
        caller: &Arc<Caller>,
        wire: Wire,
        callers: u64,
        ask: impl Fn() -> Ask + Send + Sync + 'static,
    ) -> Self {
        let (enough, ask) = (Arc::new(AtomicBool::new(false)), Arc::new(ask));
        let (count, answered) = watch::channel(0);
        let mut all = JoinSet::new();
        for n in 0..callers {
            let (caller, enough, ask, count) = (caller.clone(), enough.clone(), ask.clone(), count.clone());
            all.spawn(async move {
                let mut outcomes = Vec::new();
                tokio::time::sleep(Duration::from_millis(n)).await;
                while !enough.load(SeqCst) {
                    outcomes.push(caller.call(wire, ask()).await);
                    count.send_modify(|count| *count += 1);
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                outcomes
            });
        }
        Load { callers: all, enough, answered }
    }

    /// Returns after this many more calls have ended.
    pub(crate) async fn more(&mut self, calls: u64) {
        let until = *self.answered.borrow() + calls;
        self.answered.wait_for(|answered| *answered >= until).await.expect("the callers go on");
    }

    /// The outcomes of all calls.
    pub(crate) async fn stop(self) -> Vec<Outcome> {
        self.enough.store(true, SeqCst);
        self.callers.join_all().await.into_iter().flatten().collect()
    }
}

/// The share of these that `instance` answered.
pub(crate) fn share(outcomes: &[Outcome], instance: &str) -> f64 {
    let by = outcomes.iter().filter(|outcome| outcome.instance.as_deref() == Some(instance)).count();
    by as f64 / outcomes.len() as f64
}

/// Fails with those calls that failed.
#[track_caller]
pub(crate) fn all_well(outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_ok()).collect();
    assert!(failed.is_empty(), "{} of {} failed, such as {:?}", failed.len(), outcomes.len(), failed[0]);
}
