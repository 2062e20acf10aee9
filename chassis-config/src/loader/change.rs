//! What became of the sources' news.
use std::fmt;

use chassis_core::config::SourceError;

use crate::{
    problem::{Problem, Severity},
    version::Version,
};

/// What became of the sources' news.
#[derive(Debug)]
pub enum Change<D, T> {
    /// A new version is to be used.
    Applied(Box<Version<D, T>>),
    /// What the sources say can't be used.
    Refused(Refusal),
    /// A source can't be read.
    Unreadable(Unreadable),
    /// All is well again, and says what the version of this number says: nothing is to be done.
    Restored(u64),
}

/// Why what the sources say can't be used.
#[derive(Debug)]
pub struct Refusal {
    /// What is wrong, errors and warnings.
    pub problems: Vec<Problem>,
    /// The version that stays; `None` if there was none yet.
    pub running: Option<u64>,
}

/// A source that can't be read.
#[derive(Debug)]
pub struct Unreadable {
    /// Its name.
    pub source: String,
    /// Why.
    pub error: SourceError,
    /// There can be no version without it, and there is none yet.
    pub needed: bool,
    /// The version that stays; `None` if there was none yet.
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

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most sources name themselves in what they say.
        let said = self.error.to_string();
        match said.contains(&self.source) {
            true => f.write_str(&said),
            false => write!(f, "{}: {said}", self.source),
        }
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}
