//! Puts versions of the settings in force as they come, and says what became of each.
use std::sync::Arc;

use chassis_config::{Change, Loader, Version, document::pending_restart, tree::Node};
use chassis_core::{Runtime, event::Event, policy::Settings};

use crate::Document;

/// What a version changes outside the pipeline.
pub(crate) struct Follower {
    pub(crate) runtime: Runtime,
    /// What the process was started with: what is read once is compared with it.
    pub(crate) started: Node,
    #[cfg(feature = "static")]
    pub(crate) fixed: Option<Arc<chassis_registry::StaticRegistry>>,
    pub(crate) shutdown: chassis_core::Live<chassis_config::document::ShutdownSection>,
}

impl Follower {
    /// Follows `loader` for as long as it is polled.
    pub(crate) async fn follow(self, mut loader: Loader<Document, Settings>) {
        let mut pending = Vec::new();
        loop {
            let in_force = self.runtime.policies().get().version();
            match loader.next().await {
                Change::Applied(version) => self.apply(&version, &mut pending),
                Change::Refused(refusal) => {
                    self.runtime.metrics().config_refused("refused");
                    let problems = refusal.problems.iter().map(ToString::to_string).collect();
                    self.runtime.events().emit(Event::ConfigRefused { in_force, problems });
                }
                Change::Unreadable(unreadable) => {
                    self.runtime.metrics().config_refused("unreadable");
                    let error = unreadable.to_string();
                    self.runtime.events().emit(Event::ConfigUnreadable { in_force, error });
                }
                Change::Restored(number) => {
                    self.runtime.metrics().config_applied(number, &self.runtime.inspect().hash);
                    let changed = vec!["readable again, and unchanged".to_owned()];
                    self.runtime.events().emit(Event::ConfigApplied { version: number, changed });
                }
            }
        }
    }

    /// Puts one version in force. It has been checked, so only a picker that is gone could refuse it.
    pub(crate) fn apply(&self, version: &Version<Document, Settings>, pending: &mut Vec<String>) {
        for warning in &version.warnings {
            tracing::warn!(target: "chassis", "{warning}");
        }
        if let Err(problems) = self.runtime.apply(&version.value, version.number, &version.hash) {
            let in_force = self.runtime.policies().get().version();
            let problems = problems.iter().map(ToString::to_string).collect();
            self.runtime.metrics().config_refused("refused");
            return self.runtime.events().emit(Event::ConfigRefused { in_force, problems });
        }
        self.runtime.carried().set(version.document.propagate.0.clone());
        self.runtime.sample().set(version.document.telemetry.sample);
        self.shutdown.set(version.document.shutdown.clone());
        #[cfg(feature = "static")]
        if let (Some(fixed), crate::RegistrySection::Static(config)) =
            (&self.fixed, &version.document.registry)
            && let Err(error) = fixed.set(config.clone())
        {
            let (in_force, problems) = (version.number, vec![format!("registry.services: {error}")]);
            self.runtime.events().emit(Event::ConfigRefused { in_force, problems });
        }
        let changed = version.changes.iter().map(ToString::to_string).collect();
        self.runtime.events().emit(Event::ConfigApplied { version: version.number, changed });
        let paths: Vec<String> =
            pending_restart(&self.started, &version.tree).iter().map(ToString::to_string).collect();
        if paths != *pending {
            if !paths.is_empty() {
                self.runtime.events().emit(Event::RestartPending { paths: paths.clone() });
            }
            *pending = paths;
        }
    }
}
