//! Admits calls at a rate (GCRA): refuses further calls at once, or lets them wait up to a bound.
//!
//! Each rule is a bucket, or one for each value of its key. If the rate changes, the bucket keeps its level.
//! Rules are asked in order, and all that match must admit the call; if the call is then refused, or cancelled
//! while it waits, its tokens are returned.
mod config;
mod keys;
mod rule;
mod service;

pub use self::{
    config::{Key, RateLimitConfig},
    rule::LimitView,
};
pub(crate) use self::{
    keys::{Keyed, MostKeys},
    rule::{Buckets, Limit, RateLimitRule},
    service::RateLimitLayer,
};
pub(crate) use crate::algorithm::gcra::{Gcra, Wait};
