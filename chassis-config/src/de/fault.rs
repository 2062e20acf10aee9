//! serde's errors, kept in parts until their position is known.
use std::fmt;

use serde::de::{self, Expected, Unexpected};

use crate::{
    code::Code,
    problem::Problem,
    tree::{Node, Path, Segment, Span, Value},
};

/// An error on its way from a value up to the root.
#[derive(Debug)]
pub(super) struct Fault {
    kind: Kind,
    /// The steps to the value, innermost first.
    pub(super) path: Vec<Segment>,
}

#[derive(Debug)]
enum Kind {
    UnknownKey { key: String, allowed: &'static [&'static str] },
    UnknownWord { word: String, allowed: &'static [&'static str] },
    Missing(String),
    WrongType { found: String, wanted: String },
    WrongValue { found: String, wanted: String },
    Said(String),
}

// === impl Fault ===

impl Fault {
    /// Adds the step above.
    pub(super) fn below(mut self, segment: Segment) -> Self {
        self.path.push(segment);
        self
    }

    pub(super) fn is_unknown_key(&self) -> bool {
        matches!(self.kind, Kind::UnknownKey { .. })
    }

    /// The path and the position of the key or value that is wrong.
    pub(super) fn locate(&self, tree: &Node, path: Path) -> (Path, Span) {
        let node = tree.at(&path).unwrap_or(tree);
        // Some types read their whole map before they look at its keys.
        if let Kind::UnknownKey { key, .. } = &self.kind {
            if let Some(entry) = node.entry(key) {
                return (path.then(Segment::Key(key.clone())), entry.key_at.clone());
            }
            return (path.clone(), key_at(tree, &path).unwrap_or_else(|| node.at.clone()));
        }
        // The word may be a key that has a value.
        if let Kind::UnknownWord { word, .. } = &self.kind {
            let is_key = matches!(path.0.last(), Some(Segment::Key(key)) if key == word);
            if let Some(at) = key_at(tree, &path).filter(|_| is_key) {
                return (path, at);
            }
        }
        if let (Kind::Missing(_), Value::Map(_)) = (&self.kind, &node.value) {
            return (path.clone(), key_at(tree, &path).unwrap_or_else(|| node.at.clone()));
        }
        (path, node.at.clone())
    }

    /// `is_replaced`: the value was written as `${…}`, and is not shown. `others` are further keys that are allowed beside it.
    pub(super) fn into_problem(self, path: Path, at: Span, others: &[&str], is_replaced: bool) -> Problem {
        let secret = path.is_secret() || is_replaced;
        let problem = |message: String| Problem::error(path, Some(at), message);
        let code = match &self.kind {
            Kind::UnknownKey { .. } => Code::UnknownKey,
            Kind::UnknownWord { .. } => Code::UnknownWord,
            Kind::Missing(_) => Code::Missing,
            Kind::WrongType { .. } => Code::WrongType,
            Kind::WrongValue { .. } | Kind::Said(_) => Code::WrongValue,
        };
        let problem = match self.kind {
            Kind::UnknownKey { key, allowed } => {
                problem("unknown key".into()).instead(&key, allowed.iter().chain(others).copied())
            }
            _ if secret => problem("this is no value for it (it is not shown)".into()),
            Kind::UnknownWord { word, allowed } => {
                problem(format!("`{word}` is not known here")).instead(&word, allowed.iter().copied())
            }
            Kind::Missing(key) => problem(format!("missing `{key}`")),
            Kind::WrongType { found, wanted } if found == NOTHING => {
                problem(format!("nothing stands here; {wanted} is wanted"))
            }
            Kind::WrongType { found, wanted } => problem(format!("{wanted} belongs here, not {found}")),
            Kind::WrongValue { found, wanted } if found == "`0`" && wanted.ends_with("above 0") => {
                problem(format!("0 is refused; write {wanted}"))
            }
            Kind::WrongValue { found, wanted } if wanted.contains("number") => {
                problem(format!("{found} is out of range; write {wanted}"))
            }
            Kind::WrongValue { found, wanted } => problem(format!("{wanted} belongs here, not {found}")),
            Kind::Said(message) => problem(message),
        };
        problem.coded(code)
    }

    fn of(kind: Kind) -> Self {
        Fault { kind, path: Vec::new() }
    }
}

/// The position of the last key of a path.
fn key_at(tree: &Node, path: &Path) -> Option<Span> {
    let (last, above) = path.0.split_last()?;
    match last {
        Segment::Key(key) => tree.at(&Path(above.to_vec()))?.entry(key).map(|e| e.key_at.clone()),
        Segment::Index(_) => None,
    }
}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Fault::of(Kind::Said(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Fault::of(Kind::WrongType { found: describe(found), wanted: wish(wanted) })
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> Self {
        Fault::of(Kind::WrongValue { found: describe(found), wanted: wish(wanted) })
    }

    fn invalid_length(length: usize, wanted: &dyn Expected) -> Self {
        Fault::of(Kind::WrongType { found: format!("{length} items"), wanted: wish(wanted) })
    }

    fn unknown_variant(word: &str, allowed: &'static [&'static str]) -> Self {
        Fault::of(Kind::UnknownWord { word: word.to_string(), allowed })
    }

    fn unknown_field(key: &str, allowed: &'static [&'static str]) -> Self {
        Fault::of(Kind::UnknownKey { key: key.to_string(), allowed })
    }

    fn missing_field(key: &'static str) -> Self {
        Fault::of(Kind::Missing(key.to_string()))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::UnknownKey { key, .. } => write!(f, "unknown key `{key}`"),
            Kind::UnknownWord { word, .. } => write!(f, "unknown word `{word}`"),
            Kind::Missing(key) => write!(f, "missing `{key}`"),
            Kind::WrongType { found, wanted } | Kind::WrongValue { found, wanted } => {
                write!(f, "{wanted} belongs here, not {found}")
            }
            Kind::Said(message) => f.write_str(message),
        }
    }
}

impl std::error::Error for Fault {}

const NOTHING: &str = "nothing";

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(word) => format!("`{word}`"),
        Unexpected::Unsigned(n) => format!("`{n}`"),
        Unexpected::Signed(n) => format!("`{n}`"),
        Unexpected::Float(n) => format!("`{n}`"),
        Unexpected::Str(text) => format!("`{text}`"),
        Unexpected::Unit | Unexpected::Option => NOTHING.into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map | Unexpected::StructVariant => "a map".into(),
        Unexpected::Other(said) => said.into(),
        other => other.to_string(),
    }
}

/// Names the expected type in words of the document rather than of Rust.
fn wish(wanted: &dyn Expected) -> String {
    let said = wanted.to_string();
    let number =
        |word: &str| matches!(word.trim_start_matches(['u', 'i']), "8" | "16" | "32" | "64" | "128" | "size");
    match said.as_str() {
        "a string" | "string" | "a borrowed string" => "a text".into(),
        "a path" | "path string" => "a path".into(),
        "a boolean" => "true or false".into(),
        "a sequence" => "a list".into(),
        "f32" | "f64" => "a number".into(),
        "struct" => "a map".into(),
        said if said.starts_with("struct ") => "a map".into(),
        said if said.starts_with("enum ") || said.starts_with("variant") => "one of its words".into(),
        said if said.strip_prefix("a nonzero ").is_some_and(number) => "a whole number above 0".into(),
        "u8" => "a whole number from 0 to 255".into(),
        "u16" => "a whole number from 0 to 65535".into(),
        said if number(said) => "a whole number".into(),
        said => said.into(),
    }
}
