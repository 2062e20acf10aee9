//! The activity on a connection, and when it, or its absence, ends the connection.
use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering::*},
    },
    time::Duration,
};

use chassis_core::Random;
use tokio::time::Instant;

use super::CLOSE_GRACE;
use crate::{
    ServerConfig,
    h2::{Shares, Streams, Unfinished, Unsent, Windows},
    net::write_rate::{Pace, WriteRate},
};

/// Requests in flight, and since when a head has been coming in. Shared by a connection's parts.
#[derive(Debug)]
pub(crate) struct Activity {
    in_flight: AtomicUsize,
    /// Requests so far: the same number twice means that none came between.
    requests: AtomicUsize,
    /// When the first byte of a head came whose end has not.
    head: Mutex<Option<Instant>>,
    /// The same of a frame, over HTTP/2; and whether it is of a request's body.
    frame: Mutex<Option<(Instant, bool)>>,
    /// How fast the peer takes what waits to be written, if anything does.
    writing: Mutex<Option<WriteRate>>,
    /// Of HTTP/2.
    pub(crate) streams: Streams,
    pub(crate) windows: Windows,
    /// The bytes that wait for them.
    unsent: Arc<Unsent>,
    /// Of each stream; `None`: no bound.
    min_write_rate: Option<NonZeroU32>,
}

/// The activities of all connections of a server.
#[derive(Default)]
pub(crate) struct Activities(Mutex<Vec<Weak<Activity>>>);

/// A request in flight; dropped at the end of its answer.
pub(crate) struct InFlight(Arc<Activity>);

/// Decides when a connection has to go. It is asked every now and then, not on every event.
#[derive(Debug)]
pub(crate) struct Watch {
    header_timeout: Duration,
    idle_timeout: Duration,
    /// How long calls may go on once the connection is too old; `None`: as long as they live.
    grace: Option<Duration>,
    /// When it is too old.
    expires: Option<Instant>,
    /// Since when nothing was in flight, and how many requests there had been.
    idle: (Instant, usize),
    /// It was asked to go, and is cut then, or when its last call is over.
    cut: Option<Option<Instant>>,
}

/// The next step for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Look again then.
    Wait(Instant),
    /// Ask it to go: GOAWAY, or no more keep-alive; and look again then.
    Ask(Instant),
    /// Close it.
    Close,
    /// Close it, since the peer reads too slowly.
    CutOff,
}

/// How the bytes that a connection may hold are divided.
pub(crate) fn shares(config: &ServerConfig) -> Shares {
    Shares::new(config.send_buffer.get(), config.max_streams.get())
}

// === impl Activity ===

impl Activity {
    fn new(config: &ServerConfig) -> Self {
        let shares = shares(config);
        Activity {
            in_flight: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            head: Mutex::default(),
            frame: Mutex::default(),
            writing: Mutex::default(),
            streams: Streams::default(),
            windows: Windows::new(shares.untold),
            unsent: Unsent::new(shares.waiting),
            min_write_rate: config.min_write_rate.on().copied(),
        }
    }

    /// The head of a request is there.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, AcqRel);
        self.requests.fetch_add(1, AcqRel);
        *lock(&self.head) = None;
        InFlight(self.clone())
    }

    /// Bytes have come in that belong to no request in flight: those of a head.
    pub(crate) fn head_bytes(&self) {
        if self.in_flight() == 0 {
            lock(&self.head).get_or_insert_with(Instant::now);
        }
    }

    /// Records whether the last read ends within a frame. `goes_on`: no byte of another frame has come.
    pub(crate) fn set_unfinished(&self, what: Unfinished, goes_on: bool) {
        let (mut frame, is_body) = (lock(&self.frame), what == Unfinished::Data);
        *frame = match (what, *frame) {
            (Unfinished::Nothing, _) => None,
            (_, Some((since, _))) if goes_on => Some((since, is_body)),
            _ => Some((Instant::now(), is_body)),
        };
    }

    /// Something has to wait until the peer has read.
    #[cold]
    pub(crate) fn write_blocked(&self) {
        lock(&self.writing).get_or_insert_with(|| WriteRate::new(Instant::now()));
    }

    /// The peer took `bytes` of those that wait; other writes are not counted.
    pub(crate) fn wrote(&self, bytes: usize) {
        lock(&self.writing).iter_mut().for_each(|rate| rate.took(bytes));
    }

    /// Nothing waits any more.
    pub(crate) fn write_unblocked(&self) {
        *lock(&self.writing) = None;
    }

    /// Does anything wait until the peer has read?
    pub(crate) fn is_writing(&self) -> bool {
        lock(&self.writing).is_some()
    }

    /// Does the peer read too slowly; if not, when to look again?
    fn pace(&self, now: Instant) -> Option<Pace> {
        let least = self.min_write_rate?.get();
        lock(&self.writing).as_mut().map(|rate| rate.look(now, least))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Acquire)
    }

    /// Since when the end of a head has been waited for, or of a frame. The body of a request that is in flight
    /// may come as slowly as its handler allows.
    fn head(&self) -> Option<Instant> {
        let frame = lock(&self.frame).filter(|(_, is_body)| !is_body || self.in_flight() == 0);
        match (*lock(&self.head), frame) {
            (Some(head), Some((frame, _))) => Some(head.min(frame)),
            (head, frame) => head.or(frame.map(|(since, _)| since)),
        }
    }
}

impl InFlight {
    pub(crate) fn streams(&self) -> &Streams {
        &self.0.streams
    }

    pub(crate) fn windows(&self) -> &Windows {
        &self.0.windows
    }

    pub(crate) fn unsent(&self) -> &Arc<Unsent> {
        &self.0.unsent
    }

    pub(crate) fn min_write_rate(&self) -> Option<u32> {
        self.0.min_write_rate.map(NonZeroU32::get)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, AcqRel);
    }
}

// === impl Activities ===

impl Activities {
    /// That of a new connection.
    pub(crate) fn begin(&self, config: &ServerConfig) -> Arc<Activity> {
        let activity = Arc::new(Activity::new(config));
        let mut all = lock(&self.0);
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(&activity));
        activity
    }

    /// Requests in flight on all of them.
    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.0).iter().filter_map(Weak::upgrade).map(|one| one.in_flight()).sum()
    }
}

/// Nothing panics while these are held; a poisoned lock would be as good as new.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Watch ===

impl Watch {
    pub(crate) fn new(now: Instant, config: &ServerConfig, random: &Random) -> Self {
        let age = config.max_age.0;
        let jitter = age.mul_f64(config.max_age_jitter.get());
        let age = random.between(age.saturating_sub(jitter), age.saturating_add(jitter));
        Watch {
            header_timeout: config.header_timeout.get(),
            idle_timeout: config.idle_timeout.get(),
            grace: Some(config.max_age_grace.0).filter(|grace| !grace.is_zero()),
            expires: (!age.is_zero()).then(|| now.checked_add(age)).flatten(),
            idle: (now, 0),
            cut: None,
        }
    }

    /// Decides the next step at `now`. A peer that has nothing in flight goes soon after it was asked to.
    pub(crate) fn look(&mut self, now: Instant, activity: &Activity) -> Act {
        let (in_flight, requests) = (activity.in_flight(), activity.requests.load(Acquire));
        // An answer may be over for its handler, and still be read.
        if in_flight > 0 || requests != self.idle.1 || activity.is_writing() {
            self.idle = (now, requests);
        }
        if activity.head().is_some_and(|since| now >= since + self.header_timeout) {
            return Act::Close;
        }
        let pace = activity.pace(now);
        if pace == Some(Pace::TooSlow) {
            return Act::CutOff;
        }
        match self.cut {
            Some(cut) if cut.is_some_and(|cut| now >= cut) || now >= self.idle.0 + CLOSE_GRACE => Act::Close,
            Some(cut) => Act::Wait(cut.map_or(now + CLOSE_GRACE, |cut| cut.min(now + CLOSE_GRACE))),
            None if self.expires.is_some_and(|at| now >= at) => {
                self.expires = None;
                self.ask(now, self.grace)
            }
            None if now >= self.idle.0 + self.idle_timeout => self.ask(now, Some(CLOSE_GRACE)),
            None => {
                let head = activity.head().unwrap_or(now) + self.header_timeout;
                let idle = self.idle.0 + self.idle_timeout;
                let next = self.expires.map_or(head.min(idle), |at| at.min(head).min(idle));
                Act::Wait(match pace {
                    Some(Pace::Wait(at)) => next.min(at),
                    _ => next,
                })
            }
        }
    }

    /// The server drains: a peer that has nothing in flight has a moment to go, others until the server cuts what
    /// is left.
    pub(crate) fn drain(&mut self, now: Instant) -> Act {
        self.expires = None;
        self.ask(now, None)
    }

    fn ask(&mut self, now: Instant, bound: Option<Duration>) -> Act {
        self.cut = Some(bound.map(|bound| now + bound));
        self.idle.0 = now;
        Act::Ask(now + bound.map_or(CLOSE_GRACE, |bound| bound.min(CLOSE_GRACE)))
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::units::Span;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch(now: Instant) -> Watch {
        Watch::new(now, &ServerConfig::default(), &Random::seeded(1))
    }

    /// When the watch, asked at the times it wants, first does something else than wait.
    fn first_act(watch: &mut Watch, start: Instant, activity: &Activity) -> (u64, Act) {
        let mut now = start;
        loop {
            match watch.look(now, activity) {
                Act::Wait(at) => now = at,
                act => return ((now - start).as_secs(), act),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_asked_to_go_and_then_closed() {
        let (now, activity) = (Instant::now(), Arc::new(Activity::new(&ServerConfig::default())));
        let mut watch = watch(now);
        let asked = now + 75 * SECOND;
        assert_eq!(first_act(&mut watch, now, &activity), (75, Act::Ask(asked + SECOND)));
        assert_eq!(watch.look(asked + SECOND, &activity), Act::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_head_closes_even_while_idle_time_is_left() {
        let (now, activity) = (Instant::now(), Arc::new(Activity::new(&ServerConfig::default())));
        let mut watch = watch(now);
        tokio::time::advance(3 * SECOND).await;
        activity.head_bytes();
        assert_eq!(first_act(&mut watch, now, &activity), (13, Act::Close));
    }

    #[tokio::test(start_paused = true)]
    async fn busy_connections_are_asked_to_go_at_their_age_and_their_calls_go_on() {
        let (now, activity) = (Instant::now(), Arc::new(Activity::new(&ServerConfig::default())));
        let mut watch = watch(now);
        let busy = activity.begin();
        let (age, act) = first_act(&mut watch, now, &activity);
        assert!((1_620..=1_980).contains(&age), "{age}");
        let Act::Ask(next) = act else { panic!("{act:?}") };
        let later = next + 86_400 * SECOND;
        assert_eq!(watch.look(later, &activity), Act::Wait(later + SECOND));
        drop(busy);
        assert_eq!(watch.look(later + SECOND, &activity), Act::Close);
    }

    #[tokio::test(start_paused = true)]
    async fn busy_connections_are_cut_after_the_grace_that_is_set() {
        let (now, activity) = (Instant::now(), Arc::new(Activity::new(&ServerConfig::default())));
        let config = ServerConfig { max_age_grace: Span(30 * SECOND), ..ServerConfig::default() };
        let mut watch = Watch::new(now, &config, &Random::seeded(1));
        let _busy = activity.begin();
        let (_, Act::Ask(next)) = first_act(&mut watch, now, &activity) else { panic!() };
        assert_eq!(first_act(&mut watch, next, &activity), (29, Act::Close));
    }

    #[tokio::test(start_paused = true)]
    async fn a_draining_connection_closes_once_its_last_request_is_answered() {
        let (now, activity) = (Instant::now(), Arc::new(Activity::new(&ServerConfig::default())));
        let mut watch = watch(now);
        let busy = activity.begin();
        assert_eq!(watch.drain(now), Act::Ask(now + SECOND));
        let later = now + 600 * SECOND;
        assert_eq!(watch.look(later, &activity), Act::Wait(later + SECOND));
        drop(busy);
        assert_eq!(watch.look(later + SECOND, &activity), Act::Close);
    }
}
