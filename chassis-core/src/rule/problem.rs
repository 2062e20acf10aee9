//! Problems of settings.
use std::fmt;

/// A problem of settings, and its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as in `outbound.services.stock.routes[0].match`.
    pub path: String,
    /// The message.
    pub message: String,
    /// The wrong word, if it is a key and not the value at the path.
    pub found: Option<String>,
    /// The allowed values, if the list is short.
    pub allowed: Vec<String>,
}

// === impl Problem ===

impl Problem {
    /// A problem with `message` at the key `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { path: path.into(), message: message.into(), found: None, allowed: Vec::new() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
