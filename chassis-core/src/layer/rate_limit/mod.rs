//! Admits calls at a rate (GCRA): refuses the rest at once, or lets them wait up to a bound.
//!
//! Each rule is a bucket, or one for each value of its key. A changed rate keeps the level of the
//! bucket. Rules are asked in order and all that match have to admit; what was taken for a call that
//! is then refused, or given up while it waits, goes back.
mod config;
mod keys;
mod rule;
mod service;

pub(crate) use self::rule::RateLimitRule;
pub use self::{
    config::{Key, RateLimitConfig},
    keys::{Keyed, MostKeys},
    rule::{Buckets, Limit, LimitView},
    service::{RateLimit, RateLimitLayer},
};
pub use crate::algorithm::gcra::{Gcra, Wait};
