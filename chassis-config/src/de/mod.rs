//! Deserializes a tree with serde and reports every problem at its position.
//!
//! serde stops at the first error. [`read`] records it, leaves out the value that caused it, and reads on, so
//! that one run reports all errors of a document.
mod fault;
mod place;

use serde::de::DeserializeOwned;

use self::place::Place;
use crate::{
    problem::Problem,
    tree::{Layer, Node, Path, Segment, Value},
};

/// The most errors that are reported at once.
const MAX_ERRORS: usize = 20;
/// The most values that are left out before reading stops.
const MAX_SKIPS: usize = 1_000;

/// Reads `tree` as a `D`. `None` if there is an error among the problems.
///
/// An unknown key is an error, with two exceptions: keys that start with `x-` are the writer's own and are
/// ignored wherever the keys are fixed; in the environment an unknown key is only a warning, because variables
/// of other programs may be there.
pub fn read<D: DeserializeOwned>(tree: &Node) -> (Option<D>, Vec<Problem>) {
    read_part(tree, &Path::default(), &[])
}

/// Reads the value at `part` of `tree` as a `D`, without the values at `aside`, which others read. A missing
/// value is read as null.
///
/// ```
/// use chassis_config::{merge, read_part, tree::{Layer, Node, Origin, Path}};
///
/// #[derive(serde::Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Disk { path: String }
///
/// let json = serde_json::json!({ "store": { "kind": "disk", "path": "/var/lib" } });
/// let tree = Node::from_json(&Origin::new("builder", Layer::Builder, ""), &json);
/// let (disk, problems) = read_part::<Disk>(&tree, &Path::of(["store"]), &[Path::of(["store", "kind"])]);
/// assert!(problems.is_empty());
/// assert_eq!(disk.unwrap().path, "/var/lib");
/// ```
pub fn read_part<D: DeserializeOwned>(tree: &Node, part: &Path, aside: &[Path]) -> (Option<D>, Vec<Problem>) {
    let nothing = Node::new(Value::Null, tree.at.clone());
    let node = tree.at(part).unwrap_or(&nothing);
    let (mut problems, mut skipped) = (Vec::new(), aside.to_vec());
    while skipped.len() < MAX_SKIPS + aside.len() {
        let mut fault = match D::deserialize(Place::at(node, part, &skipped)) {
            Ok(_) if problems.iter().any(Problem::is_error) => return (None, problems),
            Ok(document) => return (Some(document), problems),
            Err(fault) => fault,
        };
        fault.path.reverse(); // the steps were collected from the inside out
        let path = Path(part.0.iter().cloned().chain(std::mem::take(&mut fault.path)).collect());
        let (path, at) = fault.locate(tree, path);
        let own = matches!(path.0.last(), Some(Segment::Key(key)) if key.starts_with("x-"));
        let consequence =
            |p: &Problem| p.is_error() && p.path.0.len() > path.0.len() && p.path.is_within(&path);
        // A value that was left out may cause a further error above it; that one is not reported.
        let reported = problems.iter().any(consequence) || (own && fault.is_unknown_key());
        if !reported {
            let from_environment = at.origin.layer == Layer::Environment && fault.is_unknown_key();
            let others: Vec<_> = aside.iter().filter_map(|other| beside(other, &path)).collect();
            let is_replaced = tree.at(&path).is_some_and(|node| node.written.is_some());
            let mut problem = fault.into_problem(path.clone(), at, &others, is_replaced);
            if tree.at(part).is_none() {
                problem.at = None; // it is not in the text
            }
            problems.push(if from_environment { crate::env::unknown(problem) } else { problem });
        }
        let errors = problems.iter().filter(|p| p.is_error()).count();
        if errors >= MAX_ERRORS || tree.at(&path).is_none() || path == *part || skipped.contains(&path) {
            return (None, problems);
        }
        skipped.push(path);
    }
    (None, problems)
}

/// The last key of `other` if it is in the same map as `path`.
fn beside<'a>(other: &'a Path, path: &Path) -> Option<&'a str> {
    let (Some((Segment::Key(key), above)), Some((_, of))) = (other.0.split_last(), path.0.split_last())
    else {
        return None;
    };
    (above == of).then_some(key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use chassis_core::config::{Format, Text};
    use serde::Deserialize;

    use super::*;
    use crate::parse::parse;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Rules {
        name: Option<String>,
        on: bool,
        count: Option<std::num::NonZeroU32>,
        share: f64,
        mode: Mode,
        list: Vec<Rule>,
        free: BTreeMap<String, String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        name: String,
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        #[default]
        Safe,
        Always,
        Named(String),
    }

    fn tree(content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        parse(&text, Layer::File).expect("the test's YAML is sound")
    }

    #[track_caller]
    fn check(content: &str, expected: &[&str]) {
        let (_, problems) = read::<Rules>(&tree(content));
        assert_eq!(problems.iter().map(Problem::without_code).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn words_and_numbers_are_what_is_asked_for() {
        let (rules, problems) = read::<Rules>(&tree(
            "name: 1.10\non: on\ncount: 3\nshare: 1\nmode: { named: x }\nlist:\nfree: { a: 1, x-b: off }\nx-own: {}",
        ));
        assert_eq!(problems, []);
        let free =
            BTreeMap::from([("a".to_string(), "1".to_string()), ("x-b".to_string(), "off".to_string())]);
        let expected = Rules {
            name: Some("1.10".into()),
            on: true,
            count: std::num::NonZeroU32::new(3),
            share: 1.0,
            mode: Mode::Named("x".into()),
            list: Vec::new(),
            free,
        };
        assert_eq!(rules, Some(expected));
    }

    #[test]
    fn every_problem_is_told_at_once_and_at_its_place() {
        check(
            "nmae: a\ncount: 0\nlist:\n  - name: a\n  - nome: b\nmode: saef\nshare: [1]\non: 5\n",
            &[
                "c:1:1 nmae: unknown key; did you mean `name`?",
                "c:2:8 count: 0 is refused; write a whole number above 0",
                "c:5:5 list[1].nome: unknown key; did you mean `name`?",
                "c:6:7 mode: `saef` is not known here; did you mean `safe`?",
                "c:7:8 share: a number belongs here, not a list",
                "c:8:5 on: true or false belongs here, not `5`",
            ],
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        check("list: [ {} ]", &["c:1:9 list[0]: missing `name`"]);
        check("list:\n  - name:\n", &["c:2:9 list[0].name: nothing stands here; a text is wanted"]);
    }

    #[test]
    fn maps_and_lists_are_not_taken_for_each_other() {
        check("list: { name: a }", &["c:1:7 list: a list belongs here, not a map"]);
        check("list:\n  - [ a ]", &["c:2:5 list[0]: a map belongs here, not a list"]);
        check("free: [ a ]", &["c:1:7 free: a map belongs here, not a list"]);
        check("name: [ a ]", &["c:1:7 name: a text belongs here, not a list"]);
    }

    #[test]
    fn numbers_out_of_range_are_told() {
        check("count: -1", &["c:1:8 count: `-1` is out of range; write a whole number above 0"]);
        check("count: 3.5", &["c:1:8 count: a whole number above 0 belongs here, not `3.5`"]);
        check("count: '3'", &["c:1:8 count: a whole number above 0 belongs here, not `3` in quotes"]);
    }

    /// Accepts any value, and keeps it in the spelling of the document.
    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(untagged)]
    enum Anything {
        Bool(bool),
        Whole(i64),
        Number(f64),
        Text(String),
    }

    #[test]
    fn who_takes_anything_loses_no_letters() {
        let content = "a: 1.10\nb: 007\nc: 1.5\nd: -2\ne: true\nf: True\ng: 0x10\nh: 1e3\ni: off\n";
        let (read, _) = read::<BTreeMap<String, Anything>>(&tree(content));
        let read: Vec<_> = read.expect("it is sound").into_values().collect();
        let text = |t: &str| Anything::Text(t.into());
        let (whole, number) = (Anything::Whole(-2), Anything::Number(1.5));
        let expected = [
            text("1.10"),
            text("007"),
            number,
            whole,
            Anything::Bool(true),
            text("True"),
            text("0x10"),
            text("1e3"),
            text("off"),
        ];
        assert_eq!(read, expected);
    }

    #[test]
    fn numbers_have_many_spellings() {
        let (read, problems) =
            read::<BTreeMap<String, f64>>(&tree("a: 1.10\nb: 007\nc: 0x10\nd: 1e3\ne: +1\nf: 0b11"));
        assert_eq!(problems, []);
        let read: Vec<_> = read.expect("it is sound").into_values().collect();
        assert_eq!(read, [1.1, 7.0, 16.0, 1000.0, 1.0, 3.0]);
    }
}
