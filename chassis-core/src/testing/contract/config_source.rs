//! The contract of [`ConfigSource`].
use std::{future::poll_fn, sync::Arc, task::Poll, time::Duration};

use async_trait::async_trait;

use crate::plugin::config_source::{ConfigSource, ConfigWatcher, SourceError, Text};

/// The time limit of an answer: far more than any source needs.
const CAP: Duration = Duration::from_secs(30);

/// The place that a source reads, as a test can change it: a file, a server's key, a channel.
#[async_trait]
pub trait Place: Send {
    /// A source that reads it.
    fn source(&self) -> Arc<dyn ConfigSource>;

    /// Replaces the whole text by `content`.
    async fn write(&mut self, content: &str);

    /// Removes the text or makes it unreadable, until the next `write`. `false` if that is impossible.
    async fn spoil(&mut self) -> bool;
}

/// Checks what [`ConfigSource`] and [`ConfigWatcher`] promise.
///
/// The first answer comes at once; every change arrives, of a burst at least the last; nothing arrives twice;
/// watchers are independent; a dropped future loses nothing; an unreadable text is an error and never an empty
/// text, and a text that is readable again is returned again.
///
/// # Panics
/// If a promise is broken, with its name.
pub async fn config_source(mut place: impl Place) {
    place.write("a: 1\n").await;
    let source = place.source();
    assert!(!source.name().is_empty(), "a source has a name");
    let mut watcher = watch(&source).await;
    let first = text(&mut watcher, "a: 1\n").await;
    assert!(!first.origin.is_empty(), "a text says where it is from");
    quiet(&mut watcher).await;

    place.write("a: 2\n").await;
    text(&mut watcher, "a: 2\n").await;
    let mut second = watch(&source).await;
    text(&mut second, "a: 2\n").await; // the first answer is the current text

    place.write("a: 2\n").await; // no change: must not arrive before the next one, nor twice
    place.write("a: 3\n").await;
    text(&mut watcher, "a: 3\n").await;
    text(&mut second, "a: 3\n").await;
    quiet(&mut watcher).await;

    for n in 4..20 {
        place.write(&format!("a: {n}\n")).await;
    }
    last(&mut watcher, "a: 19\n").await;
    last(&mut second, "a: 19\n").await;

    place.write("a: 20\n").await;
    impatient(&mut watcher, "a: 20\n").await;

    if place.spoil().await {
        let error = answer(&mut watcher).await.expect_err("what can't be read is an error");
        assert!(!error.to_string().is_empty(), "an error says what is wrong");
        place.write("a: 20\n").await;
        text(&mut watcher, "a: 20\n").await; // unchanged, but it must arrive, because it is readable again
        place.write("a: 21\n").await;
        text(&mut watcher, "a: 21\n").await;
    }
}

async fn watch(source: &Arc<dyn ConfigSource>) -> Box<dyn ConfigWatcher> {
    let watcher = tokio::time::timeout(CAP, source.watch()).await.expect("watching starts soon");
    watcher.expect("a place that is there can be watched")
}

async fn answer(watcher: &mut Box<dyn ConfigWatcher>) -> Result<Text, SourceError> {
    tokio::time::timeout(CAP, watcher.next()).await.expect("a change arrives")
}

/// The next answer is `expected`.
#[track_caller]
fn text<'a>(watcher: &'a mut Box<dyn ConfigWatcher>, expected: &'a str) -> impl Future<Output = Text> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let text = answer(watcher).await.unwrap_or_else(|e| panic!("{caller}: it can be read, but: {e}"));
        assert_eq!(text.content, expected, "{caller}");
        text
    }
}

/// Some texts of a burst may be skipped, but not the last.
async fn last(watcher: &mut Box<dyn ConfigWatcher>, expected: &str) {
    let mut seen = String::new();
    while seen != expected {
        let text = answer(watcher).await.expect("it can be read");
        assert_ne!(text.content, seen, "nothing arrives twice");
        seen = text.content;
    }
    quiet(watcher).await;
}

/// No answer comes while nothing changes.
async fn quiet(watcher: &mut Box<dyn ConfigWatcher>) {
    let mut next = watcher.next();
    poll_fn(|cx| match next.as_mut().poll(cx) {
        Poll::Pending => Poll::Ready(()),
        Poll::Ready(said) => panic!("nothing changed, but this came: {said:?}"),
    })
    .await;
}

/// Calls `next` again and again, dropping the future every few milliseconds.
async fn impatient(watcher: &mut Box<dyn ConfigWatcher>, expected: &str) {
    let patient = async {
        loop {
            if let Ok(said) = tokio::time::timeout(Duration::from_millis(20), watcher.next()).await {
                return said.expect("it can be read");
            }
        }
    };
    let text = tokio::time::timeout(CAP, patient).await.expect("a dropped future loses nothing");
    assert_eq!(text.content, expected);
}
