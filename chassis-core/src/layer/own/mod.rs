//! Layers of the user, which the settings switch on and off. They are added at a [`Stage`](crate::Stage);
//! `stage.rs` runs them.
mod config;
mod rule;

pub use self::config::LayerSwitch;
pub(crate) use self::{
    config::LayerNames,
    rule::{LayersRule, Switched},
};
