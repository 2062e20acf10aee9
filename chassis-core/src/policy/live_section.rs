//! A live section of the settings.
use std::{fmt, sync::Arc};

use super::Policies;
use crate::Live;

/// The newest accepted value of a section; clones share it.
///
/// It reads the same version that calls use: a section is never newer or older than the other settings.
pub struct LiveSection<T> {
    policies: Live<Policies>,
    name: Arc<str>,
    /// Used if a later version has no such section, which is only possible if settings are applied by hand.
    first: Arc<T>,
}

// === impl LiveSection ===

impl<T: Send + Sync + 'static> LiveSection<T> {
    pub(crate) fn new(policies: Live<Policies>, name: &str) -> Option<Self> {
        let first = policies.with(|policies| policies.sections().named(name))?;
        Some(LiveSection { policies, name: name.into(), first })
    }

    /// The current value. Take it once for each piece of work: two takes may straddle a swap.
    pub fn get(&self) -> Arc<T> {
        let now = self.policies.with(|policies| policies.sections().named(&self.name));
        now.unwrap_or_else(|| self.first.clone())
    }
}

impl<T> Clone for LiveSection<T> {
    fn clone(&self) -> Self {
        LiveSection { policies: self.policies.clone(), name: self.name.clone(), first: self.first.clone() }
    }
}

impl<T> fmt::Debug for LiveSection<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveSection").field("name", &self.name).finish_non_exhaustive()
    }
}
