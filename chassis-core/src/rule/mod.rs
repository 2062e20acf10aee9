//! Common parts for compiling the rules of all concerns: the levels of the settings, states by key, reporting.
//!
//! A concern compiles itself, by [`Concern`] in its `rule.rs`, and depends on no other.
//! [`policy`](crate::policy) is above: it decides which settings overlay which, and holds the results.
mod binding;
mod common;
mod concern;
mod environment;
mod level;
mod look;
mod problem;
mod states;

pub use self::problem::Problem;
pub(crate) use self::{
    binding::{Binding, Of},
    concern::{Concern, Visible},
    level::{Findings, Level, Place, Shared},
    look::Look,
};
pub(crate) use self::{common::Common, environment::Environment, states::States};
