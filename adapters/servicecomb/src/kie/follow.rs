//! Follows a label set, by long polls.
//!
//! kie counts one revision for everything that it holds. A long poll with the revision of the last answer ends when an
//! entry with the labels changes, or with 304 after its time; one with any other revision is answered at once. So a
//! change of other labels brings the same entries again with the next poll. A [`Throttle`] bounds how often kie is asked.
//!
//! kie counts up before it stores a change, and reports the change after that. An answer in between has the new revision
//! and the old entries, and the report may precede the next poll, which then waits although there is news. So a poll
//! that ends without a change is followed by a query that does not wait, and the first poll after any answer is a short
//! one: changes in a row are seen soon, too.
use std::{collections::BTreeMap, time::Duration};

use chassis_core::{
    adapter::{Pace, Throttle},
    clock,
};
use http::StatusCode;
use tokio::time::sleep;

use super::{list::List, settings::KieSourceConfig};
use crate::client::{Client, Failure, Query};

/// Builds a view of what is read.
pub(super) trait View: Send {
    /// Takes in the entries.
    fn show(&mut self, list: List);

    /// kie can't be asked; it is not said again until it can.
    fn fail(&mut self, why: &Failure);
}

/// Where a follower stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Position {
    /// The revision of the last answer with entries.
    last: Option<i64>,
    /// The next query waits for a change.
    waits: bool,
    /// The last answer has been confirmed by a later one: the next poll is a long one.
    is_confirmed: bool,
}

/// An answer without a change does not come sooner.
const HASTY: Duration = Duration::from_millis(200);
/// How long a poll waits after an answer that was not confirmed yet.
const SHORT: Duration = Duration::from_secs(1);

/// Follows the label set until it is dropped.
pub(super) async fn follow<V: View>(client: &Client, config: &KieSourceConfig, view: &mut V) {
    let (mut pace, mut throttle) = (Pace::new(config.jitter.0), Throttle::default());
    let mut position = Position::default();
    let (mut is_known, mut has_failed) = (false, false);
    loop {
        sleep(throttle.pause(clock::Instant::now())).await;
        let begun = clock::Instant::now();
        match ask(client, config, position).await {
            Ok(answered) => {
                let next = position.next(answered.as_ref().map(|list| list.revision));
                // A server that does not wait, whatever it was asked: a proxy.
                let is_hasty = position.waits && next.last == position.last && begun.elapsed() < HASTY;
                position = next;
                if let Some(list) = answered {
                    view.show(list);
                }
                (is_known, has_failed) = (true, false);
                pace.reset();
                if is_hasty {
                    sleep(HASTY).await;
                }
            }
            Err(why) => {
                // When it answers again, its revision may be that of another life.
                position = Position::default();
                let pause = pace.next(clock::Instant::now(), client.random());
                // A connection breaks when the server restarts, which may be back at once.
                if (pace.failures() > 1 || !is_known) && !has_failed {
                    has_failed = true;
                    view.fail(&why);
                }
                sleep(pause).await;
            }
        }
    }
}

/// `None`: kie reports no change.
async fn ask(client: &Client, config: &KieSourceConfig, position: Position) -> Result<Option<List>, Failure> {
    let revision = position.last.filter(|_| position.waits);
    let query = query(&config.labels);
    let query = match revision {
        None => query,
        Some(revision) => {
            // Processes that begin together do not ask together for ever.
            let longest = match position.is_confirmed {
                true => config.wait.get(),
                false => config.wait.get().min(SHORT),
            };
            let wait = client.random().between(longest - longest / 10, longest);
            query.with("revision", revision.to_string()).waiting(wait)
        }
    };
    let answer = client.send(&query).await?;
    match (answer.is_modified, revision) {
        (true, _) => List::read(&answer, &config.labels).map(Some),
        (false, Some(_)) => Ok(None),
        (false, None) => {
            Err(Failure::of(format!("it answers {} without being asked", StatusCode::NOT_MODIFIED)))
        }
    }
}

/// The key of a document is no part of it: kie takes none in a query that waits.
fn query(labels: &BTreeMap<String, String>) -> Query {
    let query = Query::get("/v1/{project}/kie/kv").with("match", "exact");
    labels.iter().fold(query, |query, (label, value)| query.with("label", format!("{label}:{value}")))
}

// === impl Position ===

impl Position {
    /// After an answer with entries of this revision; `None`: without a change.
    fn next(self, revision: Option<i64>) -> Self {
        match revision {
            None => Position { waits: false, ..self },
            Some(revision) => {
                let is_confirmed = !self.waits && self.last == Some(revision);
                Position { last: Some(revision), waits: true, is_confirmed }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The next query after each of these answers: `l` does not wait, `s` a short poll, `w` a long one.
    fn check(answers: &[Option<i64>], expected: &str) {
        let mut position = Position::default();
        let next = answers.iter().map(|answer| {
            position = position.next(*answer);
            match (position.waits, position.is_confirmed) {
                (false, _) => 'l',
                (true, false) => 's',
                (true, true) => 'w',
            }
        });
        assert_eq!(next.collect::<String>(), expected, "{answers:?}");
    }

    #[test]
    fn an_answer_is_confirmed_before_a_long_poll() {
        check(&[Some(7), None, Some(7), None, Some(7)], "slwlw");
        check(&[Some(7), None, Some(8), None, Some(8), Some(9)], "slslws");
        check(&[Some(7), Some(7), None, Some(7)], "sslw");
        check(&[Some(7), None, Some(6), None, Some(7)], "slsls");
    }
}
