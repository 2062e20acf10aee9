//! Picks the node of an attempt, and waits if no node is ready yet.
//!
//! A picker proposes a node, and the node admits the call or not: an open circuit, a full node or a missing
//! connection cost no attempt, another node is picked. At most half of the ready nodes, and never the last one,
//! may be excluded by open circuits: beyond that circuits are ignored, and this is counted.
mod config;
mod p2c;
mod random;
mod round_robin;
mod rule;
mod service;

pub use self::{
    config::Pickers, p2c::P2c, random::RandomPicker, round_robin::RoundRobin, rule::BUILT_IN_PICKERS,
};
pub(crate) use self::{
    rule::{Balancer, PickerRule},
    service::{BalanceLayer, has_another},
};
pub use crate::cluster::{Candidates, Picker, PickerFactory, Subset};
