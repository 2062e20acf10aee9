//! Measures a body, chunk by chunk.
use std::num::NonZeroU32;

use crate::{algorithm::gcra::Gcra, clock::Instant, types::units::Rate};

/// The bounds of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Bounds {
    /// The most bytes.
    pub bytes: Option<u64>,
    /// The most messages.
    pub messages: Option<NonZeroU32>,
    /// The rate of messages; the messages of one second, and at least one, may come at once.
    pub rate: Option<Rate>,
}

/// The measures of a body so far.
#[derive(Debug)]
pub(crate) struct Meter {
    bytes: u64,
    messages: u32,
    /// The protocol's position between two chunks.
    position: u64,
    bucket: Gcra,
}

/// The bound that a body exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// It has too many bytes.
    Bytes,
    /// It has too many messages.
    Messages,
    /// Its messages come too fast.
    Rate,
}

/// A chunk with which its body exceeds a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    /// The bound.
    pub bound: Bound,
    /// The number of the chunk's bytes that belong to messages within all bounds.
    pub within: usize,
}

// === impl Bounds ===

impl Bounds {
    /// Whether any bound is set.
    pub(crate) fn is_on(&self) -> bool {
        *self != Bounds::default()
    }

    /// Whether messages must be counted.
    pub(crate) fn counts_messages(&self) -> bool {
        self.messages.is_some() || self.rate.is_some()
    }
}

// === impl Meter ===

impl Meter {
    /// Nothing measured yet.
    pub(crate) fn new(now: Instant) -> Self {
        Meter { bytes: 0, messages: 0, position: 0, bucket: Gcra::new(now) }
    }

    /// Measures `chunk`, which follows the chunks before. `now` is only read if a rate is set; `next_message`
    /// is the protocol's.
    pub(crate) fn admit(
        &mut self,
        chunk: &[u8],
        bounds: &Bounds,
        now: impl FnOnce() -> Instant,
        next_message: &mut dyn FnMut(&mut u64, &[u8]) -> Option<usize>,
    ) -> Result<(), Over> {
        self.bytes = self.bytes.saturating_add(chunk.len() as u64);
        if bounds.bytes.is_some_and(|most| self.bytes > most) {
            return Err(Over { bound: Bound::Bytes, within: 0 });
        }
        if !bounds.counts_messages() {
            return Ok(());
        }
        let (mut now, mut read, mut moment) = (Some(now), 0, None);
        while let Some(begins) = next_message(&mut self.position, &chunk[read..]) {
            let within = read + begins;
            if bounds.messages.is_some_and(|most| self.messages >= most.get()) {
                return Err(Over { bound: Bound::Messages, within });
            }
            if let Some(rate) = bounds.rate {
                let now = *moment.get_or_insert_with(|| match now.take() {
                    Some(now) => now(),
                    None => Instant::now(),
                });
                if self.bucket.take(now, rate, burst(rate), 1).is_err() {
                    return Err(Over { bound: Bound::Rate, within });
                }
            }
            self.messages += 1;
            read = (within + 1).min(chunk.len());
        }
        Ok(())
    }
}

/// The number of messages in one second, at least one.
fn burst(rate: Rate) -> u32 {
    (rate.hertz().ceil() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Messages that end in `.`.
    fn dots(position: &mut u64, chunk: &[u8]) -> Option<usize> {
        for (at, byte) in chunk.iter().enumerate() {
            let begins = *position == 0;
            *position = u64::from(*byte != b'.');
            if begins {
                return Some(at);
            }
        }
        None
    }

    fn bounds(bytes: Option<u64>, messages: Option<u32>, rate: Option<&str>) -> Bounds {
        let rate = rate.map(|rate| rate.parse().unwrap());
        Bounds { bytes, messages: messages.and_then(NonZeroU32::new), rate }
    }

    /// Compares the part of `chunks` that passes, and the bound that stops it.
    #[track_caller]
    fn check(bounds: Bounds, chunks: &[&str], passes: &str, stopped_by: Option<Bound>) {
        let now = Instant::now();
        let (mut meter, mut passed) = (Meter::new(now), String::new());
        for chunk in chunks {
            match meter.admit(chunk.as_bytes(), &bounds, || now, &mut dots) {
                Ok(()) => passed.push_str(chunk),
                Err(Over { bound, within }) => {
                    passed.push_str(&chunk[..within]);
                    assert_eq!((&*passed, Some(bound)), (passes, stopped_by));
                    return;
                }
            }
        }
        assert_eq!((&*passed, None), (passes, stopped_by));
    }

    #[test]
    fn as_many_messages_pass_as_the_bound_says_however_they_are_cut() {
        let two = bounds(None, Some(2), None);
        for chunks in [&["a.b.c."][..], &["a", ".b", ".", "c."], &["a.", "b.", "c."], &["a.b", ".c."]] {
            check(two, chunks, "a.b.", Some(Bound::Messages));
        }
        check(two, &["a.b", "."], "a.b.", None);
        check(two, &["", "a.", "", "b."], "a.b.", None);
        check(bounds(None, Some(1), None), &["....."], ".", Some(Bound::Messages));
    }

    #[test]
    fn a_body_has_no_more_bytes_than_the_bound_says() {
        let five = bounds(Some(5), None, None);
        check(five, &["ab", "cde"], "abcde", None);
        check(five, &["ab", "cdef"], "ab", Some(Bound::Bytes));
        check(five, &["abcdef"], "", Some(Bound::Bytes));
    }

    #[test]
    fn messages_come_no_quicker_than_the_rate_says() {
        check(bounds(None, None, Some("2/s")), &["a.b.c."], "a.b.", Some(Bound::Rate));
        check(bounds(None, None, Some("6/m")), &["a.b."], "a.", Some(Bound::Rate));
        check(bounds(None, Some(2), Some("3/s")), &["a.b.c."], "a.b.", Some(Bound::Messages));
        let (start, bounds) = (Instant::now(), bounds(None, None, Some("2/s")));
        let mut meter = Meter::new(start);
        for i in 0..20 {
            let now = start + Duration::from_millis(500) * i;
            assert!(meter.admit(b"a.", &bounds, || now, &mut dots).is_ok(), "message {i}");
        }
    }

    #[test]
    fn the_clock_is_read_only_for_a_rate() {
        let mut meter = Meter::new(Instant::now());
        let all = bounds(Some(100), Some(100), None);
        assert!(meter.admit(b"a.", &all, || unreachable!("no rate"), &mut dots).is_ok());
    }
}
