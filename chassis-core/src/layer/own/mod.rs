//! Layers of the user's own, which the settings switch on and off. They stand at a [`Stage`](crate::Stage); what runs
//! them is in `stage.rs`.
mod config;
mod rule;

pub use self::config::LayerSwitch;
pub(crate) use self::{
    config::LayerNames,
    rule::{LayersRule, Switched},
};
