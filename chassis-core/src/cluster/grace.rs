//! The first moments of a process, in which calls wait for services that no registry has announced yet.
//!
//! When many processes start together, a caller often starts before the service that it calls has registered. In these
//! moments a service without instances is most likely not missing, but late.
use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use super::Cluster;
use crate::{
    clock::Instant,
    types::units::{Span, text},
};

/// How long after the start of the process calls wait for a service that never had an instance: `discovery.grace`.
///
/// From `0s`, at which they fail at once, to `60s`; default `3s`. A call waits at most until its deadline.
///
/// ```
/// use std::time::Duration;
///
/// use chassis_core::Grace;
///
/// assert_eq!("5s".parse::<Grace>().unwrap().get(), Duration::from_secs(5));
/// assert!("5m".parse::<Grace>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grace(Duration);

/// The grace of a runtime. Clusters share it.
pub(crate) struct Start {
    begun: Instant,
    /// In nanoseconds. A call that finds a node does not read it.
    grace: AtomicU64,
    /// The number of services that calls wait for.
    waited_for: AtomicUsize,
}

/// A call that waits for a service to be announced.
pub(crate) struct Awaits<'a>(&'a Cluster);

/// The longest grace: callers find out after it that a name is wrong.
const LONGEST: Duration = Duration::from_secs(60);
/// Calls wait for at most this many services at once: names may come from input. Calls to further ones fail at once.
const MOST_SERVICES: usize = 1_024;

// === impl Grace ===

impl Grace {
    /// Calls to unknown services fail at once.
    pub const NONE: Grace = Grace(Duration::ZERO);

    /// `None` for more than 60 s.
    pub fn new(grace: Duration) -> Option<Self> {
        (grace <= LONGEST).then_some(Grace(grace))
    }

    /// The length.
    pub fn get(self) -> Duration {
        self.0
    }
}

impl Default for Grace {
    fn default() -> Self {
        Grace(Duration::from_secs(3))
    }
}

impl FromStr for Grace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Span(grace) = text.parse()?;
        Self::new(grace).ok_or_else(|| format!("`{text}` is too long; it goes from 0s to {}", Span(LONGEST)))
    }
}

impl fmt::Display for Grace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Span(self.0).fmt(f)
    }
}

text!(Grace: "a length of time as in 3s");

#[cfg(feature = "schema")]
crate::types::schema::written! {
    Grace: |generator| {
        "type": "string",
        "pattern": r"^\s*\+?([0-9]+\.?[0-9]*|\.[0-9]+)\s*(us|ms|s|m|h)$",
        "examples": ["3s", "0s"],
    }
}

// === impl Start ===

impl Start {
    /// The runtime starts now.
    pub(crate) fn new() -> Self {
        let this = Start { begun: Instant::now(), grace: AtomicU64::new(0), waited_for: AtomicUsize::new(0) };
        this.set(Grace::default());
        this
    }

    /// Returns whether this changes it.
    pub(crate) fn set(&self, Grace(grace): Grace) -> bool {
        let nanos = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        self.grace.swap(nanos, Ordering::Relaxed) != nanos
    }

    /// The start of the runtime.
    pub(super) fn begun(&self) -> Instant {
        self.begun
    }

    /// The end of the grace.
    pub(super) fn ends(&self) -> Instant {
        self.begun + Duration::from_nanos(self.grace.load(Ordering::Relaxed))
    }
}

// === impl Awaits ===

impl<'a> Awaits<'a> {
    /// A call waits for the service of `cluster`; `None` if calls wait for too many services.
    pub(super) fn begin(cluster: &'a Cluster) -> Option<Self> {
        let is_first = cluster.awaited.fetch_add(1, Ordering::AcqRel) == 0;
        // From here on the drop counts it down.
        let awaits = Awaits(cluster);
        let services = &cluster.lookup.start.waited_for;
        let is_too_many = is_first && services.fetch_add(1, Ordering::AcqRel) >= MOST_SERVICES;
        (!is_too_many).then_some(awaits)
    }
}

impl Drop for Awaits<'_> {
    fn drop(&mut self) {
        if self.0.awaited.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.lookup.start.waited_for.fetch_sub(1, Ordering::AcqRel);
        }
    }
}
