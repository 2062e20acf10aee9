//! Bounds what one call carries: the bytes of its answer, and the number and the rate of the messages that it sends
//! and gets.
//!
//! Off by default. What is over a bound is not delivered, nothing is kept to be delivered later, and the call ends:
//! RESOURCE_EXHAUSTED for the reason TOO_LARGE, or RATE_LIMITED where messages come too quickly. This process
//! refuses, so no circuit and no node is blamed. Of a stream exactly as many messages pass as the bound says,
//! however their bytes are cut into frames. An answer whose length is known, and over the bound, is refused before
//! any of it is read.
//!
//! Messages are what the protocol says ([`Protocol::next_message`](crate::protocol::Protocol::next_message)). gRPC
//! counts them by their prefixes. A body of HTTP is one run of bytes, which anything on the way may cut into frames
//! as it likes: there are no messages to be counted, and only the bound on bytes applies.
//!
//! Bytes count as they travel: compressed, and with the prefixes of messages.
mod body;
mod config;
mod cut;
mod meter;
mod rule;
mod service;

pub(crate) use self::rule::MessageLimitsRule;
pub use self::{
    config::{MessageLimitsConfig, MessageLimitsPatch},
    meter::{Bound, Bounds, Meter, Over},
    rule::{MessageLimits, MessageLimitsView},
    service::{LimitMessages, MessageLimitsFuture, MessageLimitsLayer},
};
