//! Events of a [`Loader`](crate::Loader).
use std::fmt;

use chassis_core::config::SourceError;

use crate::{
    code::Code,
    problem::{Problem, Severity},
    version::{Moved, Version},
};

/// The result of a change in the sources.
#[derive(Debug)]
pub enum Change<D, T> {
    /// A new version, to be put in force.
    Applied(Box<Version<D, T>>),
    /// The settings can't be used.
    Refused(Refusal),
    /// A source can't be read.
    Unreadable(Unreadable),
    /// The sources are readable and sound again, and their settings are those of this version: there is nothing
    /// to do.
    Restored(u64),
    /// The settings have changed and are sound, but an older version is pinned.
    Held(Held),
    /// The settings have changed and are sound, but the [`Gate`](crate::Gate) refuses them.
    Avoided(Avoided),
}

/// Sound settings that the [`Gate`](crate::Gate) refuses. Reported once.
#[derive(Debug)]
#[non_exhaustive]
pub struct Avoided {
    /// Their hash.
    pub hash: String,
    /// The gate's reason.
    pub why: String,
    /// The settings that would change.
    pub changed: Vec<Moved>,
    /// The version that stays in force; `None` if there was none yet.
    pub running: Option<u64>,
    /// No version is in force, and none can be made of the texts of an earlier time.
    pub is_stuck: bool,
}

/// Settings that are not applied while an older version is pinned.
#[derive(Debug)]
pub struct Held {
    /// The version that was rolled back to.
    pub pinned: u64,
    /// The settings that would change.
    pub changed: Vec<Moved>,
    /// The version that stays in force.
    pub running: Option<u64>,
}

/// Why the settings can't be used.
#[derive(Debug)]
pub struct Refusal {
    /// The problems, errors and warnings.
    pub problems: Vec<Problem>,
    /// The version that stays in force; `None` if there was none yet.
    pub running: Option<u64>,
}

/// A source that can't be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Its name.
    pub source: String,
    /// The reason.
    pub error: SourceError,
    /// No version exists yet, and none can be made without this source.
    pub needed: bool,
    /// The version that stays in force; `None` if there was none yet.
    pub running: Option<u64>,
}

// === impl Refusal ===

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        let errors = self.problems.iter().filter(|p| p.severity == Severity::Error).count();
        write!(f, "{errors} error{}, ", if errors == 1 { "" } else { "s" })?;
        match self.running {
            Some(number) => write!(f, "still running version {number}"),
            None => f.write_str("nothing is running yet"),
        }
    }
}

impl std::error::Error for Refusal {}

// === impl Unreadable ===

/// `C014 chassis.yaml: there is no such file`
impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most sources name themselves in their errors.
        let said = self.error.to_string();
        match said.contains(&self.source) {
            true => write!(f, "{} {said}", Code::Unreadable),
            false => write!(f, "{} {}: {said}", Code::Unreadable, self.source),
        }
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
