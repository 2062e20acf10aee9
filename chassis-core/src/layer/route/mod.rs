//! Takes the policy of a call, works out its deadline, and chooses the labels of its target.
//!
//! It stands above everything that reads `call.policy`, and it never refuses: what leads nowhere is
//! found out where a node is picked, so that it is traced, counted, and can fall back.
mod config;
mod rule;
mod service;

pub(crate) use self::rule::RouteRule;
pub use self::{
    config::{FallbackConfig, FallbackWord, RouteConfig},
    rule::Rule,
    service::{Route, RouteLayer},
};
