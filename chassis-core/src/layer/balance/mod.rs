//! Picks the node that an attempt goes to, and waits where none is ready yet.
//!
//! A picker proposes, the node lets in or not: an open circuit, a full node, a connection that is not
//! there cost no attempt, another is picked. At most half of what is ready may be out by open
//! circuits, and never the last one: beyond that circuits are ignored, and that is counted.
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
