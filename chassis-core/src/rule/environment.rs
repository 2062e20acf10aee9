//! What rules are compiled with, apart from the settings.
use std::sync::Arc;

use http::Extensions;

use super::{Common, States};
use crate::{event::Events, metrics::Metrics, site::Site};

/// What policies are compiled with, apart from the settings.
pub struct Environment {
    /// This service's name: whom calls that come in are for.
    pub service: Arc<str>,
    /// State that outlives versions.
    pub states: States,
    /// Figures.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
    /// What all policies have in common.
    pub common: Arc<Common>,
    /// Values that the program gave for single concerns: each finds its own by type.
    pub extensions: Extensions,
}

// === impl Environment ===

impl Environment {
    /// A new place to report from: figures, events, and at most one event a second.
    pub(crate) fn site(&self) -> Arc<Site> {
        Arc::new(Site::new(self.metrics.clone(), self.events.clone()))
    }
}
