//! The activity of a connection, and the decision to end a connection because of it, or of its absence.
use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
    time::Duration,
};

use chassis_core::Random;
use tokio::{sync::Notify, time::Instant};

use super::CLOSE_GRACE;
use crate::{
    ServerConfig,
    h2::{Shares, Streams, Unfinished, Unsent, Windows},
    net::write_rate::{Pace, WriteRate},
};

/// Requests in flight, and the time since which a head has been arriving. The parts of a connection share it.
#[derive(Debug)]
pub(crate) struct Activity {
    in_flight: AtomicUsize,
    /// Requests so far: an unchanged number means that none arrived in between.
    requests: AtomicUsize,
    /// The arrival time of the first byte of an incomplete head.
    head: Mutex<Option<Instant>>,
    /// The same for an incomplete HTTP/2 frame; and whether it belongs to a request's body.
    frame: Mutex<Option<(Instant, bool)>>,
    /// The rate at which the peer reads waiting data, if any waits.
    writing: Mutex<Option<WriteRate>>,
    /// The streams of an HTTP/2 connection.
    pub(crate) streams: Streams,
    pub(crate) windows: Windows,
    /// The bytes that wait for the peer.
    unsent: Arc<Unsent>,
    /// For each stream; `None`: no limit.
    min_write_rate: Option<NonZeroU32>,
    /// It has to make room for another connection.
    is_evicted: AtomicBool,
    evicted: Notify,
    /// Each answer is the last one of its connection.
    closes: AtomicBool,
}

/// The activities of all connections of a server.
#[derive(Default)]
pub(crate) struct Activities(Mutex<Vec<Weak<Activity>>>);

/// A request in flight; dropped at the end of its answer.
pub(crate) struct InFlight(Arc<Activity>);

/// Decides when a connection must end. It is called from time to time, not for every event.
#[derive(Debug)]
pub(crate) struct Watch {
    header_timeout: Duration,
    idle_timeout: Duration,
    /// The time that calls have once the connection is too old; `None`: no limit.
    grace: Option<Duration>,
    /// The time at which the connection is too old.
    expires: Option<Instant>,
    /// The time since which nothing was in flight, and the number of requests at that time.
    idle: (Instant, usize),
    /// The peer was asked to close; the connection is cut at this time, or after its last call.
    cut: Option<Option<Instant>>,
}

/// The next step for a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// Check again then.
    Wait(Instant),
    /// Ask the peer to close: GOAWAY, or no more keep-alive; and check again then.
    Ask(Instant),
    /// Close the connection.
    Close,
    /// Close the connection, because the peer reads too slowly.
    CutOff,
}

/// Divides the bytes that a connection may hold.
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
            is_evicted: AtomicBool::new(false),
            evicted: Notify::new(),
            closes: AtomicBool::new(false),
        }
    }

    /// Resolves when this connection has to make room for another one.
    pub(crate) async fn evicted(&self) {
        self.evicted.notified().await;
    }

    /// Asks the connection to make room, unless it is used, or was asked before.
    fn evict(&self) -> bool {
        let is_used = self.in_flight() > 0 || self.is_writing();
        if is_used || self.is_evicted.swap(true, AcqRel) {
            return false;
        }
        self.evicted.notify_one();
        true
    }

    /// From now on each answer over HTTP/1.1 says that the connection closes behind it.
    pub(crate) fn close_after_answers(&self) {
        self.closes.store(true, Release);
    }

    /// Records that the head of a request is complete.
    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, AcqRel);
        self.requests.fetch_add(1, AcqRel);
        *lock(&self.head) = None;
        InFlight(self.clone())
    }

    /// Records bytes that belong to no request in flight, but to a head.
    pub(crate) fn head_bytes(&self) {
        if self.in_flight() == 0 {
            lock(&self.head).get_or_insert_with(Instant::now);
        }
    }

    /// Records whether the last read ends within a frame. `goes_on`: no byte of another frame has arrived.
    pub(crate) fn set_unfinished(&self, what: Unfinished, goes_on: bool) {
        let (mut frame, is_body) = (lock(&self.frame), what == Unfinished::Data);
        *frame = match (what, *frame) {
            (Unfinished::Nothing, _) => None,
            (_, Some((since, _))) if goes_on => Some((since, is_body)),
            _ => Some((Instant::now(), is_body)),
        };
    }

    /// Records that data waits for the peer to read.
    #[cold]
    pub(crate) fn write_blocked(&self) {
        lock(&self.writing).get_or_insert_with(|| WriteRate::new(Instant::now()));
    }

    /// Records that the peer read `bytes` of the waiting data; other writes are not counted.
    pub(crate) fn wrote(&self, bytes: usize) {
        lock(&self.writing).iter_mut().for_each(|rate| rate.took(bytes));
    }

    /// Records that no data waits any more.
    pub(crate) fn write_unblocked(&self) {
        *lock(&self.writing) = None;
    }

    /// Whether data waits for the peer to read.
    pub(crate) fn is_writing(&self) -> bool {
        lock(&self.writing).is_some()
    }

    /// Whether the peer reads too slowly; if not, when to check again.
    fn pace(&self, now: Instant) -> Option<Pace> {
        let least = self.min_write_rate?.get();
        lock(&self.writing).as_mut().map(|rate| rate.look(now, least))
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Acquire)
    }

    /// The time since which the end of a head or of a frame is missing. The body of a request in flight may
    /// arrive as slowly as its handler allows.
    fn head(&self) -> Option<Instant> {
        let frame = lock(&self.frame).filter(|(_, is_body)| !is_body || self.in_flight() == 0);
        match (*lock(&self.head), frame) {
            (Some(head), Some((frame, _))) => Some(head.min(frame)),
            (head, frame) => head.or(frame.map(|(since, _)| since)),
        }
    }
}

impl InFlight {
    /// Whether the connection closes behind this answer.
    pub(crate) fn is_last(&self) -> bool {
        self.0.closes.load(Acquire)
    }

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
    /// Creates the activity of a new connection.
    pub(crate) fn begin(&self, config: &ServerConfig) -> Arc<Activity> {
        let activity = Arc::new(Activity::new(config));
        let mut all = lock(&self.0);
        if all.len() == all.capacity() {
            all.retain(|one| one.strong_count() > 0);
        }
        all.push(Arc::downgrade(&activity));
        activity
    }

    /// Closes the connection that has been open for longest, of those without a request; `false` if there is none.
    pub(crate) fn evict(&self) -> bool {
        lock(&self.0).iter().filter_map(Weak::upgrade).any(|one| one.evict())
    }

    /// Requests in flight on all connections.
    pub(crate) fn in_flight(&self) -> usize {
        lock(&self.0).iter().filter_map(Weak::upgrade).map(|one| one.in_flight()).sum()
    }
}

/// No code panics while these locks are held, so a poisoned lock is still valid.
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

    /// Decides the next step at `now`. A peer without calls in flight is disconnected soon after it was asked
    /// to close.
    pub(crate) fn look(&mut self, now: Instant, activity: &Activity) -> Act {
        let (in_flight, requests) = (activity.in_flight(), activity.requests.load(Acquire));
        // An answer may be complete for its handler while it is still being read.
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

    /// The server drains: a peer without calls in flight gets a moment to close, others have until the server
    /// cuts the remaining connections.
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

    /// The time at which the watch, polled when it asks for it, first does something other than wait.
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
