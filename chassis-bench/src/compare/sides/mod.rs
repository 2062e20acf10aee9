//! Chassis, and those peers that are light enough for this crate.
mod chassis;
mod hyper;
mod rest;
mod tonic;

pub use self::{
    chassis::Chassis,
    hyper::{Pooled, Raw},
    rest::{Document, axum_serve, check, document},
    tonic::{Bare, Drawn, Glued, channels, tonic_serve},
};
use super::Side;

/// The peers of this crate.
pub fn peers() -> Vec<Box<dyn Side>> {
    vec![Box::new(Bare), Box::new(Drawn), Box::new(Glued), Box::new(Pooled), Box::new(Raw)]
}
