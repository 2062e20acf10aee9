//! Merges layers into one document: later layers win, maps merge deep, lists and scalars are replaced whole.
//!
//! The `config` crate merges. Its values carry one string of origin and its maps none, so every value carries
//! the number of its node, and a map holds its own number under a key that no document can contain.
//!
//! A key without a value changes nothing: a map that earlier layers set stays.
use config::{Map, Source, Value as Merged, ValueKind};

use crate::tree::{Entry, Layer, Node, Origin, Value};

/// The key that holds a map's own number; the parsers refuse control characters in keys.
const SELF: &str = "\0";
/// The whole document is stored under one key, because `config` reads dots in a source's keys as paths.
const ROOT: &str = "document";

/// Merges `layers`; later ones win.
pub fn merge<'a>(layers: impl IntoIterator<Item = &'a Node>) -> Node {
    let mut nodes = Vec::new();
    let mut builder = config::Config::builder();
    for layer in layers {
        let root = lift(layer, None, &mut nodes);
        builder = builder.add_source(Lifted(root));
    }
    let empty = || Node::empty(Origin::new("defaults", Layer::Defaults, ""));
    // Collecting can't fail: the sources hold values.
    let Ok(config::Config { cache: Merged { kind: ValueKind::Table(mut top), .. }, .. }) = builder.build()
    else {
        return empty();
    };
    top.shift_remove(ROOT).and_then(|root| lower(root, &nodes)).map_or_else(empty, |(_, node)| node)
}

/// A node, and the entry that contains it.
type Held<'a> = (&'a Node, Option<&'a Entry>);

/// One layer in the form that `config` merges.
#[derive(Clone, Debug)]
struct Lifted(Merged);

// === impl Lifted ===

impl Source for Lifted {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Merged>, config::ConfigError> {
        Ok(Map::from_iter([(ROOT.to_string(), self.0.clone())]))
    }
}

fn lift<'a>(node: &'a Node, entry: Option<&'a Entry>, nodes: &mut Vec<Held<'a>>) -> Merged {
    let number = nodes.len();
    nodes.push((node, entry));
    let origin = number.to_string();
    let own = (SELF.to_string(), Merged::new(Some(&origin), ValueKind::Nil));
    match &node.value {
        Value::Map(entries) => {
            let entries = entries.iter().map(|e| (e.key.clone(), lift(&e.node, Some(e), nodes)));
            Merged::new(Some(&origin), ValueKind::Table(std::iter::once(own).chain(entries).collect()))
        }
        Value::Null => Merged::new(Some(&origin), ValueKind::Table(Map::from_iter([own]))),
        Value::Plain(text) | Value::Quoted(text) => {
            Merged::new(Some(&origin), ValueKind::String(text.clone()))
        }
        Value::List(_) => Merged::new(Some(&origin), ValueKind::Array(Vec::new())),
    }
}

fn lower<'a>(merged: Merged, nodes: &[Held<'a>]) -> Option<(Option<&'a Entry>, Node)> {
    let held = |value: &Merged| nodes.get(value.origin()?.parse::<usize>().ok()?).copied();
    let ValueKind::Table(mut table) = merged.kind else {
        let (node, entry) = held(&merged)?;
        return Some((entry, node.clone()));
    };
    let (node, entry) = held(&table.shift_remove(SELF)?)?;
    if table.is_empty() && matches!(node.value, Value::Null) {
        return Some((entry, node.clone()));
    }
    let entries = table.into_values().filter_map(|value| {
        let (entry, node) = lower(value, nodes)?;
        let entry = entry?;
        Some(Entry { key: entry.key.clone(), key_at: entry.key_at.clone(), node })
    });
    Some((entry, Node::new(Value::Map(entries.collect()), node.at.clone())))
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use super::*;
    use crate::parse::parse;

    fn yaml(origin: &str, content: &str) -> Node {
        let text =
            Text { content: content.into(), format: Format::Yaml, origin: origin.into(), revision: None };
        parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(layers: &[&str], expected: &str) {
        let layers: Vec<_> = layers.iter().map(|l| yaml("a", l)).collect();
        assert_eq!(merge(&layers).value.to_string(), expected);
    }

    #[test]
    fn maps_merge_deep_and_lists_whole() {
        check(
            &["a: { b: 1, c: 2 }\nl: [1, 2]", "a: { c: 3, d.e: 4 }\nl: [9]"],
            "{ a: { b: 1, c: 3, d.e: 4 }, l: [9] }",
        );
        check(&["a: off", "a: { b: 1 }"], "{ a: { b: 1 } }");
        check(&["a: { b: 1 }", "a: off"], "{ a: off }");
        check(&["a: [ { b: 1 } ]", "a: [ { c: 1 } ]"], "{ a: [{ c: 1 }] }");
    }

    #[test]
    fn a_key_with_nothing_behind_it_says_nothing() {
        check(&["a: { b: 1 }", "a:"], "{ a: { b: 1 } }");
        check(&["a:", "a: { b: 1 }"], "{ a: { b: 1 } }");
        check(&["a:"], "{ a: null }");
        check(&[], "{}");
    }

    #[test]
    fn everything_keeps_its_place() {
        let merged = merge(&[yaml("one", "a:\n  b: 1\n  c: 2\n"), yaml("two", "\na: { c: 3 }\n")]);
        let places: Vec<_> =
            merged.leaves().iter().map(|(path, node)| format!("{path} {}", node.at)).collect();
        assert_eq!(places, ["a.b one:2:6", "a.c two:2:9"]);
        assert_eq!(merged.entry("a").expect("it is there").key_at.to_string(), "two:2:1");
    }
}
