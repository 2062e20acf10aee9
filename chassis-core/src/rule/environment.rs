//! What rules are compiled with, apart from the settings.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Common, States};
use crate::{
    event::Events,
    layer::{balance::Picker, fallback::FallbackFn},
    metrics::Metrics,
    site::Site,
};

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
    /// Pickers of the user's own, by name.
    pub pickers: HashMap<String, Arc<dyn Picker>>,
    /// Fallback functions by service, and by operation where one is named.
    pub fallbacks: HashMap<(String, Option<String>), Arc<FallbackFn>>,
    /// The names of the user's layers, by their numbers.
    pub layers: Vec<Arc<str>>,
    /// Operations that are declared idempotent.
    pub idempotent: HashSet<String>,
}

// === impl Environment ===

impl Environment {
    /// A new place to report from: figures, events, and at most one event a second.
    pub(crate) fn site(&self) -> Arc<Site> {
        Arc::new(Site::new(self.metrics.clone(), self.events.clone()))
    }
}
