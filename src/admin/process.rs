//! This process, as the admin surface shows it.
use std::sync::{PoisonError, RwLock};

use chassis_admin::{Listening, Process};

use crate::{Presence, app::Parts, presence};

/// This process.
pub(super) struct View {
    instance: String,
    version: Option<String>,
    presence: Presence,
    listeners: RwLock<Vec<Listening>>,
}

// === impl View ===

impl View {
    pub(super) fn new(parts: &Parts) -> Self {
        View {
            instance: parts.instance.clone(),
            version: parts.service.version.clone(),
            presence: parts.presence.clone(),
            listeners: RwLock::default(),
        }
    }

    /// The service listens now.
    pub(super) fn serves(&self, addresses: &[(String, String)], advertised: &[(String, String)]) {
        let listening = |(name, address): &(String, String)| Listening {
            name: name.clone(),
            address: address.clone(),
            advertised: advertised.iter().find(|(of, _)| of == name).map(|(_, at)| at.clone()),
        };
        let listeners = addresses.iter().map(listening).collect();
        // No code panics while the lock is held, so a poisoned lock is still valid.
        *self.listeners.write().unwrap_or_else(PoisonError::into_inner) = listeners;
    }
}

impl Process for View {
    fn instance(&self) -> &str {
        &self.instance
    }

    fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    fn phase(&self) -> chassis_admin::Phase {
        match self.presence.phase() {
            presence::Phase::Starting => chassis_admin::Phase::Starting,
            presence::Phase::Serving => chassis_admin::Phase::Serving,
            presence::Phase::Stopping => chassis_admin::Phase::Stopping,
        }
    }

    fn is_in_service(&self) -> bool {
        self.presence.is_in_service()
    }

    fn has_started(&self) -> bool {
        self.presence.has_started()
    }

    fn listeners(&self) -> Vec<Listening> {
        self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
