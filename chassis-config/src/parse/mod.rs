//! Parses YAML, JSON and TOML into trees, with the position of every key and value.
//!
//! Bounded against hostile or broken texts: [`MAX_BYTES`], [`MAX_DEPTH`], and [`MAX_NODES`] values after
//! aliases are expanded.
mod json;
mod toml;
mod yaml;

use std::sync::Arc;

use chassis_core::config::{Format, Text};

use crate::{
    code::Code,
    problem::Problem,
    tree::{Entry, Layer, Node, Origin, Path, Span, Value},
};

/// The longest text that is read: 4 MiB, the default limit of a gRPC message.
pub const MAX_BYTES: usize = 4 << 20;
/// The deepest nesting; no setting needs more than ten levels.
pub const MAX_DEPTH: usize = 64;
/// The most values a document may hold, after aliases are expanded.
pub const MAX_NODES: usize = 200_000;

/// Reads a text of a layer.
pub fn parse(text: &Text, layer: Layer) -> Result<Node, Box<Problem>> {
    parse_as(text, layer, layer.has_references())
}

/// The same, with references to the environment and to files or without.
pub(crate) fn parse_as(text: &Text, layer: Layer, has_references: bool) -> Result<Node, Box<Problem>> {
    let origin = Origin::of_text(text, layer, has_references);
    if text.content.len() > MAX_BYTES {
        let size = text.content.len();
        return Err(too_large(
            Span::whole(origin),
            format!("{size} bytes are too many; the limit is {MAX_BYTES}"),
        ));
    }
    match text.format {
        Format::Yaml => yaml::parse(&origin),
        Format::Json => json::parse(&origin),
        Format::Toml => toml::parse(&origin),
    }
}

/// Reads one value of an environment variable: `[…]`, `{…}` and quotes are YAML, anything else is a plain word.
/// `prefix` is the number of characters before the value in its origin's text.
pub(crate) fn value(origin: &Arc<Origin>, text: &str, prefix: usize) -> Node {
    let whole =
        Span { origin: origin.clone(), line: 1, column: prefix + 1, length: text.chars().count().max(1) };
    let yaml = text.starts_with(['[', '{', '"', '\'']).then(|| yaml::parse_inline(origin, text, prefix).ok());
    yaml.flatten().unwrap_or_else(|| match text {
        "" => Node::new(Value::Null, whole),
        text => Node::new(Value::Plain(text.to_string()), whole),
    })
}

/// A result, or the first problem.
type Read<T> = Result<T, Box<Problem>>;

fn plain(at: Span, message: impl Into<String>) -> Box<Problem> {
    Box::new(Problem::error(Path::default(), Some(at), message).coded(Code::Syntax))
}

/// A text that is too long, too deep, or has too many values.
fn too_large(at: Span, message: impl Into<String>) -> Box<Problem> {
    Box::new(Problem::error(Path::default(), Some(at), message).coded(Code::TooLarge))
}

/// Adds an entry unless its key is a duplicate or invalid.
fn push(entries: &mut Vec<Entry>, seen: &mut Keys, entry: Entry) -> Read<()> {
    if entry.key.chars().any(char::is_control) {
        return Err(plain(entry.key_at, "a key holds a control character"));
    }
    if let Some(first) = seen.0.insert(entry.key.clone(), entry.key_at.line) {
        let at = match first == entry.key_at.line {
            true => "on this line".to_string(),
            false => format!("on line {first}"),
        };
        let message = format!("`{}` is here twice; the first is {at}", entry.key);
        return Err(plain(entry.key_at, message));
    }
    entries.push(entry);
    Ok(())
}

/// The keys of one map so far, with their lines.
#[derive(Default)]
struct Keys(std::collections::HashMap<String, usize>);

#[cfg(test)]
mod tests {
    use super::*;

    fn read(format: Format, content: &str) -> Read<Node> {
        let text = Text { content: content.into(), format, origin: "c".into(), revision: None };
        parse(&text, Layer::File)
    }

    #[track_caller]
    fn refused(format: Format, content: &str, expected: &str) {
        let problem = read(format, content).expect_err("the text is broken");
        assert_eq!(problem.without_code(), expected, "{content:?}");
    }

    #[test]
    fn all_languages_say_the_same() {
        let expected = r#"{ a: { b: [1, two, 3.50], c: "x y" }, d: true }"#;
        for (format, text) in [
            (Format::Yaml, "a:\n  b: [1, two, 3.50]\n  c: 'x y'\nd: true\n"),
            (Format::Toml, "d = true\n[a]\nb = [1, 'two', 3.50]\nc = \"x y\"\n"),
            (Format::Json, r#"{"a": {"b": [1, "two", 3.50], "c": "x y"}, "d": true}"#),
        ] {
            let node = read(format, text).expect("it is sound");
            assert_eq!(node.value, read(Format::Yaml, expected).expect("it is sound").value, "{format:?}");
        }
    }

    #[test]
    fn all_languages_say_where() {
        for (format, text, expected) in [
            (Format::Yaml, "a:\n  b: [1, two]\n", "a.b[0] c:2:7+1, a.b[1] c:2:10+3"),
            (Format::Toml, "[a]\n\"b\" = [1,\n 'two']", "a.b[0] c:2:8+1, a.b[1] c:3:2+5"),
            (Format::Json, "{\"a\":\n\t{\"b\": [1, \"two\"]}}", "a.b[0] c:2:9+1, a.b[1] c:2:12+5"),
        ] {
            let node = read(format, text).expect("it is sound");
            let leaf = |(path, leaf): (Path, &Node)| format!("{path} {}+{}", leaf.at, leaf.at.length);
            assert_eq!(node.leaves().into_iter().map(leaf).collect::<Vec<_>>().join(", "), expected);
        }
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        let node = read(Format::Yaml, "x-base: &b { a: 1, b: 2 }\nc: { <<: *b, b: 3 }\nd: *b\n")
            .expect("it is sound");
        assert_eq!(node.entry("c").expect("it is there").node.value.to_string(), "{ b: 3, a: 1 }");
        assert_eq!(node.entry("d").expect("it is there").node.value.to_string(), "{ a: 1, b: 2 }");
    }

    #[test]
    fn broken_yaml_is_told_in_plain_words() {
        refused(Format::Yaml, "a:\n\tb: 1\n", "c:2:1: a tab can't indent YAML; use spaces");
        refused(
            Format::Yaml,
            "a:\n  b: 1\n c: 2\n",
            "c:3:2: this line is indented unlike the ones it belongs with",
        );
        refused(
            Format::Yaml,
            "a: 1\n  b: 2\n",
            "c:2:4: this line is indented unlike the ones it belongs with",
        );
        refused(
            Format::Yaml,
            "a:\n- 1\n - 2\nb: 1\n  c: 3",
            "c:5:4: this line is indented unlike the ones it belongs with",
        );
        refused(Format::Yaml, "a: 1\nb: 2\na: 3\n", "c:3:1: `a` is here twice; the first is on line 1");
        refused(Format::Yaml, "a: { b: 1, b: 2 }", "c:1:12: `b` is here twice; the first is on this line");
        refused(
            Format::Yaml,
            "a: 1\n---\nb: 2\n",
            "c:2:1: a second document starts here; one is all there is",
        );
        refused(Format::Yaml, "a: !env HOME\n", "c:1:4: tags such as `!env` have no meaning here");
        refused(Format::Yaml, "? [a]\n: b\n", "c:1:3: a key is a word");
        refused(Format::Yaml, "[a]", "c:1:1: the document is a map of `key: value`");
        refused(
            Format::Yaml,
            "a=1",
            "c:1:1: the document is a map of `key: value`; a colon wants a space after it",
        );
        refused(Format::Yaml, "a: *b", "c:1:4: no anchor of this name stands above");
        refused(Format::Yaml, "a: { b: 1", "c:1:4: this bracket is never closed");
        refused(Format::Yaml, "a: [1,\nb: 2\nc: 3", "c:1:4: this bracket is never closed");
        refused(Format::Yaml, "a: { b: 1 c: 2 }", "c:1:12: a comma is missing before this, or a bracket");
        refused(Format::Yaml, "a: 'b\nc: d", "c:1:4: this quote is never closed");
    }

    #[test]
    fn broken_json_and_toml_are_told_with_their_place() {
        refused(Format::Json, "{\"a\": 1,}", "c:1:9: trailing comma");
        refused(Format::Json, "{\n  a: 1}", "c:2:3: key must be a string");
        refused(Format::Json, "{\"a\": 1,\n \"a\": 2}", "c:2:2: `a` is here twice; the first is on line 1");
        refused(Format::Json, "[1]", "c:1:1: the document is a map, not `[1]`");
        refused(Format::Toml, "a = 1\na = 2\n", "c:2:1: `a` is here twice");
        refused(Format::Toml, "a = 300ms\n", "c:1:5: words and units stand in quotes");
    }

    #[test]
    fn hostile_texts_are_bounded() {
        let bomb: String = (1..20)
            .map(|i| format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(", ")))
            .collect();
        let problem = read(Format::Yaml, &format!("a0: &a0 1\n{bomb}")).expect_err("it is a bomb");
        assert_eq!(problem.message, format!("more than {MAX_NODES} values, aliases written out"));
        let towers: String = (1..20).map(|i| format!("a{i}: &a{i} [[[[[*a{}]]]]]\n", i - 1)).collect();
        for (format, text) in [
            (Format::Yaml, format!("a0: &a0 1\n{towers}")),
            (Format::Yaml, format!("a: {}{}", "[".repeat(100), "]".repeat(100))),
            (Format::Yaml, format!("a: {}{}", "[".repeat(1_000), "]".repeat(1_000))),
            (Format::Json, format!("{{\"a\": {}{}}}", "[".repeat(100), "]".repeat(100))),
            (Format::Toml, format!("a = {}{}", "[".repeat(70), "]".repeat(70))),
        ] {
            let problem = read(format, &text).expect_err("it is too deep");
            assert_eq!(problem.message, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        for format in [Format::Yaml, Format::Json, Format::Toml] {
            let deep = read(format, &"[".repeat(100_000)).expect_err("it is broken");
            assert!(deep.at.is_some(), "{deep}");
            assert!(read(format, &" ".repeat(MAX_BYTES + 1)).is_err());
        }
    }

    /// Cuts, doubles and swaps characters of a valid document, a few thousand times.
    #[test]
    fn no_text_makes_it_panic() {
        let texts = [
            (
                Format::Yaml,
                "a: &x { b: [1, 'two'], \"c\": ~ }\nd:\n  - *x\n  - |\n    e\nf: { <<: *x, g: 3% } # h\n",
            ),
            (
                Format::Json,
                "{\"a\": {\"b\": [1, \"t\\u00e9wo\", -2.5e3], \"c\": null},\n \"d\": [[], {}, true]}",
            ),
            (
                Format::Toml,
                "a = { b = [1, 'two'], \"c\" = 2.5 }\n[d.e]\nf = 1979-05-27\n[[g]]\nh = \"\"\"\ni\"\"\"\n",
            ),
        ];
        let mut state = 42_u64;
        let mut below = move |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n.max(1)
        };
        let extra: Vec<char> = "{}[]:,-#&*!|>'\"%@`\t\n\r \u{0}\u{feff}é=.\\?~".chars().collect();
        for (format, text) in texts {
            for _ in 0..3_000 {
                let mut chars: Vec<char> = text.chars().collect();
                for _ in 0..=below(4).min(chars.len() - 1) {
                    let (at, other) = (below(chars.len()), below(chars.len()));
                    match below(4) {
                        0 => drop(chars.remove(at)),
                        1 => chars.insert(at, extra[below(extra.len())]),
                        2 => chars.swap(at, other),
                        _ => chars.truncate(at.max(8)),
                    }
                }
                let text: String = chars.into_iter().collect();
                match read(format, &text) {
                    Ok(node) => {
                        node.leaves().iter().for_each(|(_, leaf)| assert!(leaf.at.line > 0, "{text}"))
                    }
                    Err(problem) => assert!(problem.to_string().contains("c:"), "{text}"),
                }
            }
        }
    }
}
