//! Times as one number, for fast arithmetic.
//!
//! A difference of two standard instants costs about fifty instructions, of two numbers one. Every call takes
//! half a dozen differences between two reads of the clock.
use std::{
    num::NonZeroU64,
    ops::{Add, Sub},
    sync::OnceLock,
    time::Duration,
};

/// A time on tokio's clock, which tests can pause: nanoseconds since an hour before the first use.
///
/// Arithmetic saturates after 584 years instead of panicking.
///
/// ```
/// use std::time::Duration;
/// use chassis_core::clock::Instant;
///
/// let now = Instant::now();
/// let later = now + Duration::from_millis(3);
/// assert_eq!(later.saturating_duration_since(now), Duration::from_millis(3));
/// assert_eq!(now.saturating_duration_since(later), Duration::ZERO);
/// assert_eq!(Instant::from(tokio::time::Instant::from(later)), later);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(NonZeroU64);

/// The clock starts this long before its first use, because a paused clock may be behind.
const BEFORE: Duration = Duration::from_secs(3600);

const SECOND: u64 = 1_000_000_000;

/// The value of a time that the system can't represent, as in tokio: thirty years from now.
const FAR: Duration = Duration::from_secs(86400 * 365 * 30);

/// The start of the clock.
fn epoch() -> std::time::Instant {
    static EPOCH: OnceLock<std::time::Instant> = OnceLock::new();
    *EPOCH.get_or_init(|| {
        #[allow(clippy::disallowed_methods)] // the start of the clock, not the current time
        let now = std::time::Instant::now();
        now.checked_sub(BEFORE).unwrap_or(now)
    })
}

/// Whether tokio's clock is paused, as in tests. Takes a microsecond or two.
pub(crate) fn is_paused() -> bool {
    let before = tokio::time::Instant::now();
    #[allow(clippy::disallowed_methods)] // the clock that can't be paused
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_micros(1) {
        std::hint::spin_loop();
    }
    tokio::time::Instant::now() == before
}

// === impl Instant ===

impl Instant {
    /// The current time.
    #[inline]
    pub fn now() -> Self {
        tokio::time::Instant::now().into()
    }

    /// The time from `earlier` to this; zero if `earlier` is later.
    #[inline]
    pub fn saturating_duration_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.nanos_since(earlier))
    }

    /// The same in whole nanoseconds.
    #[inline]
    pub(crate) fn nanos_since(self, earlier: Instant) -> u64 {
        self.0.get().saturating_sub(earlier.0.get())
    }

    /// The same in whole milliseconds.
    #[inline]
    pub(crate) fn millis_since(self, earlier: Instant) -> u64 {
        self.nanos_since(earlier) / 1_000_000
    }

    /// The time from this until now.
    pub fn elapsed(self) -> Duration {
        Instant::now().saturating_duration_since(self)
    }

    /// This much earlier, if that can be represented.
    pub fn checked_sub(self, time: Duration) -> Option<Self> {
        let nanos = u64::try_from(time.as_nanos()).ok()?;
        NonZeroU64::new(self.0.get().checked_sub(nanos)?).map(Instant)
    }

    /// This much later, if that can be represented.
    #[inline]
    pub fn checked_add(self, time: Duration) -> Option<Self> {
        let nanos = time.as_secs().checked_mul(SECOND)?.checked_add(time.subsec_nanos().into())?;
        self.0.checked_add(nanos).map(Instant)
    }
}

impl From<tokio::time::Instant> for Instant {
    #[inline]
    fn from(at: tokio::time::Instant) -> Self {
        let since = at.into_std().saturating_duration_since(epoch());
        let nanos = since.as_secs().saturating_mul(SECOND).saturating_add(since.subsec_nanos().into());
        Instant(NonZeroU64::MIN.saturating_add(nanos))
    }
}

impl From<Instant> for tokio::time::Instant {
    fn from(at: Instant) -> Self {
        let since = Duration::from_nanos(at.0.get() - 1);
        let at = epoch().checked_add(since);
        at.map_or_else(|| tokio::time::Instant::now() + FAR, tokio::time::Instant::from_std)
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;
    fn add(self, time: Duration) -> Instant {
        self.checked_add(time).unwrap_or(Instant(NonZeroU64::MAX))
    }
}

impl Sub<Duration> for Instant {
    type Output = Instant;
    fn sub(self, time: Duration) -> Instant {
        self.checked_sub(time).unwrap_or(Instant(NonZeroU64::MIN))
    }
}

impl Sub for Instant {
    type Output = Duration;
    fn sub(self, earlier: Instant) -> Duration {
        self.saturating_duration_since(earlier)
    }
}

impl std::ops::AddAssign<Duration> for Instant {
    fn add_assign(&mut self, time: Duration) {
        *self = *self + time;
    }
}

impl std::fmt::Debug for Instant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        tokio::time::Instant::from(*self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn reckons_as_tokio_does() {
        let (theirs, ours) = (tokio::time::Instant::now(), Instant::now());
        for time in [Duration::ZERO, Duration::from_nanos(1), S, 1_000_000 * S] {
            let (their_later, later) = (theirs + time, Instant::from(theirs) + time);
            assert_eq!(tokio::time::Instant::from(later), their_later);
            assert_eq!(later - Instant::from(theirs), their_later - theirs);
            assert_eq!((ours + time) - time, ours);
        }
        assert!(Instant::from(theirs) <= ours && ours <= Instant::now());
    }

    #[test]
    fn ends_where_the_number_does() {
        let now = Instant::now();
        assert_eq!(now.checked_add(Duration::MAX), None);
        assert_eq!(now + Duration::MAX, Instant(NonZeroU64::MAX));
        assert_eq!(now - Duration::MAX, Instant(NonZeroU64::MIN));
        assert!(tokio::time::Instant::from(now + Duration::MAX) > tokio::time::Instant::now() + S);
        assert_eq!((now.nanos_since(now + S), (now + S).millis_since(now)), (0, 1_000));
    }

    #[tokio::test(start_paused = true)]
    async fn stands_still_where_tokio_does() {
        let start = Instant::now();
        tokio::time::sleep(S).await;
        assert_eq!(start.elapsed(), S);
    }

    #[tokio::test]
    async fn a_clock_that_stands_still_is_known() {
        assert!((0..1_000).all(|_| !is_paused()));
        tokio::time::pause();
        assert!((0..1_000).all(|_| is_paused()));
        tokio::time::resume();
        assert!(!is_paused());
    }

    #[test]
    fn none_costs_no_room() {
        assert_eq!(size_of::<Option<Instant>>(), 8);
    }
}
