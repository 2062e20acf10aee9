//! Past versions of the settings: their times, sources, changes and outcomes.
use std::{collections::VecDeque, fmt, sync::Arc, time::SystemTime};

use crate::{
    problem::Problem,
    tree::Node,
    version::{Moved, changes},
};

/// A version of the settings that was applied or not.
#[derive(Clone)]
pub struct Record {
    /// Counted from 1, through all records of the process.
    pub number: u64,
    /// The time at which it was read.
    pub at: SystemTime,
    /// The sources whose change caused it, with their revisions: `chassis.yaml`,
    /// `etcd:/orders/chassis.yaml@12`. At the start all of them.
    pub from: Vec<String>,
    /// The outcome.
    pub outcome: Outcome,
    /// The differences from the version that was in force; empty for a text that can't be parsed. Secrets are masked.
    pub changes: Vec<Moved>,
    /// The settings of an applied version.
    pub(super) tree: Option<Node>,
}

/// The outcome of a version.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// It was put in force.
    Applied {
        /// Its number.
        version: u64,
        /// The hash of its meaning.
        hash: String,
        /// The version that it repeats, after a rollback.
        back_to: Option<u64>,
    },
    /// It is valid and was not put in force, because an older version is pinned.
    Held {
        /// The hash of its meaning.
        hash: String,
    },
    /// It is valid and was not put in force, because the [`Gate`](crate::Gate) refused it.
    Avoided {
        /// The hash of its meaning.
        hash: String,
        /// The gate's reason.
        why: String,
    },
    /// It was refused for these reasons.
    Refused(Vec<Problem>),
}

/// The last records.
#[derive(Default)]
pub(super) struct History {
    count: u64,
    applied: VecDeque<Arc<Record>>,
    others: VecDeque<Arc<Record>>,
    /// The last version that is known to be good; it is kept however many follow.
    proven: Option<Arc<Record>>,
}

// === impl History ===

impl History {
    /// Kept separately, so that many refused versions displace no accepted one.
    pub(super) const KEPT: usize = 20;

    pub(super) fn add(
        &mut self,
        from: Vec<String>,
        outcome: Outcome,
        changes: Vec<Moved>,
        tree: Option<Node>,
    ) {
        self.count += 1;
        let list = match &outcome {
            Outcome::Applied { .. } => &mut self.applied,
            _ => &mut self.others,
        };
        if list.len() == Self::KEPT {
            list.pop_front();
        }
        let number = self.count;
        list.push_back(Arc::new(Record { number, at: SystemTime::now(), from, outcome, changes, tree }));
    }

    pub(super) fn records(&self) -> Vec<Arc<Record>> {
        let mut all: Vec<_> = self.accepted().chain(&self.others).cloned().collect();
        all.sort_by_key(|record| record.number);
        all
    }

    /// The newest applied version with this hash is known to be good.
    pub(super) fn prove(&mut self, hash: &str) {
        let found =
            self.accepted().filter(|record| record.hash() == Some(hash)).max_by_key(|record| record.number);
        if let Some(found) = found.cloned() {
            self.proven = Some(found);
        }
    }

    /// Applied versions, with the proven one where it would be gone; oldest first.
    fn accepted(&self) -> impl Iterator<Item = &Arc<Record>> {
        let first = self.applied.front().map_or(u64::MAX, |record| record.number);
        self.proven.iter().filter(move |proven| proven.number < first).chain(&self.applied)
    }

    /// The settings of an applied version.
    pub(super) fn tree(&self, version: u64) -> Option<Node> {
        let of = |record: &&Arc<Record>| record.version() == Some(version);
        self.accepted().find(of)?.tree.clone()
    }

    /// The proven version, or else the newest applied one, with another hash.
    pub(super) fn before(&self, now: &str) -> Option<(u64, Node)> {
        self.proven.iter().chain(self.applied.iter().rev()).find_map(|record| match &record.outcome {
            Outcome::Applied { version, hash, .. } if hash != now => Some((*version, record.tree.clone()?)),
            _ => None,
        })
    }

    pub(super) fn versions(&self) -> Vec<u64> {
        self.accepted().filter_map(|record| record.version()).collect()
    }
}

// === impl Record ===

impl Record {
    /// The number of the version, if it was applied.
    pub fn version(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Applied { version, .. } => Some(version),
            _ => None,
        }
    }

    /// The differences of the settings of `later` from those of this record; `None` unless both were applied. Secrets are
    /// masked.
    pub fn changes_to(&self, later: &Record) -> Option<Vec<Moved>> {
        Some(changes(self.tree.as_ref()?, later.tree.as_ref()?))
    }

    /// The hash of its meaning, if it was applied.
    fn hash(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Applied { hash, .. } => Some(hash),
            _ => None,
        }
    }
}

/// `version 3 applied, from chassis.yaml: outbound.defaults.timeout 1s -> 2s (chassis.yaml:1:34)`
impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Applied { version, back_to: Some(to), .. } => {
                write!(f, "version {version} applied, which is version {to} again")?;
            }
            Outcome::Applied { version, .. } => write!(f, "version {version} applied")?,
            Outcome::Held { .. } => f.write_str("held, because an older version is pinned")?,
            Outcome::Avoided { why, .. } => write!(f, "not applied, because {why}")?,
            Outcome::Refused(_) => f.write_str("refused")?,
        }
        if !self.from.is_empty() {
            write!(f, ", from {}", self.from.join(", "))?;
        }
        for (at, moved) in self.changes.iter().enumerate() {
            write!(f, "{} {moved}", if at == 0 { ":" } else { "," })?;
        }
        if let Outcome::Refused(problems) = &self.outcome {
            for problem in problems {
                write!(f, "\n{problem}")?;
            }
        }
        Ok(())
    }
}

/// Without the settings themselves, which may hold secrets.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
