//! Controls a [`Loader`](crate::Loader) that another task runs: its history, other versions, dry runs.
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use chassis_core::config::Text;
use tokio::sync::{mpsc, oneshot};

use super::history::{History, Record};
use crate::{problem::Problem, tree::Node, version::Moved};

/// Controls a loader; clones control the same one. Requests are answered while
/// [`Loader::next`](crate::Loader::next) is polled.
#[derive(Clone)]
pub struct Control {
    questions: mpsc::UnboundedSender<Question>,
    history: Arc<Mutex<History>>,
}

/// A request to the loader.
pub(super) enum Question {
    Rollback { to: u64, reply: oneshot::Sender<Result<u64, ControlError>> },
    Release { reply: oneshot::Sender<Option<u64>> },
    Trial { text: Text, reply: oneshot::Sender<Trial> },
    Reconsider,
    Revert { hash: String, reply: oneshot::Sender<Option<u64>> },
}

/// The effect that a text would have.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The source whose text it replaces; `None` if it overlays all sources.
    pub replaces: Option<String>,
    /// The settings that would change.
    pub changes: Vec<Moved>,
    /// The problems: with an error among them the text would be refused.
    pub problems: Vec<Problem>,
    /// The merged tree; `None` if a text can't be parsed.
    pub tree: Option<Node>,
}

/// The reason why a version cannot be put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// The history has no such version; it has these.
    Unknown {
        /// The requested version.
        version: u64,
        /// The versions that can be put in force.
        known: Vec<u64>,
    },
    /// The version is refused today, for these reasons.
    Refused(Vec<String>),
    /// The loader has ended: the process stops.
    Gone,
}

// === impl Control ===

impl Control {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Question>) {
        let (questions, asked) = mpsc::unbounded_channel();
        (Control { questions, history: Arc::default() }, asked)
    }

    /// Past versions, oldest first: the last [`KEPT`](Control::KEPT) that were accepted, and as many that were not.
    pub fn history(&self) -> Vec<Arc<Record>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner).records()
    }

    /// The number of past versions that are kept: as many accepted ones, and as many others.
    pub const KEPT: usize = History::KEPT;

    /// Puts an accepted version of the history in force again, as a new version, whose number is returned. It stays
    /// until [`release`](Control::release): changes of sources are recorded and not applied.
    ///
    /// # Errors
    /// The history does not have the version, or the program refuses it now.
    pub async fn rollback(&self, to: u64) -> Result<u64, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Rollback { to, reply }).map_err(|_| ControlError::Gone)?;
        answer.await.unwrap_or(Err(ControlError::Gone))
    }

    /// Ends a rollback: the settings of the sources are put in force. Returns the version that was rolled back to;
    /// `None` if there was none.
    ///
    /// # Errors
    /// [`Gone`](ControlError::Gone).
    pub async fn release(&self) -> Result<Option<u64>, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Release { reply }).map_err(|_| ControlError::Gone)?;
        answer.await.map_err(|_| ControlError::Gone)
    }

    /// Reads and checks a text as if a source had it; changes nothing. It replaces the text of the source that its
    /// `origin` names, or is laid over the texts of all sources, below the environment.
    ///
    /// # Errors
    /// [`Gone`](ControlError::Gone).
    pub async fn trial(&self, text: Text) -> Result<Trial, ControlError> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Trial { text, reply }).map_err(|_| ControlError::Gone)?;
        answer.await.map_err(|_| ControlError::Gone)
    }

    /// Asks the [`Gate`](crate::Gate) again about settings that it refused.
    pub fn reconsider(&self) {
        self.questions.send(Question::Reconsider).ok(); // without a loader there is nothing to do
    }

    /// States that the applied version with this hash is good: [`revert`](Control::revert) goes back to it rather than to
    /// one that followed, and the history keeps it until another one is proven.
    pub fn prove(&self, hash: &str) {
        self.past().prove(hash);
    }

    /// Puts the version before the one with this hash in force again, as a new version, whose number is returned: the one
    /// that was [proven](Control::prove) last, or else the newest other one. `None` if another one is in force or pinned, or
    /// if there is none before. Unlike a [`rollback`](Control::rollback) it pins nothing: the [`Gate`](crate::Gate) must
    /// refuse the hash from now on.
    pub async fn revert(&self, hash: &str) -> Option<u64> {
        let (reply, answer) = oneshot::channel();
        self.questions.send(Question::Revert { hash: hash.to_owned(), reply }).ok()?;
        answer.await.ok().flatten()
    }

    pub(super) fn past(&self) -> std::sync::MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").finish_non_exhaustive()
    }
}

// === impl ControlError ===

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControlError::Unknown { version, known } => {
                let known: Vec<_> = known.iter().map(u64::to_string).collect();
                write!(f, "the history has no version {version}; it has {}", known.join(", "))
            }
            ControlError::Refused(problems) => write!(f, "the version is refused\n{}", problems.join("\n")),
            ControlError::Gone => f.write_str("the process stops"),
        }
    }
}

impl std::error::Error for ControlError {}
