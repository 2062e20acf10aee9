//! A program's decision on versions that are sound: a version may have to wait, or may have done harm before.
use std::sync::Arc;

use chassis_core::config::Text;

use super::{Loader, Merged};
use crate::tree::Node;

/// Decides whether settings that were accepted may be put in force. Its functions are called by the task that polls
/// [`Loader::next`], and must not block.
pub trait Gate: Send + Sync {
    /// Whether these settings may be put in force now; an error states why not. `is_first`: nothing is in force yet. Called
    /// again after each change of a source, and after [`Control::reconsider`](crate::Control::reconsider).
    ///
    /// # Errors
    /// The reason for the history and the log.
    fn admit(&self, candidate: &Candidate<'_>, is_first: bool) -> Result<(), String>;

    /// The sources have the settings that are in force.
    fn settled(&self) {}
}

/// Sound settings that may be put in force.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// The hash of their meaning.
    pub hash: &'a str,
    /// The settings: every value with its origin.
    pub tree: &'a Node,
}

/// A gate, and the texts to begin with if it refuses the first version.
#[derive(Default)]
pub(super) struct Gated {
    pub(super) gate: Option<Arc<dyn Gate>>,
    /// By the name of their source.
    instead: Vec<(String, Vec<Text>)>,
    /// The hash that was refused last, and the reason.
    refused: Option<(String, String)>,
}

// === impl Gated ===

impl Gated {
    pub(super) fn admit(&self, hash: &str, tree: &Node, is_first: bool) -> Result<(), String> {
        let candidate = Candidate { hash, tree };
        self.gate.as_ref().map_or(Ok(()), |gate| gate.admit(&candidate, is_first))
    }

    pub(super) fn settled(&mut self) {
        self.refused = None;
        if let Some(gate) = &self.gate {
            gate.settled();
        }
    }

    /// Whether this refusal is new.
    pub(super) fn refuse(&mut self, hash: &str, why: &str) -> bool {
        let now = Some((hash.to_owned(), why.to_owned()));
        std::mem::replace(&mut self.refused, now.clone()) != now
    }

    pub(super) fn instead(&self, source: &str) -> Option<&[Text]> {
        self.instead.iter().find(|(name, _)| name == source).map(|(_, texts)| &**texts)
    }
}

// === impl Loader ===

impl<D, T> Loader<D, T> {
    /// Asks `gate` before settings are put in force, apart from a rollback by hand. If it refuses the first version, the
    /// loader begins with the texts `instead`, which are those of the named sources at an earlier time; without any, the
    /// first version waits until the gate admits one. Default: every version is put in force.
    pub fn gate(mut self, gate: Arc<dyn Gate>, instead: Vec<(String, Vec<Text>)>) -> Self {
        self.gated = Gated { gate: Some(gate), instead, refused: None };
        self
    }

    /// Merges the texts of an earlier time. `None` if there are none.
    pub(super) fn assemble_instead(&self) -> Option<Merged> {
        if self.gated.instead.is_empty() {
            return None;
        }
        let parsed = |(at, feed): (usize, &super::Feed)| {
            let texts = self.gated.instead(&feed.name)?;
            Some((at, texts.iter().map(|text| feed.parse(text)).collect()))
        };
        let replaced = self.feeds.iter().enumerate().filter_map(parsed).collect();
        Some(self.assemble_with(replaced, None))
    }
}
