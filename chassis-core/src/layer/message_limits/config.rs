//! The settings of the table `message_limits`.
use std::num::NonZeroU32;

use super::Bounds;
use crate::{
    settings,
    types::units::{Rate, Size, Switch},
};

settings! {
    /// Bounds on the messages of one call: `message_limits: { answer_bytes: 64MiB, request_messages: 10000 }`.
    /// `off`, the default, removes all bounds; each bound can be `off`, too.
    pub struct MessageLimitsConfig, MessageLimitsPatch {
        /// The most bytes in the body of an answer, as sent on the wire. Default `off`.
        pub answer_bytes: Switch<Size> = Switch::Off,
        /// The most messages of one request. Default `off`; 0 is refused. No effect on REST.
        pub request_messages: Switch<NonZeroU32> = Switch::Off,
        /// The rate of the messages of one request: `500/s`; the messages of one second may come at once.
        /// Default `off`; `0/s` is refused. No effect on REST.
        pub request_rate: Switch<Rate> = Switch::Off,
        /// The most messages of one answer. Default `off`; 0 is refused. No effect on REST.
        pub answer_messages: Switch<NonZeroU32> = Switch::Off,
        /// The rate of the messages of one answer: `500/s`; the messages of one second may come at once.
        /// Default `off`; `0/s` is refused. No effect on REST.
        pub answer_rate: Switch<Rate> = Switch::Off,
    }
}

// === impl MessageLimitsConfig ===

impl MessageLimitsConfig {
    /// Refuses invalid bounds: returns the wrong key and the reason.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, rate) in [("request_rate", &self.request_rate), ("answer_rate", &self.answer_rate)] {
            if rate.on().is_some_and(|rate| rate.hertz() == 0.0) {
                return Err((
                    key,
                    format!("a rate of {} lets no message pass; write `off` to lift it", Rate::per_second(0)),
                ));
            }
        }
        Ok(())
    }

    /// Whether any bound is set.
    pub(super) fn is_on(&self) -> bool {
        self.request().is_on() || self.answer().is_on()
    }

    /// The bounds of a request.
    pub(super) fn request(&self) -> Bounds {
        Bounds {
            bytes: None,
            messages: self.request_messages.on().copied(),
            rate: self.request_rate.on().copied(),
        }
    }

    /// The bounds of an answer.
    pub(super) fn answer(&self) -> Bounds {
        Bounds {
            bytes: self.answer_bytes.on().map(|size| size.get() as u64),
            messages: self.answer_messages.on().copied(),
            rate: self.answer_rate.on().copied(),
        }
    }
}
