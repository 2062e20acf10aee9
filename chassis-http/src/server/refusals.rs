//! Logs requests that are refused before they become calls, with the reason: one line a second for each status.
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::StatusCode;
use tokio::time::Instant;

/// The time of the last line, by status.
#[derive(Default)]
pub(super) struct Refusals(Mutex<Vec<(StatusCode, Instant)>>);

const PAUSE: Duration = Duration::from_secs(1);

// === impl Refusals ===

impl Refusals {
    /// Writes a line for a request at `port`, unless there was one for this status within a second.
    #[cold]
    pub(super) fn log(&self, port: &str, status: StatusCode, words: &str) {
        if self.is_due(status, Instant::now()) {
            tracing::info!(target: "chassis", port, status = status.as_u16(), "a request was refused: {words}");
        }
    }

    fn is_due(&self, status: StatusCode, now: Instant) -> bool {
        // No code panics while the lock is held, so a poisoned lock is still valid.
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match logged.iter_mut().find(|(known, _)| *known == status) {
            Some((_, last)) if now.saturating_duration_since(*last) < PAUSE => false,
            Some((_, last)) => {
                *last = now;
                true
            }
            None => {
                logged.push((status, now));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_a_second_for_each_status() {
        let refusals = Refusals::default();
        let is_due = |status| refusals.is_due(status, Instant::now());
        assert!(is_due(StatusCode::BAD_REQUEST) && !is_due(StatusCode::BAD_REQUEST));
        assert!(is_due(StatusCode::SERVICE_UNAVAILABLE), "another status is another line");
        tokio::time::advance(PAUSE).await;
        assert!(is_due(StatusCode::BAD_REQUEST) && !is_due(StatusCode::BAD_REQUEST));
    }
}
