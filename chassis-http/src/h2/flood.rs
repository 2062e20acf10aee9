//! Bounds on what an HTTP/2 peer may have us do for nothing, in either direction.
//!
//! A call is paid for by its streams, whose number is bounded. The frames that belong to no call have a budget: a
//! peer that sends more of them than a connection can need is cut off with `ENHANCE_YOUR_CALM`. Of the rest
//! of the known floods h2 bounds empty DATA, CONTINUATION, streams above the limit, and resets that a peer provokes.
use std::time::Duration;

use tokio::time::Instant;

use super::frames::{FrameHead, GOAWAY, HEADERS, PING, PRIORITY, RESET, SETTINGS, WINDOW_UPDATE};

/// Why a connection, or a stream, is ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abuse {
    /// Over half of its streams were reset before their answer began.
    PrematureResets,
    /// The same, by their number in a second.
    ResetRate,
    /// Handlers of streams that were reset run on, or wait to be ended: more than can be wanted.
    TooManyHandlers,
    Ping,
    Settings,
    WindowUpdate,
    Priority,
    Reset,
    GoAway,
    /// More heads than streams.
    Headers,
    /// Frames of kinds that HTTP/2 does not know.
    UnknownFrame,
    /// h2 found it out: CONTINUATION, empty DATA, tiny DATA, refused streams, resets provoked.
    Frames,
    /// The peer reads too slowly what is held for it.
    SlowReader,
}

/// A bucket of tokens, each worth a byte that we write.
#[derive(Debug)]
pub(crate) struct FrameBudget {
    left: u32,
    filled: Instant,
    /// The highest number of a stream, and how many lists of headers came that did not end theirs.
    highest: u32,
    lists: u32,
}

/// 10,000 frames at once: more than any client sends that opens all its streams, and some milliseconds of work.
const BURST: u32 = 10_000 * FRAME;
/// 2,000 frames a second: under a hundredth of a processor.
const PER_MILLISECOND: u32 = 2 * FRAME;
/// So that two `WINDOW_UPDATE`s for each little message (20 bytes with its header) are paid for by that message.
const FRAME: u32 = 8;
/// Those that we answer: the 17 bytes of the answer earn less than that. A client that measures bandwidth pings for
/// each DATA frame it gets, at most.
const ANSWERED: u32 = 4 * FRAME;

// === impl Abuse ===

impl Abuse {
    /// As figures and logs name it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Abuse::PrematureResets => "premature_resets",
            Abuse::ResetRate => "reset_rate",
            Abuse::TooManyHandlers => "too_many_handlers",
            Abuse::Ping => "ping_flood",
            Abuse::Settings => "settings_flood",
            Abuse::WindowUpdate => "window_update_flood",
            Abuse::Priority => "priority_flood",
            Abuse::Reset => "reset_flood",
            Abuse::GoAway => "goaway_flood",
            Abuse::Headers => "headers_flood",
            Abuse::UnknownFrame => "unknown_frame_flood",
            Abuse::Frames => "frame_limits",
            Abuse::SlowReader => "min_write_rate",
        }
    }
}

// === impl FrameBudget ===

impl FrameBudget {
    pub(crate) fn new(now: Instant) -> Self {
        FrameBudget { left: BURST, filled: now, highest: 0, lists: 0 }
    }

    /// So many bytes were written.
    pub(crate) fn earn(&mut self, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(BURST);
        self.left = self.left.saturating_add(bytes).min(BURST);
    }

    /// A frame came in; an error says that the budget is used up, and by what.
    pub(crate) fn spend(&mut self, frame: &FrameHead, now: impl FnOnce() -> Instant) -> Result<(), Abuse> {
        let (price, abuse) = match frame.kind {
            PING if !frame.is_ack() => (ANSWERED, Abuse::Ping),
            PING => (FRAME, Abuse::Ping),
            SETTINGS if !frame.is_ack() => (ANSWERED, Abuse::Settings),
            SETTINGS => (FRAME, Abuse::Settings),
            WINDOW_UPDATE => (FRAME, Abuse::WindowUpdate),
            PRIORITY => (FRAME, Abuse::Priority),
            RESET => (FRAME, Abuse::Reset),
            GOAWAY => (FRAME, Abuse::GoAway),
            kind if FrameHead::is_unknown(kind) => (FRAME, Abuse::UnknownFrame),
            _ => {
                if frame.kind == HEADERS {
                    return self.headers(frame, now);
                }
                return Ok(());
            }
        };
        self.pay(price, abuse, now)
    }

    /// Each stream has one list of headers that does not end it. Answers with 1xx before that, which h2 keeps,
    /// show in their number, which is above that of the streams.
    fn headers(&mut self, frame: &FrameHead, now: impl FnOnce() -> Instant) -> Result<(), Abuse> {
        self.highest = self.highest.max(frame.stream);
        if !frame.ends_stream() {
            if self.lists > self.highest / 2 {
                return self.pay(FRAME, Abuse::Headers, now);
            }
            self.lists += 1;
        }
        // The stream may be reset.
        self.earn(FRAME as usize);
        Ok(())
    }

    fn pay(&mut self, price: u32, abuse: Abuse, now: impl FnOnce() -> Instant) -> Result<(), Abuse> {
        if self.left < price {
            self.fill(now());
        }
        self.left = self.left.checked_sub(price).ok_or(abuse)?;
        Ok(())
    }

    #[cold]
    fn fill(&mut self, now: Instant) {
        let millis = now.saturating_duration_since(self.filled).as_millis();
        self.filled += Duration::from_millis(u64::try_from(millis).unwrap_or(u64::MAX));
        self.earn(usize::try_from(millis.saturating_mul(PER_MILLISECOND.into())).unwrap_or(usize::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::frames::{DATA, END_STREAM};

    fn head(kind: u8, flags: u8) -> FrameHead {
        FrameHead { kind, flags, length: 8, stream: 1 }
    }

    /// How many such frames a new connection may send within `millis`, evenly spread, if it may send all `most`:
    /// none is missing.
    #[track_caller]
    fn check(frame: FrameHead, written: usize, millis: u64, most: usize, expected: Result<(), Abuse>) {
        let begun = Instant::now();
        let mut budget = FrameBudget::new(begun);
        let sent = (0..most).try_for_each(|n| {
            let now = begun + Duration::from_millis(millis * n as u64 / most as u64);
            budget.spend(&frame, || now)?;
            budget.earn(written);
            Ok(())
        });
        assert_eq!(sent, expected);
    }

    #[test]
    fn a_burst_is_let_pass_and_a_flood_is_not() {
        for (kind, most, abuse) in [
            (PING, 2_500, Abuse::Ping),
            (SETTINGS, 2_500, Abuse::Settings),
            (WINDOW_UPDATE, 10_000, Abuse::WindowUpdate),
            (PRIORITY, 10_000, Abuse::Priority),
            (RESET, 10_000, Abuse::Reset),
            (GOAWAY, 10_000, Abuse::GoAway),
            (0x10, 10_000, Abuse::UnknownFrame),
            (0xff, 10_000, Abuse::UnknownFrame),
        ] {
            check(head(kind, 0), 0, 0, most, Ok(()));
            check(head(kind, 0), 0, 0, most + 1, Err(abuse));
        }
        // Calls are bounded elsewhere.
        check(head(DATA, 0), 0, 0, 1_000_000, Ok(()));
        check(head(HEADERS, END_STREAM), 0, 0, 1_000_000, Ok(()));
        // One head that does not end the stream, then 1xx.
        check(head(HEADERS, 0), 0, 0, 10_001, Ok(()));
        check(head(HEADERS, 0), 0, 0, 10_002, Err(Abuse::Headers));
    }

    #[test]
    fn our_answers_do_not_pay_for_a_flood() {
        check(head(PING, 0), 17, 0, 100_000, Err(Abuse::Ping));
        check(head(SETTINGS, 0), 9, 0, 100_000, Err(Abuse::Settings));
    }

    #[test]
    fn what_we_send_pays_for_what_comes_back() {
        // Two for each little message.
        check(head(WINDOW_UPDATE, 0), 10, 0, 1_000_000, Ok(()));
        // A ping, which is answered, for each little message.
        check(head(PING, 0), 17 + 20, 0, 1_000_000, Ok(()));
    }

    #[test]
    fn time_pays_too() {
        check(head(WINDOW_UPDATE, 0), 0, 60_000, 120_000, Ok(()));
        check(head(WINDOW_UPDATE, 0), 0, 60_000, 140_000, Err(Abuse::WindowUpdate));
        check(head(PING, 0), 0, 60_000, 30_000, Ok(()));
    }

    #[test]
    fn each_stream_may_be_reset_once() {
        let begun = Instant::now();
        let mut budget = FrameBudget::new(begun);
        for call in 0..100_000 {
            let frame = |kind| FrameHead { kind, flags: 0, length: 8, stream: 2 * call + 1 };
            budget.spend(&frame(HEADERS), || begun).unwrap();
            budget.spend(&frame(RESET), || begun).unwrap();
        }
    }
}
