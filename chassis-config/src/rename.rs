//! Keys that have a new name: the old one is read as the new one, with a warning.
use std::{cmp::Reverse, fmt};

use chassis_core::config::Text;

use crate::{
    code::Code,
    parse::parse,
    problem::Problem,
    tree::{Entry, Layer, Node, Path, Segment, Value},
};

/// A key that has a new name, within one table.
///
/// The old name is read as the new one, in every source. Where one text has both it is an error; among several texts the
/// later one wins, as always.
///
/// ```
/// use chassis_config::{Renamed, tree::Path};
///
/// let renamed = Renamed::new("tiers[*].min", "at_least").within(&Path::of(["shop"]));
/// assert_eq!(renamed.to_string(), "shop.tiers[*].min -> at_least");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renamed {
    /// The path of the table.
    table: Vec<Step>,
    /// The number of steps to the table that `kind` is about.
    root: usize,
    /// The kind that the table has if it chooses one.
    kind: Option<String>,
    old: String,
    new: String,
}

/// A step of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    One(Segment),
    AnyKey,
    AnyIndex,
}

// === impl Renamed ===

impl Renamed {
    /// The key at `path`, which is now called `new`. In the path `*` stands for one key that people choose, and `[*]` for
    /// each item of a list: `services.*.tiers[*].min`.
    pub fn new(path: &str, new: &str) -> Self {
        let mut steps = Vec::new();
        for part in path.split('.') {
            let (key, items) = part.split_once('[').map_or((part, None), |(key, items)| (key, Some(items)));
            steps.push(match key {
                "*" => Step::AnyKey,
                key => Step::One(Segment::Key(key.to_owned())),
            });
            let lists = items.map_or(0, |items| 1 + items.matches('[').count());
            steps.extend((0..lists).map(|_| Step::AnyIndex));
        }
        let old = match steps.pop() {
            Some(Step::One(Segment::Key(key))) => key,
            _ => String::new(), // no key has this name
        };
        Renamed { table: steps, root: 0, kind: None, old, new: new.to_owned() }
    }

    /// The same below the table at `part`.
    pub fn within(mut self, part: &Path) -> Self {
        self.table.splice(..0, part.0.iter().cloned().map(Step::One));
        self.root += part.0.len();
        self
    }

    /// Only where the table that [`within`](Renamed::within) names is of this `kind`, or has no `kind` in the same text.
    pub fn of_kind(self, kind: &str) -> Self {
        Renamed { kind: Some(kind.to_owned()), ..self }
    }

    /// The steps to its table: keys, `*` and `[*]`.
    pub fn table(&self) -> impl Iterator<Item = String> + '_ {
        self.table.iter().map(|step| match step {
            Step::One(Segment::Key(key)) => key.clone(),
            Step::AnyKey => "*".to_owned(),
            Step::AnyIndex | Step::One(Segment::Index(_)) => "[*]".to_owned(),
        })
    }

    /// The old name.
    pub fn old(&self) -> &str {
        &self.old
    }

    /// The new name.
    pub fn new_name(&self) -> &str {
        &self.new
    }

    /// Renames the key wherever it is in `tree`, the tree of one text.
    fn apply(&self, tree: &mut Node, problems: &mut Vec<Problem>) {
        self.walk(tree, 0, &mut Path::default(), problems);
    }

    fn walk(&self, node: &mut Node, depth: usize, path: &mut Path, problems: &mut Vec<Problem>) {
        let kind = node.entry("kind").map(|entry| &entry.node.value);
        if let (Some(expected), true, Some(Value::Plain(kind) | Value::Quoted(kind))) =
            (&self.kind, depth == self.root, kind)
            && kind != expected
        {
            return;
        }
        let Some(step) = self.table.get(depth) else { return self.rename(node, path, problems) };
        let mut below = |segment: Segment, node: &mut Node| {
            path.0.push(segment);
            self.walk(node, depth + 1, path, problems);
            path.0.pop();
        };
        match (step, &mut node.value) {
            (Step::One(Segment::Key(key)), Value::Map(entries)) => {
                if let Some(entry) = entries.iter_mut().find(|entry| entry.key == *key) {
                    below(Segment::Key(key.clone()), &mut entry.node);
                }
            }
            (Step::AnyKey, Value::Map(entries)) => {
                entries.iter_mut().for_each(|entry| below(Segment::Key(entry.key.clone()), &mut entry.node));
            }
            (Step::One(Segment::Index(index)), Value::List(items)) => {
                if let Some(item) = items.get_mut(*index) {
                    below(Segment::Index(*index), item);
                }
            }
            (Step::AnyIndex, Value::List(items)) => {
                items.iter_mut().enumerate().for_each(|(index, item)| below(Segment::Index(index), item));
            }
            _ => {}
        }
    }

    fn rename(&self, table: &mut Node, path: &Path, problems: &mut Vec<Problem>) {
        let Value::Map(entries) = &mut table.value else { return };
        let Some(at) = entries.iter().position(|entry| entry.key == self.old) else { return };
        let (old, new) = (&self.old, &self.new);
        let path = path.then(Segment::Key(old.clone()));
        let place = Some(entries[at].key_at.clone());
        if entries.iter().any(|entry| entry.key == *new) {
            let message = format!("`{old}` is the former name of `{new}`, and both are here; remove `{old}`");
            problems.push(Problem::error(path, place, message).coded(Code::Conflict));
            entries.remove(at);
            return;
        }
        let message =
            format!("`{old}` is now called `{new}`; the next major version does not read the old name");
        let warning = Problem::warning(path, place, message).coded(Code::Deprecated);
        problems.push(Problem { rewrite: Some(new.clone()), ..warning });
        let Entry { key, .. } = &mut entries[at];
        *key = new.clone();
    }
}

impl fmt::Display for Renamed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, step) in self.table.iter().enumerate() {
            let dot = if at == 0 { "" } else { "." };
            match step {
                Step::One(Segment::Key(key)) => write!(f, "{dot}{key}")?,
                Step::One(Segment::Index(index)) => write!(f, "[{index}]")?,
                Step::AnyKey => write!(f, "{dot}*")?,
                Step::AnyIndex => f.write_str("[*]")?,
            }
        }
        let dot = if self.table.is_empty() { "" } else { "." };
        write!(f, "{dot}{} -> {}", self.old, self.new)
    }
}

/// Renames keys in the tree of one text. `None` if it has none of the old names.
pub(crate) fn renamed(tree: &Node, all: &[Renamed], problems: &mut Vec<Problem>) -> Option<Node> {
    if all.is_empty() {
        return None;
    }
    let (mut tree, before) = (tree.clone(), problems.len());
    all.iter().for_each(|renamed| renamed.apply(&mut tree, problems));
    (problems.len() > before).then_some(tree)
}

/// A text with its keys renamed; all else stays as it is written. `None` if it has none of the old names.
///
/// # Errors
/// The text can't be parsed, or an old name is written in a way that can't be replaced, with an escape for instance.
pub fn rewritten(text: &Text, all: &[Renamed]) -> Result<Option<String>, String> {
    let parse = |text: &Text| parse(text, Layer::File).map_err(|problem| problem.in_a_line());
    let mut problems = Vec::new();
    let Some(expected) = renamed(&parse(text)?, all, &mut problems) else { return Ok(None) };
    if let Some(error) = problems.iter().find(|problem| problem.is_error()) {
        return Err(error.in_a_line());
    }
    let mut lines: Vec<Vec<char>> = text.content.split('\n').map(|line| line.chars().collect()).collect();
    // From the end, so that the positions before stay right. An alias has the positions of its anchor.
    let place = |problem: &Problem| problem.at.as_ref().map(|at| (at.line, at.column));
    problems.sort_by_key(|problem| Reverse(place(problem)));
    problems.dedup_by_key(|problem| place(problem));
    for problem in &problems {
        if replace(&mut lines, problem).is_none() {
            return Err(format!("{}; it is written in a way that can't be replaced", problem.in_a_line()));
        }
    }
    let lines: Vec<String> = lines.into_iter().map(|line| line.into_iter().collect()).collect();
    let content = lines.join("\n");
    let after = parse(&Text { content: content.clone(), ..text.clone() })?;
    match after.value == expected.value {
        true => Ok(Some(content)),
        false => Err(
            "the text would mean something else: an alias stands for a table whose keys have no new names"
                .to_owned(),
        ),
    }
}

/// Replaces the key at the position of a problem.
fn replace(lines: &mut [Vec<char>], problem: &Problem) -> Option<()> {
    let (at, new) = (problem.at.as_ref()?, problem.rewrite.as_ref()?);
    let Some(Segment::Key(old)) = problem.path.0.last() else { return None };
    let (start, line) = (at.column.checked_sub(1)?, lines.get_mut(at.line.checked_sub(1)?)?);
    let rest: String = line.get(start..)?.iter().collect();
    let quote =
        rest.chars().next().filter(|first| matches!(first, '"' | '\'')).map(String::from).unwrap_or_default();
    let written = format!("{quote}{old}{quote}");
    let length = written.chars().count();
    let is_end = rest.chars().nth(length).is_none_or(|c| c.is_whitespace() || ":=.".contains(c));
    (rest.starts_with(&written) && is_end)
        .then(|| drop(line.splice(start..start + length, format!("{quote}{new}{quote}").chars())))
}

#[cfg(test)]
mod tests {
    use chassis_core::config::Format;

    use super::*;

    fn text(format: Format, content: &str) -> Text {
        Text { content: content.into(), format, origin: "c".into(), revision: None }
    }

    fn tree(format: Format, content: &str) -> Node {
        parse(&text(format, content), Layer::File).unwrap_or_else(|problem| panic!("{problem}"))
    }

    /// Renames `old` to `new` at several levels.
    fn all() -> Vec<Renamed> {
        let path = |path: &str| Renamed::new(path, "new").within(&Path::of(["shop"]));
        vec![path("old"), path("*.old"), path("tiers[*].old"), path("deep.*.tiers[*].old")]
    }

    #[track_caller]
    fn check(format: Format, content: &str, expected: &str, count: usize) {
        let mut problems = Vec::new();
        renamed(&tree(format, content), &all(), &mut problems);
        assert_eq!(problems.len(), count, "{problems:?}");
        let text = rewritten(&text(format, content), &all()).expect("it can be rewritten");
        assert_eq!(text.unwrap_or_else(|| content.to_owned()), expected);
    }

    #[test]
    fn keys_are_renamed_and_nothing_else() {
        check(
            Format::Yaml,
            "# old: stays\nshop:\n  old: old   # old\n  'b': { \"old\": 1, older: 2 }\n  tiers: [ { old: 1 }, { 'old' : 2 } ]\nold: 1\n",
            "# old: stays\nshop:\n  new: old   # old\n  'b': { \"new\": 1, older: 2 }\n  tiers: [ { new: 1 }, { 'new' : 2 } ]\nold: 1\n",
            4,
        );
        check(
            Format::Yaml,
            "shop: { deep: { a: { tiers: [ { é: 'ü', old: 1 } ] } } }\r\n\r\n",
            "shop: { deep: { a: { tiers: [ { é: 'ü', new: 1 } ] } } }\r\n\r\n",
            1,
        );
        check(Format::Json, "{ \"shop\": { \"old\":1 } }", "{ \"shop\": { \"new\":1 } }", 1);
        check(
            Format::Toml,
            "[shop]\nold = 1 # old\nb.old = 2\n[[shop.tiers]]\n\"old\" = 3\n",
            "[shop]\nnew = 1 # old\nb.new = 2\n[[shop.tiers]]\n\"new\" = 3\n",
            3,
        );
        check(Format::Yaml, "shop: { new: 1 }", "shop: { new: 1 }", 0);
        // One position, two places.
        check(Format::Yaml, "shop: { a: &a { old: 1 }, b: *a }", "shop: { a: &a { new: 1 }, b: *a }", 2);
    }

    #[test]
    fn both_names_are_an_error() {
        let mut problems = Vec::new();
        let tree = renamed(&tree(Format::Yaml, "shop: { new: 1, old: 2 }"), &all(), &mut problems);
        assert_eq!(tree.expect("it is changed").value.to_string(), "{ shop: { new: 1 } }");
        let said = "C007 c:1:17 shop.old: `old` is the former name of `new`, and both are here; remove `old`";
        assert_eq!(problems.iter().map(Problem::in_a_line).collect::<Vec<_>>(), [said]);
    }

    #[test]
    fn a_key_that_cannot_be_replaced_is_reported() {
        let why =
            |content: &str| rewritten(&text(Format::Yaml, content), &all()).expect_err("it can't be written");
        let escaped = why("shop: { \"ol\\x64\": 1, b: { old: 1 } }");
        assert!(
            escaped.starts_with("C015 c:1:9 shop.old:") && escaped.ends_with("can't be replaced"),
            "{escaped}"
        );
        // The same table stands where its keys have no new names.
        assert!(
            why("shop: { a: &a { old: 1 } }\nother: *a").starts_with("the text would mean something else")
        );
        assert!(why("shop: { old: 1, new: 2 }").starts_with("C007 c:1:9 shop.old"));
    }

    #[test]
    fn a_kind_of_its_own_has_names_of_its_own() {
        let of = |content: &str| {
            let renamed = [Renamed::new("old", "new").within(&Path::of(["registry"])).of_kind("file")];
            let mut problems = Vec::new();
            super::renamed(&tree(Format::Yaml, content), &renamed, &mut problems);
            problems.len()
        };
        assert_eq!(of("registry: { old: 1 }"), 1);
        assert_eq!(of("registry: { old: 1, kind: file }"), 1);
        assert_eq!(of("registry: { old: 1, kind: other }"), 0);
    }
}
