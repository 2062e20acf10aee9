//! Findings of a check of the whole document: every value could be read, but the settings do not fit.
use crate::{
    code::Code,
    problem::{Problem, Severity},
    tree::{Node, Path, Segment, Value},
};

/// An error or a warning at a path. Its position in the text is looked up later.
///
/// ```
/// use chassis_config::Finding;
///
/// Finding::error("outbound.services.stock.routes[0].match", "no match has this name")
///     .instead("bta", ["beta", "internal"]);
/// ```
#[derive(Clone, Debug)]
pub struct Finding {
    /// Whether the document may still be used.
    pub severity: Severity,
    /// The key, as `a.b[0].c`. It may end in keys that the document does not have.
    pub path: String,
    /// The message.
    pub message: String,
    /// The word that is wrong. Default: the value at the path.
    pub found: Option<String>,
    /// The values that are allowed there, if they are known.
    pub allowed: Vec<String>,
}

/// The message about a value that was written as `${…}`.
const HIDDEN: &str = "this is no value for it (it is not shown)";

// === impl Finding ===

impl Finding {
    /// A finding that rejects the document.
    pub fn error(path: impl Into<String>, message: impl Into<String>) -> Self {
        let (path, message) = (path.into(), message.into());
        Finding { severity: Severity::Error, path, message, found: None, allowed: Vec::new() }
    }

    /// A finding that does not reject the document.
    pub fn warning(path: impl Into<String>, message: impl Into<String>) -> Self {
        Finding { severity: Severity::Warning, ..Finding::error(path, message) }
    }

    /// Adds the `allowed` values that could replace `found`.
    pub fn instead(mut self, found: &str, allowed: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.found = Some(found.to_string());
        self.allowed = allowed.into_iter().map(Into::into).collect();
        self
    }

    /// Moves the path below the table at `part`.
    pub fn within(mut self, part: &Path) -> Self {
        self.path = match self.path.is_empty() {
            true => part.to_string(),
            false if self.path.starts_with('[') => format!("{part}{}", self.path),
            false => format!("{part}.{}", self.path),
        };
        self
    }

    /// Looks up the position in `tree`, the tree that was checked.
    pub fn place(self, tree: &Node) -> Problem {
        let (found, rest) = tree.follow(&self.path);
        let (mut path, mut at) = (found.clone(), tree.at(&found).map(|node| node.at.clone()));
        let empty = |value: &Value| match value {
            Value::Map(entries) => entries.is_empty(),
            Value::List(items) => items.is_empty(),
            _ => true,
        };
        // Point to the key if a whole map or list is wrong, or the key itself.
        if let Some((Segment::Key(key), above)) = found.0.split_last() {
            let entry = tree.at(&Path(above.to_vec())).and_then(|map| map.entry(key));
            if let Some(entry) = entry
                .filter(|e| !empty(&e.node.value) || !rest.is_empty() || self.found.as_ref() == Some(key))
            {
                at = Some(entry.key_at.clone());
            }
        }
        if !rest.is_empty() {
            path.0.push(Segment::Key(rest.to_string()));
        }
        if tree.at(&found).is_some_and(|node| node.written.is_some()) && rest.is_empty() {
            return Problem {
                severity: self.severity,
                ..Problem::error(path, at, HIDDEN).coded(Code::Conflict)
            };
        }
        let at = at.filter(|at| at.line > 0 || at.origin.name != "defaults");
        let problem = Problem {
            severity: self.severity,
            ..Problem::error(path, at, self.message).coded(Code::Conflict)
        };
        let written = tree.at(&found).and_then(|node| match &node.value {
            Value::Plain(word) | Value::Quoted(word) => Some(word.as_str()),
            _ => None,
        });
        match self.found.as_deref().or(written) {
            Some(word) => problem.instead(word, self.allowed),
            None => Problem { allowed: self.allowed, ..problem },
        }
    }
}

impl From<chassis_core::settings::Problem> for Finding {
    fn from(problem: chassis_core::settings::Problem) -> Self {
        Finding {
            found: problem.found,
            allowed: problem.allowed,
            ..Finding::error(problem.path, problem.message)
        }
    }
}
