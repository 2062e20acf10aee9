//! Layers of the user, which the settings switch on and off. They are added at a [`Stage`](crate::Stage);
//! `stage.rs` runs them.
mod config;
mod rule;

pub(crate) use self::{
    config::LayerNames,
    rule::{LayersRule, Switched},
};
pub use self::{config::LayerSwitch, rule::LayerView};
