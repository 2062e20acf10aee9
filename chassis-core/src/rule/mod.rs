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

pub(crate) use self::{
    binding::{Binding, Of},
    common::{Carried, Sample},
    concern::{Concern, Visible},
    level::{Findings, Level, Place, Shared},
    look::Look,
};
pub use self::{common::Common, environment::Environment, problem::Problem, states::States};
