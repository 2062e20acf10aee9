//! The process that the surface shows, as its owner describes it.

use std::time::SystemTime;

/// The state of a process that its runtime does not have.
pub trait Process: Send + Sync + 'static {
    /// The id of the instance.
    fn instance(&self) -> &str;

    /// The version of the program, if it is known.
    fn version(&self) -> Option<&str>;

    /// The phase of the life of the process.
    fn phase(&self) -> Phase;

    /// Whether it wants calls: it was not taken out of service, and its critical health checks pass.
    fn is_in_service(&self) -> bool;

    /// Whether it has wanted calls once, at the end of its start or later.
    fn has_started(&self) -> bool;

    /// The addresses that it listens at.
    fn listeners(&self) -> Vec<Listening>;

    /// Its status in the registry; `None` if it is not registered.
    fn registered(&self) -> Option<String>;

    /// The settings in force that a source sets. No value is a secret.
    fn settings(&self) -> Vec<Setting>;

    /// Changes that wait for a restart.
    fn pending(&self) -> Vec<Change>;

    /// Past versions of the settings, oldest first.
    fn versions(&self) -> Vec<Version>;

    /// The changes from one past version to another.
    ///
    /// # Errors
    /// The numbers of the versions that are known.
    fn diff(&self, from: u64, to: u64) -> Result<Vec<Change>, Vec<u64>>;

    /// The JSON Schema of the settings, if the build has one.
    fn schema(&self) -> Option<serde_json::Value>;
}

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Setting {
    /// Its path: `outbound.defaults.timeout`.
    pub path: String,
    /// Its value; `***` for a secret.
    pub value: String,
    /// The origin: `chassis.yaml:3:12`.
    pub origin: String,
}

/// A setting that differs.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// Its path.
    pub path: String,
    /// The value before; `None` if it was not set.
    pub old: Option<String>,
    /// The value after; `None` if it is not set.
    pub new: Option<String>,
    /// The origin of the new value.
    pub at: Option<String>,
}

/// A past version of the settings, accepted or not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Version {
    /// Counted from 1, through all versions.
    pub record: u64,
    /// The number of the version, if it was applied.
    pub version: Option<u64>,
    /// When it was read.
    #[serde(serialize_with = "crate::events::serialize_time")]
    pub at: SystemTime,
    /// `applied`, `held`, `avoided` or `refused`.
    pub outcome: &'static str,
    /// The version that it repeats, after a rollback.
    pub back_to: Option<u64>,
    /// The hash of its settings; `None` for one that was refused.
    pub hash: Option<String>,
    /// Why it was not applied.
    pub why: Vec<String>,
    /// The sources whose change caused it.
    pub from: Vec<String>,
    /// The differences from the version that was in force.
    pub changes: Vec<Change>,
}

/// Where a process is between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its listeners are not bound yet.
    Starting,
    /// It listens.
    Serving,
    /// Its stop has begun.
    Stopping,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listening {
    /// Its name in `listen`.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Where others reach it; `None` if it is not registered.
    pub advertised: Option<String>,
}

// === impl Phase ===

impl Phase {
    /// `starting`, `serving` or `stopping`.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Stopping => "stopping",
        }
    }
}
