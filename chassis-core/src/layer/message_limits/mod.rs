//! Bounds the messages of one call: the bytes of its answer, and the number and the rate of the messages in
//! both directions.
//!
//! Off by default. Data over a bound is neither delivered nor buffered, and the call ends: RESOURCE_EXHAUSTED
//! for the reason TOO_LARGE, or RATE_LIMITED if messages come too fast. This process refuses, so no circuit and
//! no node is blamed. Exactly as many messages of a stream pass as the bound allows, however their bytes are
//! split into frames. An answer whose length is known and exceeds the bound is refused before any of it is
//! read.
//!
//! The protocol finds the messages ([`Protocol::next_message`](crate::protocol::Protocol::next_message)). gRPC
//! counts them by their prefixes. A body of HTTP is one sequence of bytes, which intermediaries may split into
//! frames: it has no messages, and only the bound on bytes applies.
//!
//! Bytes count as sent on the wire: compressed, and with the prefixes of messages.
mod body;
mod config;
mod cut;
mod meter;
mod rule;
mod service;

pub use self::{
    config::{MessageLimitsConfig, MessageLimitsPatch},
    rule::MessageLimitsView,
};
pub(crate) use self::{
    meter::{Bound, Bounds, Meter, Over},
    rule::{MessageLimits, MessageLimitsRule},
    service::MessageLimitsLayer,
};
