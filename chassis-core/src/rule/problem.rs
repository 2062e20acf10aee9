//! What is wrong with settings.
use std::fmt;

/// Something that is wrong with settings, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, as in `outbound.services.stock.routes[0].match`.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// The word that is wrong, where it is not the value at the path: a key.
    pub found: Option<String>,
    /// What would be right, where that is a short list.
    pub allowed: Vec<String>,
}

// === impl Problem ===

impl Problem {
    /// `message` about the key at `path`.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Problem { path: path.into(), message: message.into(), found: None, allowed: Vec::new() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}
