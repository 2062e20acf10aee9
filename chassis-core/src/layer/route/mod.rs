//! Takes the policy of a call, computes its deadline, and chooses the labels of its target.
//!
//! It is above all layers that read `call.policy`, and it never refuses: a call without a target is refused
//! where a node is picked, so that it is traced, counted, and can fall back.
mod config;
mod rule;
mod service;

pub use self::config::{FallbackConfig, FallbackWord, RouteConfig};
pub(crate) use self::{
    rule::{RouteRule, Rule},
    service::RouteLayer,
};
