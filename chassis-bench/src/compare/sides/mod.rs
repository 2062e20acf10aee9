//! Chassis, and those of its peers that are light enough to live here.
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

/// Peers that live here.
pub fn peers() -> Vec<Box<dyn Side>> {
    vec![Box::new(Bare), Box::new(Drawn), Box::new(Glued), Box::new(Pooled), Box::new(Raw)]
}
