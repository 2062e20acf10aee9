//! Single settings that override all others: `--set outbound.defaults.timeout=2s`.
use std::sync::Arc;

use crate::{
    code::Code,
    env::stand_in,
    merge::merge,
    parse,
    problem::Problem,
    tree::{Entry, Layer, Node, Origin, Path, Segment, Span, Value, step},
};

/// The layer of single settings; it overrides all other layers. Later settings of one path override earlier ones.
///
/// A path is written as in messages: `outbound.services.stock.timeout`. Keys that contain a dot may be quoted; keys
/// that the lower layers have are recognised without quotes. Values that start with `[`, `{` or a quote are YAML; all
/// others are plain words. Items of a list can't be set: set the whole list.
///
/// ```
/// use chassis_config::{Overrides, merge};
///
/// let (tree, problems) = Overrides::default().set("outbound.defaults.timeout", "2s").over(&merge([]));
/// assert_eq!(tree.value.to_string(), "{ outbound: { defaults: { timeout: 2s } } }");
/// assert!(problems.is_empty());
/// ```
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// The settings as written, with the number of bytes of the path.
    written: Vec<(String, usize)>,
}

/// The name of the layer's texts in messages.
const NAME: &str = "--set";

// === impl Overrides ===

impl Overrides {
    /// Adds a setting.
    pub fn set(mut self, path: &str, value: &str) -> Self {
        self.written.push((format!("{path}={value}"), path.len()));
        self
    }

    /// Adds a setting that is written as `path=value`.
    ///
    /// # Errors
    /// The reason, if there is no `=` or no path.
    pub fn parse(self, written: &str) -> Result<Self, String> {
        match equals(written) {
            Some(0) | None => Err(format!("`{written}` is no setting; write `path=value`")),
            Some(at) => Ok(self.set(&written[..at], &written[at + 1..])),
        }
    }

    /// The path that `written` means in `base`; `None` if it can't be read.
    pub fn path(written: &str, base: &Node) -> Option<Path> {
        let origin = Origin::new(NAME, Layer::Set, written);
        let keys = keys(&origin, written, base).ok()?;
        Some(Path(keys.into_iter().map(|(key, _)| Segment::Key(key)).collect()))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }

    /// Builds this layer with the keys of `base`; reports paths that can't be read.
    pub fn over(&self, base: &Node) -> (Node, Vec<Problem>) {
        let mut problems = Vec::new();
        let mut layers = vec![Node::empty(Origin::new(NAME, Layer::Set, ""))];
        for (written, path) in &self.written {
            let origin = Origin::new(NAME, Layer::Set, written.clone());
            match keys(&origin, &written[..*path], base) {
                Ok(keys) => {
                    let value =
                        parse::value(&origin, &written[path + 1..], written[..*path].chars().count() + 1);
                    let node = keys.into_iter().rev().fold(value, |node, (key, key_at)| {
                        let at = key_at.clone();
                        Node::new(Value::Map(vec![Entry { key, key_at, node }]), at)
                    });
                    layers.push(node);
                }
                Err((at, why)) => {
                    problems.push(Problem::error(Path::default(), Some(at), why).coded(Code::SetPath))
                }
            }
        }
        let mut layer = merge(&layers);
        stand_in(&mut layer, base);
        (layer, problems)
    }
}

/// The position of the `=` between path and value: the first one outside quotes.
fn equals(written: &str) -> Option<usize> {
    let mut quoted = false;
    written.char_indices().find_map(|(at, c)| {
        quoted ^= c == '"';
        (c == '=' && !quoted).then_some(at)
    })
}

/// The keys of a path, with their positions; or the place that can't be read, and why.
fn keys(origin: &Arc<Origin>, path: &str, base: &Node) -> Result<Vec<(String, Span)>, (Span, String)> {
    let (mut node, mut rest, mut keys) = (Some(base), path, Vec::new());
    let span = |from: &str, to: &str| Span::of_bytes(origin, path.len() - from.len(), path.len() - to.len());
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').filter(|_| !keys.is_empty()).unwrap_or(rest);
        if rest.starts_with('[') {
            return Err((span(rest, ""), "items of a list can't be set; set the whole list".to_owned()));
        }
        let known = node.and_then(|node| step(node, rest));
        let (key, after) = match known {
            Some((Segment::Key(key), below, after)) => {
                node = Some(below);
                (key, after)
            }
            _ => {
                node = None;
                next_key(rest).ok_or_else(|| (span(rest, ""), "a key belongs here".to_owned()))?
            }
        };
        keys.push((key, span(rest, after)));
        if after == "." {
            return Err((span(after, ""), "a key belongs behind this".to_owned()));
        }
        rest = after;
    }
    match keys.is_empty() {
        true => Err((span(path, ""), "a path belongs before `=`".to_owned())),
        false => Ok(keys),
    }
}

/// The key that `rest` starts with, quoted or up to the next dot, and what follows it.
fn next_key(rest: &str) -> Option<(String, &str)> {
    if let Some(inner) = rest.strip_prefix('"') {
        let (key, after) = inner.split_once('"')?;
        return (after.is_empty() || after.starts_with('.')).then(|| (key.to_owned(), after));
    }
    let end = rest.find(['.', '[']).unwrap_or(rest.len());
    (end > 0).then(|| (rest[..end].to_owned(), &rest[end..]))
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use super::*;

    fn base(content: &str) -> Node {
        let text =
            Text { content: content.into(), format: Format::Yaml, origin: "c.yaml".into(), revision: None };
        parse::parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(below: &str, settings: &[&str], expected: &str, problems: &[&str]) {
        let all =
            settings.iter().fold(Overrides::default(), |all, set| all.parse(set).expect("it has a path"));
        let (layer, found) = all.over(&base(below));
        assert_eq!(layer.value.to_string(), expected);
        assert_eq!(found.iter().map(Problem::to_string).collect::<Vec<_>>(), problems);
    }

    #[test]
    fn paths_are_read_by_the_keys_of_the_document() {
        check("", &["a.b=1", "a.c=x=y"], "{ a: { b: 1, c: x=y } }", &[]);
        let below = "operations: { 'a.B/C': {} }";
        check(below, &["operations.a.B/C.timeout=2s"], "{ operations: { a.B/C: { timeout: 2s } } }", &[]);
        check("", &[r#"operations."a.B=C".timeout=2s"#], "{ operations: { a.B=C: { timeout: 2s } } }", &[]);
        check("", &["a={ b: [1, 2] }", "a.c='3'"], "{ a: { b: [1, 2], c: 3 } }", &[]);
        check("", &["a=1", "a=2"], "{ a: 2 }", &[]);
    }

    #[test]
    fn paths_that_cannot_be_read_are_refused_with_their_place() {
        let list = "error[C012]: --set\n      | l[0].a=1\n      |  ^^^^^ items of a list can't be set; set the whole list";
        check("l: [ { a: 1 } ]", &["l[0].a=1"], "{}", &[list]);
        let twice = "error[C012]: --set\n      | a..b=1\n      |   ^^ a key belongs here";
        check("", &["a..b=1"], "{}", &[twice]);
        let end = "error[C012]: --set\n      | a.=1\n      |  ^ a key belongs behind this";
        check("", &["a.=1"], "{}", &[end]);
        for written in ["a.b", "=1", r#""a=b"#] {
            let why = Overrides::default().parse(written).expect_err("it is no setting");
            assert_eq!(why, format!("`{written}` is no setting; write `path=value`"));
        }
    }
}
