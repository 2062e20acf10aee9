//! Runs one check again and again, whatever its function does.
use std::{sync::Arc, time::Duration};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{CheckConfig, CheckFn, CheckStatus};
use crate::{
    contain::{BLOCKED_AFTER, PluginThreads},
    event::Events,
    random::Random,
    tasks::caught,
};

/// A check and the means to run it.
pub(super) struct Probe {
    config: CheckConfig,
    check: Arc<CheckFn>,
    /// Held while a run exists, also after its time limit: a run that blocks its thread cannot be dropped before it
    /// returns.
    running: Arc<Semaphore>,
    threads: PluginThreads,
}

/// The longest pause until the first success: a process starts to take calls soon after what it needs is there.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The shortest pause: a check that returns at once must not occupy a thread.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

// === impl Probe ===

impl Probe {
    pub(super) fn new(name: &str, config: CheckConfig, check: Arc<CheckFn>, events: &Events) -> Self {
        let threads = PluginThreads::new(format!("health check `{name}`"), events, BLOCKED_AFTER);
        Probe { config, check, running: Arc::new(Semaphore::new(1)), threads }
    }

    /// Runs the check until it is dropped. `record` takes each result and returns the status.
    pub(super) async fn run(
        &self,
        record: impl Fn(Result<(), String>) -> CheckStatus + Send,
        random: &Random,
    ) {
        loop {
            let result = self.run_once().await;
            let pause = match record(result) {
                CheckStatus::Starting => self.config.interval.min(FIRST_PAUSE),
                CheckStatus::Passing | CheckStatus::Failing(_) => self.config.interval,
            };
            sleep(random.between(pause - pause / 10, pause).max(SHORTEST_PAUSE)).await;
        }
    }

    async fn run_once(&self) -> Result<(), String> {
        let limit = self.config.timeout;
        let Ok(running) = self.running.clone().try_acquire_owned() else {
            return Err("an earlier run still blocks its thread".to_owned());
        };
        let check = self.check.clone();
        // The function itself may panic or block, too.
        let run = self.threads.run("run", async move {
            let ended = check().await;
            drop(running);
            ended
        });
        match caught(timeout(limit, run)).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => {
                let mut why = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    why = format!("{why}: {cause}");
                    source = cause.source();
                }
                Err(why)
            }
            Ok(Err(_)) => Err(format!("no result within {limit:?}")),
            Err(panicked) => Err(panicked.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_pause_is_one() {
        let config = CheckConfig { interval: Duration::MAX, ..CheckConfig::default() };
        let check: Arc<CheckFn> = Arc::new(|| Box::pin(async { Ok(()) }));
        let probe = Probe::new("db", config, check, &Events::default());
        let random = Random::seeded(7);
        let run =
            probe.run(|result| result.map_or_else(CheckStatus::Failing, |()| CheckStatus::Passing), &random);
        assert!(timeout(Duration::from_secs(3600), run).await.is_err(), "it does not end");
    }
}
