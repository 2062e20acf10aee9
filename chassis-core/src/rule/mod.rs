//! What the rules of all concerns are compiled with: the settings' levels, states by key, what is reported where.
//!
//! A concern compiles itself, by [`Concern`] in its `rule.rs`, and needs to know no other. [`policy`](crate::policy)
//! stands above: it says which settings overlay which, and holds what comes of it.
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
