//! The parsed document, with the position of every key and value.
use std::{borrow::Cow, fmt, sync::Arc};

use chassis_core::config::Text;

/// A text that settings were read from: its name and its lines, which messages quote.
#[derive(Debug, PartialEq, Eq)]
pub struct Origin {
    /// The name in messages: a path, a key in a config center, `environment`.
    pub name: String,
    /// The layer it belongs to.
    pub layer: Layer,
    /// The source's own version of the text, if it has one.
    pub revision: Option<String>,
    /// The text; empty if there is none to quote.
    pub content: String,
    /// Whether `${env:…}` and `${file:…}` in it are replaced. Default: not in a text of a config center.
    pub(crate) has_references: bool,
    /// The offsets of the line starts, in bytes.
    starts: Vec<usize>,
}

/// The layer of a setting. Later layers win.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Layer {
    /// Default values.
    Defaults,
    /// The program, through its builder.
    Builder,
    /// A file.
    File,
    /// A config center.
    Center,
    /// Environment variables.
    Environment,
    /// Single settings of the command line, or of the program.
    Set,
}

/// A position in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The text.
    pub origin: Arc<Origin>,
    /// Counted from 1; 0 where the origin has no lines.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// In characters, at least 1, within the line.
    pub length: usize,
}

/// A value and its position. `Debug` shows the text before `${…}`, not what replaced it.
#[derive(Clone)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Its position.
    pub at: Span,
    /// The text before `${…}` was replaced, which is shown in place of the value; `None` if there was none.
    pub written: Option<Arc<str>>,
}

/// A key of a map, and its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The position of the key.
    pub key_at: Span,
    /// The value.
    pub node: Node,
}

/// A value. Unquoted words and numbers keep their spelling, so that `1.10` can still be a version number.
#[derive(Clone, Debug)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar without quotes: a word, a number, `true`, `off`.
    Plain(String),
    /// Text in quotes, which is never read as a number or a switch.
    Quoted(String),
    /// A list.
    List(Vec<Node>),
    /// A map, in the order of the text.
    Map(Vec<Entry>),
}

/// The path from the root of a document to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path(pub Vec<Segment>);

/// One step of a [`Path`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// Into a map.
    Key(String),
    /// Into a list, counted from 0.
    Index(usize),
}

// === impl Origin ===

impl Origin {
    /// A text of `layer`, called `name` in messages.
    pub fn new(name: impl Into<String>, layer: Layer, content: impl Into<String>) -> Arc<Self> {
        Origin::make(name.into(), layer, content.into(), None, layer.has_references())
    }

    /// The text of a source.
    pub(crate) fn of_text(text: &Text, layer: Layer, has_references: bool) -> Arc<Self> {
        let Text { origin, content, revision, .. } = text;
        Origin::make(origin.clone(), layer, content.clone(), revision.clone(), has_references)
    }

    fn make(
        name: String,
        layer: Layer,
        content: String,
        revision: Option<String>,
        has_references: bool,
    ) -> Arc<Self> {
        let starts = std::iter::once(0).chain(content.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Arc::new(Origin { name, layer, revision, content, has_references, starts })
    }

    /// The name with the revision, which is part of some names.
    pub(crate) fn named(&self) -> Cow<'_, str> {
        match &self.revision {
            Some(revision) if !self.name.ends_with(&format!("@{revision}")) => {
                format!("{}@{revision}", self.name).into()
            }
            _ => self.name.as_str().into(),
        }
    }

    /// The line with this number, counted from 1.
    pub fn line(&self, number: usize) -> Option<&str> {
        let start = *self.starts.get(number.checked_sub(1)?)?;
        let end = self.starts.get(number).map_or(self.content.len(), |next| next - 1);
        Some(self.content[start..end].trim_end_matches('\r'))
    }
}

// === impl Layer ===

impl Layer {
    /// Whether `${env:…}` and `${file:…}` are replaced in texts of this layer, unless a source states otherwise. The
    /// owner of a process writes its files and its environment; a config center may have other writers, who must not
    /// read files of the process.
    pub(crate) fn has_references(self) -> bool {
        self != Layer::Center
    }
}

// === impl Span ===

impl Span {
    /// The whole origin, without a line.
    pub fn whole(origin: Arc<Origin>) -> Self {
        Span { origin, line: 0, column: 0, length: 1 }
    }

    /// The characters from byte `start` to byte `end` of the origin's text, up to the end of the line.
    pub(crate) fn of_bytes(origin: &Arc<Origin>, start: usize, end: usize) -> Self {
        let text = &origin.content;
        let start = (0..=start.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        let line = origin.starts.partition_point(|s| *s <= start);
        let line_start = origin.starts[line - 1]; // the first line starts at 0
        let line_end = origin.starts.get(line).map_or(text.len(), |next| next - 1).max(start);
        let end = (0..=end.clamp(start, line_end)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(start);
        Span {
            origin: origin.clone(),
            line,
            column: text[line_start..start].chars().count() + 1,
            length: text[start..end.max(start)].chars().count().max(1),
        }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.origin.layer) {
            (_, Layer::Environment | Layer::Set) => f.write_str(&self.origin.name),
            (0, _) => f.write_str(&self.origin.named()),
            (line, _) => write!(f, "{}:{line}:{}", self.origin.named(), self.column),
        }
    }
}

// === impl Node ===

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("value", &self.shown()).field("at", &self.at).finish()
    }
}

impl Node {
    /// A value at a position.
    pub fn new(value: Value, at: Span) -> Self {
        Node { value, at, written: None }
    }

    /// An empty map without a position.
    pub fn empty(origin: Arc<Origin>) -> Self {
        Node::new(Value::Map(Vec::new()), Span::whole(origin))
    }

    /// A tree of values that no text contains, such as those of a builder.
    pub fn from_json(origin: &Arc<Origin>, json: &serde_json::Value) -> Self {
        use serde_json::Value as Json;
        let at = Span::whole(origin.clone());
        let value = match json {
            Json::Null => Value::Null,
            Json::Bool(word) => Value::Plain(word.to_string()),
            Json::Number(number) => Value::Plain(number.to_string()),
            Json::String(text) => Value::Quoted(text.clone()),
            Json::Array(items) => Value::List(items.iter().map(|i| Node::from_json(origin, i)).collect()),
            Json::Object(map) => Value::Map(
                map.iter()
                    .map(|(key, v)| Entry {
                        key: key.clone(),
                        key_at: at.clone(),
                        node: Node::from_json(origin, v),
                    })
                    .collect(),
            ),
        };
        Node::new(value, at)
    }

    /// What messages show of it: the text before `${…}`, or the value.
    pub fn shown(&self) -> std::borrow::Cow<'_, Value> {
        match &self.written {
            Some(written) => std::borrow::Cow::Owned(Value::Quoted(written.to_string())),
            None => std::borrow::Cow::Borrowed(&self.value),
        }
    }

    /// The entries of a map; empty for any other value.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The entry of a map with this key.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|e| e.key == key)
    }

    /// The value at `path`.
    pub fn at(&self, path: &Path) -> Option<&Node> {
        path.0.iter().try_fold(self, |node, segment| match (segment, &node.value) {
            (Segment::Key(key), _) => node.entry(key).map(|e| &e.node),
            (Segment::Index(index), Value::List(items)) => items.get(*index),
            _ => None,
        })
    }

    /// Follows a path in text form as far as the document has its keys, and returns the rest. Keys may contain
    /// dots, in quotes or not: the keys of the document decide how the text is split.
    pub fn follow<'p>(&self, written: &'p str) -> (Path, &'p str) {
        let (mut node, mut path, mut rest) = (self, Path::default(), written);
        while let Some((segment, next, after)) = step(node, rest) {
            path.0.push(segment);
            (node, rest) = (next, after);
        }
        (path, rest.trim_start_matches('.'))
    }

    /// Every scalar and every empty collection below this node, with its path.
    pub fn leaves(&self) -> Vec<(Path, &Node)> {
        let mut found = Vec::new();
        self.gather(&mut Path::default(), &mut found);
        found
    }

    fn gather<'a>(&'a self, path: &mut Path, found: &mut Vec<(Path, &'a Node)>) {
        match &self.value {
            Value::Map(entries) if !entries.is_empty() => {
                for entry in entries {
                    path.0.push(Segment::Key(entry.key.clone()));
                    entry.node.gather(path, found);
                    path.0.pop();
                }
            }
            Value::List(items) if !items.is_empty() => {
                for (index, item) in items.iter().enumerate() {
                    path.0.push(Segment::Index(index));
                    item.gather(path, found);
                    path.0.pop();
                }
            }
            _ => found.push((path.clone(), self)),
        }
    }
}

/// The index, or the longest key of `node`, that `rest` starts with.
pub(crate) fn step<'n, 'p>(node: &'n Node, rest: &'p str) -> Option<(Segment, &'n Node, &'p str)> {
    if let (Value::List(items), Some(inner)) = (&node.value, rest.strip_prefix('[')) {
        let (index, after) = inner.split_once(']')?;
        let index = index.parse().ok()?;
        return Some((Segment::Index(index), items.get(index)?, after));
    }
    let rest = rest.strip_prefix('.').unwrap_or(rest);
    let mut best: Option<(&Entry, &str)> = None;
    for entry in node.entries() {
        for spelling in [entry.key.clone(), quoted(&entry.key)] {
            let Some(after) = rest.strip_prefix(spelling.as_str()) else { continue };
            let ends = after.is_empty() || after.starts_with(['.', '[']);
            if ends && best.is_none_or(|(_, kept)| after.len() < kept.len()) {
                best = Some((entry, after));
            }
        }
    }
    best.map(|(entry, after)| (Segment::Key(entry.key.clone()), &entry.node, after))
}

fn quoted(key: &str) -> String {
    format!("{key:?}")
}

// === impl Value ===

/// The value on one line; values of secret keys are masked.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("null"),
            Value::Plain(text) => f.write_str(text),
            Value::Quoted(text) if is_plain(text) => f.write_str(text),
            Value::Quoted(text) => write!(f, "{text:?}"),
            Value::List(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{}", if i == 0 { "" } else { ", " }, item.shown())?;
                }
                f.write_str("]")
            }
            Value::Map(entries) => {
                f.write_str("{")?;
                for (i, e) in entries.iter().enumerate() {
                    write!(f, "{}{}: ", if i == 0 { " " } else { ", " }, e.key)?;
                    match crate::secret::is_secret(&e.key) {
                        true => f.write_str("***")?,
                        false => write!(f, "{}", e.node.shown())?,
                    }
                }
                f.write_str(if entries.is_empty() { "}" } else { " }" })
            }
        }
    }
}

fn is_plain(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "%/._-:".contains(c))
}

/// Compares by meaning; positions, quotes and the order of a map's keys do not matter.
impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Null, Value::Null) => true,
            (Value::Plain(a) | Value::Quoted(a), Value::Plain(b) | Value::Quoted(b)) => a == b,
            (Value::List(a), Value::List(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.value == b.value)
            }
            (Value::Map(a), Value::Map(b)) => {
                a.len() == b.len()
                    && a.iter().all(|x| b.iter().any(|y| x.key == y.key && x.node.value == y.node.value))
            }
            _ => false,
        }
    }
}

// === impl Path ===

impl Path {
    /// The path of these keys.
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Path(keys.into_iter().map(|key| Segment::Key(key.to_owned())).collect())
    }

    /// This path with one more step.
    pub fn then(&self, segment: Segment) -> Self {
        let mut longer = self.clone();
        longer.0.push(segment);
        longer
    }

    /// Its last key as a plain word; an index in brackets.
    pub fn key(&self) -> String {
        match self.0.last() {
            Some(Segment::Key(key)) => key.clone(),
            Some(Segment::Index(index)) => format!("[{index}]"),
            None => String::new(),
        }
    }

    /// Whether `self` is at or below `other`.
    pub fn is_within(&self, other: &Path) -> bool {
        self.0.starts_with(&other.0)
    }

    /// Whether a key of this path is the name of a secret.
    pub fn is_secret(&self) -> bool {
        self.0.iter().any(|s| matches!(s, Segment::Key(key) if crate::secret::is_secret(key)))
    }
}

/// `outbound.services.stock.routes[0]`; a key that contains a dot is quoted.
impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            let dot = if i == 0 { "" } else { "." };
            match segment {
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) if key.is_empty() || key.contains(['.', '[', ' ', '"']) => {
                    write!(f, "{dot}{}", quoted(key))?;
                }
                Segment::Key(key) => write!(f, "{dot}{key}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_path_is_followed_through_keys_with_dots() {
        let origin = Origin::new("builder", Layer::Builder, "");
        let json = serde_json::json!({ "operations": { "a.B/C": [ { "retry": "off" } ], "a": { "x": 1 } } });
        let tree = Node::from_json(&origin, &json);
        for written in [r#"operations."a.B/C"[0].retry"#, "operations.a.B/C[0].retry"] {
            let (path, rest) = tree.follow(written);
            assert_eq!((path.to_string().as_str(), rest), (r#"operations."a.B/C"[0].retry"#, ""));
        }
        let (path, rest) = tree.follow("operations.a.y");
        assert_eq!((path.to_string().as_str(), rest), ("operations.a", "y"));
    }
}
