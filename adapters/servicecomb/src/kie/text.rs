//! One document of the entries: a plain function.
//!
//! The key of a setting is its path, and its value what stands there. A value of the type `text` is a word, as in
//! `--set`: it is YAML only if it begins with `[`, `{` or a quote. Each entry is named in the document, behind the key
//! that it begins with, so that a message that shows a line shows where it is from; not with its revision, for a value that
//! is put again as it was makes no other document.
use std::collections::{BTreeMap, btree_map};

use chassis_core::{adapter::format_of, config::Format};
use serde_json::value::RawValue;

use super::list::Entry;

/// The settings by the parts of their paths.
#[derive(Default)]
struct Tree(BTreeMap<String, Node>);

enum Node {
    Map(Tree),
    Leaf(Leaf),
}

/// What stands at a path.
struct Leaf {
    /// The entry, for messages.
    origin: String,
    value: Value,
}

enum Value {
    /// On the line of its key.
    Line(String),
    /// Below its key.
    Block(String),
}

/// The document being written.
struct Writer<'a> {
    place: &'a str,
    content: String,
}

/// The most bytes of a document.
const MAX_TEXT: usize = 8 << 20;
/// The most parts of a path. No setting is as deep.
const MAX_PARTS: usize = 64;

/// The document at one key, and its format.
///
/// # Errors
/// The entry can't be one. The message begins with `origin` and its revision.
pub(super) fn document(entry: &Entry, origin: &str) -> Result<(String, Format), String> {
    let at = |why| format!("{origin}@{}: {why}", entry.update_revision);
    let format = match entry.value_type() {
        "yaml" => Format::Yaml,
        "json" => Format::Json,
        "text" => format_of(&entry.key),
        "properties" => {
            let mut tree = Tree::default();
            tree.insert_properties("", entry.value(), origin).map_err(at)?;
            return Ok((tree.write(origin)?, Format::Yaml));
        }
        other => return Err(at(refused(other))),
    };
    Ok((entry.value().to_owned(), format))
}

/// One document of settings: each has the rest of its key, the entry, and its origin. `place` names all of them.
///
/// # Errors
/// An entry that can't be a part of it. The message begins with its origin and its revision.
pub(super) fn settings<'a>(
    place: &str,
    all: impl IntoIterator<Item = (&'a str, &'a Entry, String)>,
) -> Result<String, String> {
    let mut tree = Tree::default();
    for (path, entry, origin) in all {
        let inserted = tree.insert_entry(path, entry, &origin);
        inserted.map_err(|why| format!("{origin}@{}: {why}", entry.update_revision))?;
    }
    tree.write(place)
}

fn refused(value_type: &str) -> String {
    let value_type = value_type.escape_debug();
    format!("settings can't be of the value_type `{value_type}`; use text, yaml, json or properties")
}

/// A value of one line: the YAML that it is, a plain word, or a quoted text.
fn word(value: &str) -> String {
    let value = value.trim();
    let is_yaml = value.starts_with(['[', '{', '"', '\'']) && is_whole(value);
    match is_yaml || is_plain(value) {
        true => value.to_owned(),
        false => quoted(value),
    }
}

/// A quoted text that is JSON and YAML, in one line.
fn quoted(value: &str) -> String {
    let mut written = String::with_capacity(value.len() + 2);
    for c in serde_json::Value::from(value).to_string().chars() {
        match is_unprintable(c) {
            // All of them are one unit of UTF-16.
            true => written.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => written.push(c),
        }
    }
    written
}

/// A character that ends a line for some readers of YAML, or that they refuse.
fn is_unprintable(c: char) -> bool {
    c.is_control() || "\u{2028}\u{2029}\u{feff}".contains(c)
}

/// Is it a plain scalar of YAML behind `key: `, on one line?
fn is_plain(value: &str) -> bool {
    let mut chars = value.chars();
    let begins = match chars.next() {
        Some('-' | '?' | ':') => chars.next().is_some_and(|second| !second.is_whitespace()),
        first => first.is_none_or(|first| !"[]{},#&*!|>'\"%@`".contains(first)),
    };
    let ends = !value.contains(": ") && !value.contains(" #") && !value.ends_with(':');
    begins && ends && !value.contains(is_unprintable)
}

/// Is it one list, map or quoted text of YAML, closed within its line? Others could go on in the lines below.
///
/// A quote begins a text only where a value or a key begins: in `[a"b, "c]` they are characters of plain words to YAML, or
/// are open at the end. Whatever could be read in two ways is not whole.
fn is_whole(value: &str) -> bool {
    // The last character, the last one that is no space, and whether that one ended a quoted text, or is the colon behind.
    let (mut open, mut quote, mut last, mut mark, mut is_quoted) = (Vec::new(), None, ' ', ' ', false);
    let mut chars = value.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let before = std::mem::replace(&mut last, c);
        match (quote, c) {
            (_, c) if c.is_control() => return false,
            (Some('"'), '\\') => drop(chars.next()),
            (Some('\''), '\'') if chars.next_if(|(_, next)| *next == '\'').is_some() => {}
            (Some(of), c) if of == c => (quote, mark, is_quoted) = (None, c, true),
            (Some(_), _) => {}
            (None, ' ') => {}
            (None, '"' | '\'') if at == 0 || begins_value(mark, before, is_quoted) => quote = Some(c),
            (None, '"' | '\'') => return false,
            (None, '#') if " ,[]{}\"'".contains(before) => return false, // a comment
            (None, ']' | '}') if open.pop() != Some(c) => return false,
            // Behind a quoted text there is nothing else.
            (None, c) if is_quoted && mark != ':' && !",:]}".contains(c) => return false,
            (None, c) => {
                match c {
                    '[' => open.push(']'),
                    '{' => open.push('}'),
                    _ => {}
                }
                // A colon after a quoted key needs no space behind it.
                (is_quoted, mark) = (is_quoted && mark != ':' && c == ':', c);
            }
        }
        if open.is_empty() && quote.is_none() {
            return at + c.len_utf8() == value.len();
        }
    }
    false
}

/// Whether a quote after these characters begins a quoted text: the last one that is no space, and the last one.
fn begins_value(mark: char, before: char, is_behind_quoted_key: bool) -> bool {
    match mark {
        '[' | '{' | ',' => true,
        ':' => before == ' ' || is_behind_quoted_key,
        _ => false,
    }
}

/// A document in JSON, in one line. Its texts are written again: YAML has other escapes than JSON, and none of two halves.
fn json(value: &str) -> Result<String, String> {
    let refused = |error| format!("its value is no JSON: {error}");
    let raw: &RawValue = serde_json::from_str(value).map_err(refused)?;
    let (mut rest, mut written) = (raw.get(), String::with_capacity(value.len()));
    while let Some(at) = rest.find('"') {
        let (before, from) = rest.split_at(at);
        let mut texts = serde_json::Deserializer::from_str(from).into_iter::<String>();
        let text = texts.next().transpose().map_err(refused)?.unwrap_or_default(); // `from` is not empty
        // Only white space between values can be one of these.
        written.push_str(&before.replace(['\n', '\r', '\t'], " "));
        written.push_str(&quoted(&text));
        rest = &from[texts.byte_offset()..];
    }
    written.push_str(&rest.replace(['\n', '\r', '\t'], " "));
    Ok(written)
}

/// A part of a document in YAML.
fn yaml(value: &str) -> Result<String, String> {
    // A second document would begin here.
    let is_mark = |line: &str| line.starts_with("---") || line.starts_with("...") || line.starts_with('%');
    if value.lines().any(is_mark) {
        return Err("the value is one document of YAML, without marks".to_owned());
    }
    // It would end a line for YAML and for nothing else: what follows would stand at the margin.
    match value.lines().any(|line| line.contains('\r')) {
        true => Err("a carriage return stands without a line feed".to_owned()),
        false => Ok(value.to_owned()),
    }
}

// === impl Tree ===

impl Tree {
    fn insert_entry(&mut self, path: &str, entry: &Entry, origin: &str) -> Result<(), String> {
        let value = match entry.value_type() {
            "text" => Value::Line(word(entry.value())),
            "json" => Value::Line(json(entry.value())?),
            "yaml" => Value::Block(yaml(entry.value())?),
            "properties" => return self.insert_properties(path, entry.value(), origin),
            other => return Err(refused(other)),
        };
        self.insert(path, Leaf { origin: origin.to_owned(), value })
    }

    fn insert(&mut self, path: &str, leaf: Leaf) -> Result<(), String> {
        let parts: Vec<_> = path.split('.').collect();
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_:-".contains(&byte);
        if parts.len() > MAX_PARTS || parts.iter().any(|part| part.is_empty() || !part.bytes().all(is_word)) {
            return Err(format!("`{}` is no path of a setting", path.escape_debug()));
        }
        let twice = |other: &str| format!("`{}` is set by {other} as well", path.escape_debug());
        let (last, above) = parts.split_last().unwrap_or((&"", &[])); // a split has one part at least
        let mut tree = self;
        for part in above {
            let node = tree.0.entry((*part).to_owned()).or_insert_with(|| Node::Map(Tree::default()));
            match node {
                Node::Map(below) => tree = below,
                Node::Leaf(other) => return Err(twice(&other.origin)),
            }
        }
        match tree.0.entry((*last).to_owned()) {
            btree_map::Entry::Vacant(place) => drop(place.insert(Node::Leaf(leaf))),
            btree_map::Entry::Occupied(other) => return Err(twice(other.get().origin())),
        }
        Ok(())
    }

    /// Each line `key=value` or `key: value`; lines that begin with `#` or `!` are comments.
    fn insert_properties(&mut self, path: &str, value: &str, origin: &str) -> Result<(), String> {
        for (n, line) in value.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let Some((key, value)) = line.split_once(['=', ':']) else {
                return Err(format!("line {} is no property: write `key=value`", n + 1));
            };
            let key = key.trim();
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            let value = Value::Line(word(value));
            self.insert(&path, Leaf { origin: origin.to_owned(), value })?;
        }
        Ok(())
    }

    fn write(&self, place: &str) -> Result<String, String> {
        let mut writer = Writer { place, content: String::new() };
        writer.tree(self, 0)?;
        Ok(writer.content)
    }
}

// === impl Node ===

impl Node {
    /// The origin of the first leaf.
    fn origin(&self) -> &str {
        match self {
            Node::Leaf(leaf) => &leaf.origin,
            Node::Map(tree) => tree.0.values().next().map_or("", Node::origin),
        }
    }
}

// === impl Writer ===

impl Writer<'_> {
    /// As deep as the longest path.
    fn tree(&mut self, tree: &Tree, indent: usize) -> Result<(), String> {
        for (part, node) in &tree.0 {
            // Only letters, digits and marks that mean nothing within quotes.
            let is_plain = part.starts_with(|c: char| c.is_ascii_alphabetic())
                && !part.contains(':')
                && !part.eq_ignore_ascii_case("null");
            let key = if is_plain { format!("{part}:") } else { format!("\"{part}\":") };
            match node {
                Node::Map(below) => {
                    self.line(indent, &key)?;
                    self.tree(below, indent + 1)?;
                }
                Node::Leaf(Leaf { origin, value: Value::Line(value) }) => {
                    self.line(indent, &format!("{key} {value} # {origin}"))?;
                }
                Node::Leaf(Leaf { origin, value: Value::Block(block) }) => {
                    self.line(indent, &format!("{key} # {origin}"))?;
                    for line in block.lines() {
                        self.line(indent + 1, line)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn line(&mut self, indent: usize, line: &str) -> Result<(), String> {
        if self.content.len() + 2 * indent + line.len() >= MAX_TEXT {
            let place = self.place;
            return Err(format!(
                "{place}: all settings have more than the {MAX_TEXT} bytes that are allowed"
            ));
        }
        self.content.extend(std::iter::repeat_n("  ", indent));
        self.content.push_str(line);
        self.content.push('\n');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries as `key|value_type|value`, below the prefix `chassis.`.
    fn write(all: &[(&str, &str, &str)]) -> Result<String, String> {
        let entry = |(key, value_type, value): &(&str, &str, &str)| Entry {
            key: format!("chassis.{key}"),
            value: Some((*value).to_owned()),
            value_type: Some((*value_type).to_owned()),
            update_revision: 7,
            ..Entry::default()
        };
        let entries: Vec<_> = all.iter().map(entry).collect();
        let all = entries.iter().enumerate();
        settings("place", all.map(|(n, entry)| (&entry.key["chassis.".len()..], entry, format!("e{n}"))))
    }

    #[track_caller]
    fn refused(all: &[(&str, &str, &str)], why: &str) {
        let error = write(all).expect_err("it is refused");
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn paths_are_settings() {
        let written = write(&[
            ("outbound.defaults.timeout", "text", "5s"),
            ("outbound.defaults.retry", "json", "{\n\t\"max\": 2 }"),
            ("outbound.services", "yaml", "stock:\n  timeout: 1s\r\nbilling: {}\n"),
            ("inbound", "properties", "# limits\ntimeout = 7s\nrate.limit: 9\n"),
            ("shop.8080.a:b", "", "x"),
        ]);
        let expected = "inbound:\n  rate:\n    limit: 9 # e3\n  timeout: 7s # e3\noutbound:\n  defaults:\n    \
                        retry: {  \"max\": 2 } # e1\n    timeout: 5s # e0\n  services: # e2\n    stock:\n      \
                        timeout: 1s\n    billing: {}\nshop:\n  \"8080\":\n    \"a:b\": x # e4\n";
        assert_eq!(written.as_deref(), Ok(expected));
    }

    #[test]
    fn a_word_stays_on_its_line() {
        for plain in [
            "5s",
            "-1",
            "50%",
            "off",
            "",
            "a b",
            "http://stock:80/x?y#z",
            "::1",
            "[a, 'b', { c: d#e }]",
            "\"a\\\"b\"",
            "'it''s'",
            "{ a: [1] }",
            "[]",
            "[\"a\", 'b' , { \"c\":\"d\", e: 'f', g: h#i }]",
            "[http://a/b#c]",
        ] {
            assert_eq!(word(&format!(" {plain}\n")), plain);
        }
        for quoted in [
            "a: b",
            "a #b",
            "a:",
            "- a",
            "*",
            "&a",
            "!x",
            "|",
            ">",
            "@a",
            "`a`",
            "%a",
            "#a",
            "a\nb: c",
            "[::]:80",
            "[1",
            "{ a: [1 }",
            "\"a",
            "'a",
            "[1] # x",
            "[1 # x]",
            "]",
            "\"a\\\"",
            "[a,\nb]",
            "a\u{2028}b",
            "[a\"b, \"c]",
            "[it's]",
            "[a 'b, 'c]",
            "{a:\"b, \"c}",
            "[\"a\" \"b\"]",
            "[\"a\" b: \"c\"]",
            "[a,#b]",
            "? a",
            ",",
            "\u{feff}a",
        ] {
            let written = word(quoted);
            assert_eq!(serde_json::from_str::<String>(&written).ok().as_deref(), Some(quoted), "{written}");
        }
    }

    #[test]
    fn json_has_the_same_meaning_in_yaml() {
        let value = "{\"a\\ud83d\\ude00\":\n[\"\\ud83d\\ude00\\/\\u2028\", 1.50, 123456789012345678901234567890, \"\\\\\\\"[\"],\t\"a\": 1}";
        let expected =
            "{\"a😀\": [\"😀/\\u2028\", 1.50, 123456789012345678901234567890, \"\\\\\\\"[\"], \"a\": 1}";
        assert_eq!(json(value).as_deref(), Ok(expected));
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
        assert_eq!(read(value), read(expected));
        for plain in ["1", "null", "\"\"", "[]", " {} "] {
            assert_eq!(json(plain).as_deref(), Ok(plain.trim()));
        }
        let half = json("[\"\\ud83d\"]").expect_err("half a character is none");
        assert!(half.starts_with("its value is no JSON: "), "{half}");
    }

    #[test]
    fn entries_that_cannot_stand_together_are_refused() {
        refused(&[("a", "text", "1"), ("a.b", "text", "2")], "e1@7: `a.b` is set by e0 as well");
        refused(&[("a.b", "text", "1"), ("a", "yaml", "c: 2")], "e1@7: `a` is set by e0 as well");
        refused(&[("a", "text", "1"), ("a", "text", "1")], "e1@7: `a` is set by e0 as well");
        refused(&[("a", "properties", "b=1\nb=2")], "e0@7: `a.b` is set by e0 as well");
        for path in ["", "a.", ".a", "a..b", "a b", "ä", "a\n", &"a.".repeat(100)] {
            refused(&[(path, "text", "1")], "is no path of a setting");
        }
        refused(&[("a", "ini", "b=1")], "e0@7: settings can't be of the value_type `ini`");
        refused(&[("a", "json", "{")], "e0@7: its value is no JSON");
        refused(&[("a", "json", "1 2")], "e0@7: its value is no JSON");
        refused(&[("a", "yaml", "b: 1\n---\nc: 2")], "e0@7: the value is one document");
        refused(&[("a", "yaml", "b: 1\rc: 2")], "e0@7: a carriage return");
        refused(&[("a", "properties", "b")], "e0@7: line 1 is no property");
        let large = "\n".repeat(200_000);
        let deep = "a.".repeat(63);
        refused(&[(&format!("{deep}a"), "yaml", &large)], "place: all settings have more than");
    }

    #[test]
    fn the_type_says_the_format_of_a_document() {
        let entry = |key: &str, value_type: &str| Entry {
            key: key.to_owned(),
            value: Some("a.b = 1".to_owned()),
            value_type: Some(value_type.to_owned()),
            ..Entry::default()
        };
        let format =
            |key: &str, value_type: &str| document(&entry(key, value_type), "e").map(|(_, format)| format);
        assert_eq!(format("orders", "json"), Ok(Format::Json));
        assert_eq!(format("orders.json", "yaml"), Ok(Format::Yaml));
        assert_eq!(format("orders.toml", "text"), Ok(Format::Toml));
        assert_eq!(format("orders.toml", ""), Ok(Format::Toml));
        assert_eq!(format("orders", "text"), Ok(Format::Yaml));
        assert!(format("orders", "xml").is_err_and(|why| why.starts_with("e@0: ")));
        let properties = document(&entry("orders", "properties"), "e");
        assert_eq!(properties, Ok(("a:\n  b: 1 # e\n".to_owned(), Format::Yaml)));
    }
}
