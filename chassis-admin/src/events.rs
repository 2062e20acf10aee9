//! Events as a stream of server-sent events, which a reader can go on with where it was.
use std::{
    fmt::Write,
    pin::Pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chassis_core::{Event, Events, NumberedEvent, Runtime};
use http::HeaderMap;
use serde::Serializer;
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, broadcast, oneshot, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};

/// The stream of one reader.
pub(crate) struct Feed {
    events: Events,
    news: broadcast::Receiver<Arc<Event>>,
    /// Numbers of events are those of one process: ids of another one are none of this.
    epoch: u64,
    /// The number of the last event that was sent.
    last: u64,
    has_begun: bool,
    /// When it ends, whatever happens.
    until: Instant,
    is_over: watch::Receiver<bool>,
    /// Dropped with the stream, which frees its place.
    _is_there: oneshot::Sender<()>,
}

/// The next part of a stream, with the rest of it.
pub(crate) type Step = Pin<Box<dyn Future<Output = Option<(Bytes, Feed)>> + Send>>;

/// A comment is sent after this time without an event, so that proxies and readers keep the connection.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// A stream ends after this time: a reader comes again, with the token of that time, and finds a place if others have
/// left it one.
const LONGEST: Duration = Duration::from_secs(5 * 60);
/// The pause after which a reader connects again, in milliseconds.
const RETRY: u32 = 1_000;

// === impl Feed ===

impl Feed {
    /// The events after the one that a request with these headers names by `last-event-id`; without it, all that are
    /// kept.
    pub(crate) fn new(
        runtime: &Runtime,
        epoch: u64,
        headers: &HeaderMap,
        is_over: watch::Receiver<bool>,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let id = headers.get("last-event-id").and_then(|id| id.to_str().ok());
        let last = id.and_then(|id| number(id, epoch)).unwrap_or(0);
        // Subscribed before the first look at what is there, so that no event is missed in between.
        let (events, news) = (runtime.events().clone(), runtime.events().subscribe());
        let until = Instant::now() + LONGEST;
        // A stream that its peer does not read is not polled, and would keep its place.
        let (is_there, is_gone) = oneshot::channel::<()>();
        runtime.tasks().spawn(async move {
            timeout_at(until, is_gone).await.ok(); // gone, or old
            drop(place);
        });
        Feed { events, news, epoch, last, has_begun: false, until, is_over, _is_there: is_there }
    }

    pub(crate) fn step(self) -> Step {
        Box::pin(self.next())
    }

    /// The next part; `None` when the process stops, and when the stream is old.
    async fn next(mut self) -> Option<(Bytes, Feed)> {
        if *self.is_over.borrow() || Instant::now() >= self.until {
            return None;
        }
        let mut text = String::new();
        if !std::mem::replace(&mut self.has_begun, true) {
            let _ = write!(text, "retry: {RETRY}\n\n"); // writing to a string never fails
        }
        loop {
            self.write_news(&mut text);
            if !text.is_empty() {
                return Some((text.into(), self));
            }
            tokio::select! {
                _ = self.is_over.changed() => return None,
                () = sleep_until(self.until) => return None,
                waited = timeout(KEEP_ALIVE, self.news.recv()) => match waited {
                    // The reader gets the missed events from the ring, or a report that they are lost.
                    Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => {}
                    Ok(Err(broadcast::error::RecvError::Closed)) => return None,
                    Err(_) => text.push_str(": still there\n\n"),
                },
            }
        }
    }

    fn write_news(&mut self, text: &mut String) {
        for NumberedEvent { number, at, event, .. } in self.events.since(self.last) {
            let missed = number - self.last - 1;
            if missed > 0 && self.last > 0 {
                let _ = write!(text, "event: missed\ndata: {{\"count\":{missed}}}\n\n");
            }
            self.last = number;
            let data = json!({
                "at": humantime::format_rfc3339_millis(at).to_string(),
                "level": event.level().as_str().to_ascii_lowercase(),
                "message": event.to_string(),
            });
            let _ = write!(text, "id: {:x}-{number}\nevent: {}\ndata: {data}\n\n", self.epoch, event.name());
        }
    }
}

/// The number in the id of an event, if it is of this process.
fn number(id: &str, epoch: u64) -> Option<u64> {
    let (of, number) = id.split_once('-')?;
    (u64::from_str_radix(of, 16) == Ok(epoch)).then(|| number.parse().ok())?
}

/// Writes a time as RFC 3339 has it.
pub(crate) fn serialize_time<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_rfc3339_millis(*at))
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_and_its_place_is_free() {
        let (runtime, places) = (Runtime::builder("tests").build().unwrap(), Arc::new(Semaphore::new(2)));
        let (over, begun) = (watch::Sender::new(false), Instant::now());
        let feed = || {
            let place = places.clone().try_acquire_owned().expect("there is a place");
            Feed::new(&runtime, 1, &HeaderMap::new(), over.subscribe(), place)
        };
        let unread = feed(); // its peer does not read
        let mut stream = Some(feed());
        assert_eq!(places.available_permits(), 0);
        let mut last = Duration::ZERO;
        while let Some(feed) = stream.take() {
            // It ends in the midst of events as well.
            runtime.events().emit(Event::FaultInjected { rule: "r".to_owned() });
            tokio::time::sleep(Duration::from_secs(7)).await;
            last = begun.elapsed();
            stream = feed.next().await.map(|(_, feed)| feed);
        }
        assert!((LONGEST..LONGEST + Duration::from_secs(7)).contains(&last), "{last:?}");
        tokio::task::yield_now().await;
        assert_eq!(places.available_permits(), 2);
        drop(unread);

        // A quiet one ends in time, and one that is dropped frees its place at once.
        let begun = Instant::now();
        let (mut stream, dropped) = (Some(feed()), feed());
        drop(dropped);
        tokio::task::yield_now().await;
        assert_eq!(places.available_permits(), 1);
        while let Some(feed) = stream.take() {
            stream = feed.next().await.map(|(_, feed)| feed);
        }
        assert_eq!(begun.elapsed().as_secs(), LONGEST.as_secs());
    }
}
