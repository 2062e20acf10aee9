//! Follows what a query reads, by blocking queries.
//!
//! The rules are those of Consul's documentation. An index that is lower than the last one, as after a restart of the
//! servers from an older state, makes the next query one that does not wait. An index of 0 counts as 1, for a query
//! with index 0 would not wait. An answer is no promise of a change. A [`Throttle`] bounds how often it is asked.
use std::time::Duration;

use chassis_core::{
    adapter::{Pace, Throttle},
    clock,
};
use tokio::time::sleep;

use crate::client::{After, Answer, Client, Failure, Query};

/// Builds a view of what is read.
pub(crate) trait View: Send {
    /// Takes in an answer, or says why it is not to be believed. The next answer may be the same one.
    fn show(&mut self, answer: Answer) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Consul can't be asked; it is not said again until it can.
    fn fail(&mut self, why: &Failure);
}

/// Where a follower stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// The index of the last answer; 0: the next query does not wait.
    index: u64,
}

/// An answer without a change does not come sooner.
const HASTY: Duration = Duration::from_millis(200);

/// Follows `query` until it is dropped.
pub(crate) async fn follow<V: View>(client: &Client, query: &Query, jitter: Duration, view: &mut V) {
    let (mut pace, mut throttle) = (Pace::new(jitter), Throttle::default());
    let mut position = Position::default();
    let (mut is_known, mut has_failed) = (false, false);
    loop {
        sleep(throttle.pause(clock::Instant::now())).await;
        let begun = clock::Instant::now();
        let after = match position.index {
            0 => After::Nothing,
            index => After::Index(index),
        };
        let answered = async {
            let answer = client.get(query, &after).await?;
            let index = answer.index;
            let next = position.next(index);
            // A query whose time was over brings what is known. Without an index nothing says so.
            if after == After::Nothing || next != position || index.is_none_or(|index| index == 0) {
                view.show(answer).await?;
            }
            Ok::<_, Failure>(next)
        };
        match answered.await {
            Ok(next) => {
                // A server that does not wait, whatever it was asked: a proxy, or one without an index.
                let is_hasty = after != After::Nothing && next == position && begun.elapsed() < HASTY;
                position = next;
                if is_hasty {
                    sleep(HASTY).await;
                }
                (is_known, has_failed) = (true, false);
                pace.reset();
            }
            Err(why) => {
                // When it answers again, the known instances may be outdated, and its index may be that of another server.
                position = Position::default();
                let pause = pace.next(clock::Instant::now(), client.random());
                // A connection breaks when the agent restarts, which may be back at once.
                if (pace.failures() > 1 || !is_known) && !has_failed {
                    has_failed = true;
                    view.fail(&why);
                }
                sleep(pause).await;
            }
        }
    }
}

// === impl Position ===

impl Position {
    /// After an answer with this index.
    fn next(self, index: Option<u64>) -> Self {
        let index = index.unwrap_or(0).max(1);
        Position { index: if index < self.index { 0 } else { index } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_goes_back_begins_anew() {
        for (before, answered, after) in [
            (0, Some(7), 7),
            (7, Some(7), 7),
            (7, Some(9), 9),
            (7, Some(6), 0),
            (7, Some(0), 0),
            (7, None, 0),
            (0, Some(0), 1),
            (0, None, 1),
            (1, Some(0), 1),
        ] {
            assert_eq!(Position { index: before }.next(answered).index, after, "{before} {answered:?}");
        }
    }
}
