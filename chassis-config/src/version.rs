//! One accepted version of all settings, and its differences from the version before.
use std::fmt;

use chassis_core::config::Text;

use crate::{
    problem::Problem,
    tree::{Entry, Node, Path, Segment, Span, Value},
};

/// A document that was read, checked and accepted as a whole.
#[derive(Debug)]
pub struct Version<D, T> {
    /// Counted from 1.
    pub number: u64,
    /// Hash of the meaning of the settings, not of their spelling: the same in every process with the same
    /// settings.
    pub hash: String,
    /// The document.
    pub document: D,
    /// The result of the check.
    pub value: T,
    /// Warnings about this document.
    pub warnings: Vec<Problem>,
    /// The differences from the version before; every setting, in the first version.
    pub changes: Vec<Moved>,
    /// The merged tree: every value with its origin.
    pub tree: Node,
    /// The texts of config centers that it was made of, with the names of their sources; none after a rollback.
    pub texts: Vec<(String, Text)>,
    /// The texts of all sources that it was made of, by the names of the sources. `None` without a
    /// [`Gate`](crate::Gate), and for a version that repeats an earlier one.
    pub sources: Option<Vec<(String, Vec<Text>)>>,
}

/// A setting that changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    /// Its path.
    pub path: Path,
    /// The value before; `None` if it was not set.
    pub old: Option<String>,
    /// The value now; `None` if it is no longer set.
    pub new: Option<String>,
    /// The position of the new value.
    pub at: Option<Span>,
}

/// A value is shown up to this many characters.
const SHOWN: usize = 80;

// === impl Version ===

impl<D, T> Version<D, T> {
    /// Every setting that a layer sets: path, value and position. Secrets are masked.
    pub fn settings(&self) -> impl Iterator<Item = (String, String, String)> + '_ {
        let leaves = self.tree.leaves().into_iter();
        leaves.map(|(path, leaf)| (path.to_string(), shown(&path, leaf), leaf.at.to_string()))
    }
}

// === impl Moved ===

/// The differences between two trees, in the order of the new one; removed settings come last.
pub fn changes(old: &Node, new: &Node) -> Vec<Moved> {
    let mut found = Vec::new();
    compare(old, new, &Path::default(), &mut found);
    found
}

fn compare(old: &Node, new: &Node, path: &Path, found: &mut Vec<Moved>) {
    match (&old.value, &new.value) {
        (Value::Map(before), Value::Map(after)) => {
            let other = |entries: &[Entry], key: &str| entries.iter().position(|e| e.key == key);
            for entry in after {
                let path = path.then(Segment::Key(entry.key.clone()));
                match other(before, &entry.key) {
                    Some(i) => compare(&before[i].node, &entry.node, &path, found),
                    None => found.push(Moved::new(path, None, Some(&entry.node))),
                }
            }
            for entry in before.iter().filter(|e| other(after, &e.key).is_none()) {
                found.push(Moved::new(path.then(Segment::Key(entry.key.clone())), Some(&entry.node), None));
            }
        }
        (Value::List(before), Value::List(after)) if before.len() == after.len() => {
            for (i, (old, new)) in before.iter().zip(after).enumerate() {
                compare(old, new, &path.then(Segment::Index(i)), found);
            }
        }
        (before, after) if before == after => {}
        _ => found.push(Moved::new(path.clone(), Some(old), Some(new))),
    }
}

impl Moved {
    fn new(path: Path, old: Option<&Node>, new: Option<&Node>) -> Self {
        let show = |node: Option<&Node>| node.map(|n| shown(&path, n));
        Moved { old: show(old), new: show(new), at: new.map(|n| n.at.clone()), path }
    }
}

/// `outbound.services.stock.timeout 300ms -> 250ms (chassis.yaml:9:16)`
impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "unset".into());
        write!(f, "{} {} -> {}", self.path, word(&self.old), word(&self.new))?;
        match &self.at {
            Some(at) => write!(f, " ({at})"),
            None => Ok(()),
        }
    }
}

fn shown(path: &Path, node: &Node) -> String {
    if path.is_secret() {
        return "***".into();
    }
    let text = node.shown().to_string();
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}\u{2026}", &text[..cut]),
        None => text,
    }
}

/// Hash of a tree's meaning, 64 bits: FNV-1a, the same on every machine and in every release. It distinguishes
/// versions; it does not protect against forgery.
pub(crate) fn hash(tree: &Node) -> String {
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    digest(tree, &mut state);
    format!("{state:016x}")
}

fn digest(node: &Node, state: &mut u64) {
    let mut eat = |kind: u8, text: &str| {
        for byte in [kind].iter().chain(text.as_bytes()).chain(&[0xff]) {
            *state = (*state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match &node.value {
        Value::Null => eat(b'0', ""),
        Value::Plain(text) | Value::Quoted(text) => eat(b's', text),
        Value::List(items) => {
            eat(b'l', &items.len().to_string());
            items.iter().for_each(|item| digest(item, state));
        }
        Value::Map(entries) => {
            eat(b'm', &entries.len().to_string());
            let mut sorted: Vec<&Entry> = entries.iter().collect();
            sorted.sort_by(|a, b| a.key.cmp(&b.key));
            for entry in sorted {
                for byte in entry.key.as_bytes().iter().chain(&[0xff]) {
                    *state = (*state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
                }
                digest(&entry.node, state);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use super::*;
    use crate::{parse::parse, tree::Layer};

    fn yaml(content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(old: &str, new: &str, expected: &[&str]) {
        let (old, new) = (yaml(old), yaml(new));
        let found: Vec<_> = changes(&old, &new).iter().map(Moved::to_string).collect();
        assert_eq!(found, expected);
        assert_eq!(hash(&old) == hash(&new), expected.is_empty());
    }

    #[test]
    fn changes_are_told_by_path() {
        check("a: 1\nb: { c: 2 }", "b: { 'c': '2' } # moved\na: 1", &[]);
        check(
            "a: { b: 1, c: 2 }",
            "a: { b: 3, d: 4 }",
            &["a.b 1 -> 3 (c:1:9)", "a.d unset -> 4 (c:1:15)", "a.c 2 -> unset"],
        );
        check("a: [{ b: 1 }, 2]", "a: [{ b: 5 }, 2]", &["a[0].b 1 -> 5 (c:1:10)"]);
        check("a: [1]", "a: [1, 2]", &["a [1] -> [1, 2] (c:1:4)"]);
        check("a: off", "a: {b: 1}", &["a off -> { b: 1 } (c:1:4)"]);
    }

    #[test]
    fn secrets_are_not_told() {
        check("a: { token: x }", "a: { token: y }", &["a.token *** -> *** (c:1:13)"]);
        check("a: 1", "a: { token: y }", &["a 1 -> { token: *** } (c:1:4)"]);
    }
}
