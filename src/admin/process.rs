//! This process, as the admin surface shows it.
use std::sync::{PoisonError, RwLock};

use chassis_admin::{Change, Listening, Process, Setting, Version};
use chassis_config::{ControlError, Moved, Outcome, Problem, Record};

use crate::{ConfigHandle, Presence, app::Parts, cli, presence};

/// This process.
pub(super) struct View {
    instance: String,
    version: Option<String>,
    presence: Presence,
    config: ConfigHandle,
    listeners: RwLock<Vec<Listening>>,
}

// === impl View ===

impl View {
    pub(super) fn new(parts: &Parts) -> Self {
        View {
            instance: parts.instance.clone(),
            version: parts.service.version.clone(),
            presence: parts.presence.clone(),
            config: parts.config.clone(),
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
    fn registered(&self) -> Option<String> {
        self.presence.registered_as().map(|status| status.as_str().to_owned())
    }

    fn settings(&self) -> Vec<Setting> {
        let all = self.config.settings().into_iter();
        let setting = |one: crate::EffectiveSetting| Setting {
            path: one.path,
            value: one.value,
            origin: one.origin.to_string(),
        };
        all.map(setting).collect()
    }

    fn pending(&self) -> Vec<Change> {
        self.config.waiting().iter().map(change).collect()
    }

    fn versions(&self) -> Vec<Version> {
        self.config.history().iter().map(|record| version(record)).collect()
    }

    fn diff(&self, from: u64, to: u64) -> Result<Vec<Change>, Vec<u64>> {
        match self.config.diff(from, to) {
            Ok(changes) => Ok(changes.iter().map(change).collect()),
            Err(ControlError::Unknown { known, .. }) => Err(known),
            Err(_) => Err(Vec::new()),
        }
    }

    fn schema(&self) -> Option<serde_json::Value> {
        cli::schema_of_all(self.config.reader())
    }
}

fn change(moved: &Moved) -> Change {
    Change {
        path: moved.path.to_string(),
        old: moved.old.clone(),
        new: moved.new.clone(),
        at: moved.at.as_ref().map(ToString::to_string),
    }
}

fn version(record: &Record) -> Version {
    let (outcome, hash, back_to, why) = match &record.outcome {
        Outcome::Applied { hash, back_to, .. } => ("applied", Some(hash), *back_to, Vec::new()),
        Outcome::Held { hash } => ("held", Some(hash), None, vec!["an older version is pinned".to_owned()]),
        Outcome::Avoided { hash, why } => ("avoided", Some(hash), None, vec![why.clone()]),
        Outcome::Refused(problems) => {
            ("refused", None, None, problems.iter().map(Problem::in_a_line).collect())
        }
        _ => ("unknown", None, None, Vec::new()),
    };
    Version {
        record: record.number,
        version: record.version(),
        at: record.at,
        outcome,
        back_to,
        hash: hash.cloned(),
        why,
        from: record.from.clone(),
        changes: record.changes.iter().map(change).collect(),
    }
}
