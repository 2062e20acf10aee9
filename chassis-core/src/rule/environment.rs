//! The environment of a compilation, apart from the settings.
use std::sync::Arc;

use http::Extensions;

use super::{Common, States};
use crate::{event::Events, metrics::Metrics, reporter::Reporter};

/// The environment in which policies are compiled, apart from the settings.
pub(crate) struct Environment {
    /// The name of this service, to which incoming calls go.
    pub service: Arc<str>,
    /// State that outlives versions.
    pub states: States,
    /// Metrics.
    pub metrics: Metrics,
    /// Events.
    pub events: Events,
    /// Values that all policies share.
    pub common: Arc<Common>,
    /// Values of the program for single concerns: each finds its own by type.
    pub extensions: Extensions,
}

// === impl Environment ===

impl Environment {
    /// A new reporter: metrics, events, and at most one event a second.
    pub(crate) fn reporter(&self) -> Arc<Reporter> {
        Arc::new(Reporter::new(self.metrics.clone(), self.events.clone()))
    }
}
