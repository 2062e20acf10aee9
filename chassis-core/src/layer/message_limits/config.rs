//! What people write: the table `message_limits`.
use std::num::NonZeroU32;

use super::Bounds;
use crate::{
    settings,
    types::units::{Rate, Size, Switch},
};

settings! {
    /// What one call may carry: `message_limits: { answer_bytes: 64MiB, request_messages: 10000 }`. `off`, the
    /// default, lifts every bound; so does `off` for a single one.
    pub struct MessageLimitsConfig, MessageLimitsPatch {
        /// The most bytes of the body of an answer, as they travel. Default `off`.
        pub answer_bytes: Switch<Size> = Switch::Off,
        /// The most messages of one request. Default `off`; 0 is refused. Without effect on REST.
        pub request_messages: Switch<NonZeroU32> = Switch::Off,
        /// How quickly the messages of one request may come: `500/s`, of which a second's worth at once. Default
        /// `off`; `0/s` is refused. Without effect on REST.
        pub request_rate: Switch<Rate> = Switch::Off,
        /// The most messages of one answer. Default `off`; 0 is refused. Without effect on REST.
        pub answer_messages: Switch<NonZeroU32> = Switch::Off,
        /// How quickly the messages of one answer may come: `500/s`, of which a second's worth at once. Default
        /// `off`; `0/s` is refused. Without effect on REST.
        pub answer_rate: Switch<Rate> = Switch::Off,
    }
}

// === impl MessageLimitsConfig ===

impl MessageLimitsConfig {
    /// Refuses what could not be meant: the key that is wrong, and why.
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

    /// Does it bound anything?
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
