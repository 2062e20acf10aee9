//! YAML with positions, from the events of `saphyr-parser`.
//!
//! One document, no tags but `!!str`, only scalars as keys. Anchors, aliases and `<<` work, within bounds: an
//! alias counts with all that it expands to. Scalars stay text: the type that reads a word decides whether
//! `off` is a switch.
use std::{collections::HashMap, sync::Arc};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span as Mark, StrInput};

use super::{Keys, MAX_DEPTH, MAX_NODES, Read, plain, push, too_large};
use crate::{
    problem::Problem,
    tree::{Entry, Node, Origin, Span, Value},
};

pub(super) fn parse(origin: &Arc<Origin>) -> Read<Node> {
    let node = Reader::new(origin, &origin.content, 0).document()?;
    match node.value {
        Value::Map(_) => Ok(node),
        Value::Null => Ok(Node::new(Value::Map(Vec::new()), node.at)),
        other => {
            let help = if matches!(other, Value::Plain(_)) { "; a colon wants a space after it" } else { "" };
            let length = node.at.length;
            Err(plain(Span { length, ..node.at }, format!("the document is a map of `key: value`{help}")))
        }
    }
}

/// A value within a line of its origin, after `prefix` characters.
pub(super) fn parse_inline(origin: &Arc<Origin>, text: &str, prefix: usize) -> Read<Node> {
    Reader::new(origin, text, prefix).document()
}

struct Reader<'a> {
    origin: &'a Arc<Origin>,
    lines: Vec<&'a str>,
    prefix: usize,
    events: Parser<'a, StrInput<'a>>,
    anchors: HashMap<usize, Anchor>,
    nodes: usize,
}

/// The node behind an alias, with the number of values that it expands to.
struct Anchor {
    node: Node,
    nodes: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn new(origin: &'a Arc<Origin>, text: &'a str, prefix: usize) -> Self {
        let events = Parser::new_from_str(text);
        Reader { origin, lines: text.lines().collect(), prefix, events, anchors: HashMap::new(), nodes: 0 }
    }

    fn document(&mut self) -> Read<Node> {
        let mut document = None;
        loop {
            let (event, mark) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if document.is_some() => {
                    return Err(plain(self.at(mark), "a second document starts here; one is all there is"));
                }
                Event::DocumentStart(_) => document = Some(self.node(1)?),
                _ => {}
            }
        }
        let start = Span { origin: self.origin.clone(), line: 1, column: self.prefix + 1, length: 1 };
        Ok(document.unwrap_or(Node::new(Value::Null, start)))
    }

    fn node(&mut self, depth: usize) -> Read<Node> {
        let (event, mark) = self.next()?;
        self.read(event, mark, depth)
    }

    fn read(&mut self, event: Event<'a>, mark: Mark, depth: usize) -> Read<Node> {
        let at = self.at(mark);
        self.count(1, depth, &at)?;
        let before = self.nodes;
        let (anchor, tag, value) = match event {
            Event::Alias(anchor) => return self.alias(anchor, at, depth),
            Event::Scalar(text, style, anchor, tag) => {
                let string = tag.as_ref().is_some_and(|t| t.is_yaml_core_schema() && t.suffix == "str");
                let value = match (style, &*text) {
                    (ScalarStyle::Plain, "" | "~" | "null" | "Null" | "NULL") if !string => Value::Null,
                    (ScalarStyle::Plain, word) if !string => Value::Plain(word.to_string()),
                    (_, text) => Value::Quoted(text.to_string()),
                };
                (anchor, tag.filter(|_| !string), value)
            }
            Event::SequenceStart(anchor, tag) => (anchor, tag, self.list(depth)?),
            Event::MappingStart(anchor, tag) => (anchor, tag, self.map(depth)?),
            _ => return Err(plain(at, "a value belongs here")),
        };
        if let Some(tag) = tag {
            return Err(plain(at, format!("tags such as `{tag}` have no meaning here")));
        }
        let length = if matches!(value, Value::Map(_) | Value::List(_)) { 1 } else { at.length };
        let node = Node::new(value, Span { length, ..at });
        if anchor > 0 {
            let held = Anchor { nodes: self.nodes - before + 1, depth: height(&node), node: node.clone() };
            self.anchors.insert(anchor, held);
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Read<Value> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::List(items)),
                (event, mark) => items.push(self.read(event, mark, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Read<Value> {
        let (mut entries, mut seen, mut merged) = (Vec::new(), Keys::default(), Vec::new());
        loop {
            let (event, mark) = self.next()?;
            let key_at = self.at(mark);
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(key, ScalarStyle::Plain, 0, None) if key == "<<" => None,
                Event::Scalar(key, _, _, None) => Some(key.to_string()),
                _ => return Err(plain(key_at, "a key is a word")),
            };
            let node = self.node(depth + 1)?;
            match (key, node.value) {
                (Some(key), value) => {
                    push(&mut entries, &mut seen, Entry { key, key_at, node: Node::new(value, node.at) })?;
                }
                (None, Value::Map(more)) => merged.extend(more),
                (None, Value::List(maps)) if maps.iter().all(|m| matches!(m.value, Value::Map(_))) => {
                    merged.extend(maps.into_iter().flat_map(|m| m.entries().to_vec()));
                }
                _ => return Err(plain(key_at, "`<<` takes a map, or a list of them")),
            }
        }
        for entry in merged {
            if !seen.0.contains_key(&entry.key) {
                push(&mut entries, &mut seen, entry)?;
            }
        }
        Ok(Value::Map(entries))
    }

    fn alias(&mut self, anchor: usize, at: Span, depth: usize) -> Read<Node> {
        let Some(held) = self.anchors.get(&anchor) else {
            return Err(plain(at, "an alias can't stand within what it stands for"));
        };
        let (nodes, deepest) = (held.nodes, depth + held.depth);
        self.count(nodes, deepest, &at)?;
        Ok(self.anchors[&anchor].node.clone())
    }

    fn count(&mut self, more: usize, depth: usize, at: &Span) -> Read<()> {
        self.nodes += more;
        if depth > MAX_DEPTH {
            return Err(too_large(at.clone(), format!("nested deeper than {MAX_DEPTH} levels")));
        }
        match self.nodes > MAX_NODES {
            true => Err(too_large(at.clone(), format!("more than {MAX_NODES} values, aliases written out"))),
            false => Ok(()),
        }
    }

    fn next(&mut self) -> Read<(Event<'a>, Mark)> {
        match self.events.next_event() {
            Some(Ok(next)) => Ok(next),
            Some(Err(e)) => Err(self.broken(&e)),
            None => Ok((Event::StreamEnd, Mark::default())),
        }
    }

    fn at(&self, mark: Mark) -> Span {
        let line = self.lines.get(mark.start.line().saturating_sub(1)).copied().unwrap_or_default();
        let rest = line.chars().skip(mark.start.col());
        let rest: String = match mark.end.line() == mark.start.line() {
            true => rest.take(mark.len()).collect(),
            false => rest.collect(),
        };
        let prefix = if mark.start.line() == 1 { self.prefix } else { 0 };
        Span {
            origin: self.origin.clone(),
            line: mark.start.line(),
            column: mark.start.col() + 1 + prefix,
            length: rest.trim_end().chars().count().max(1),
        }
    }

    /// Describes a syntax error for the writer of the text.
    fn broken(&self, e: &ScanError) -> Box<Problem> {
        let at = |line: usize, column: usize| Span { origin: self.origin.clone(), line, column, length: 1 };
        let line = e.marker().line().max(1);
        // If a tab indents the last line that was read, the tab is the error, whatever the scanner reports.
        for number in [line, line.saturating_sub(1)] {
            let text = self.lines.get(number.saturating_sub(1)).copied().unwrap_or_default();
            let indent = text.chars().take_while(|c| c.is_whitespace()).position(|c| c == '\t');
            if let Some(column) = indent.filter(|_| number > 0) {
                return plain(at(number, column + 1), "a tab can't indent YAML; use spaces");
            }
        }
        let info = e.info();
        if info.contains("recursion limit") {
            let at = at(line, e.marker().col() + 1);
            return too_large(at, format!("nested deeper than {MAX_DEPTH} levels"));
        }
        if info.contains("flow ") || line > self.lines.len() {
            match self.open_bracket(line, e.marker().col()) {
                Some((opened, column)) if opened < line || line > self.lines.len() => {
                    return plain(at(opened, column), "this bracket is never closed");
                }
                Some(_) => {
                    return plain(
                        at(line, e.marker().col() + 1),
                        "a comma is missing before this, or a bracket",
                    );
                }
                None => {}
            }
        }
        let message = if info.contains("tab") {
            "a tab can't stand here; use spaces".to_string()
        } else if info.contains("unknown anchor") {
            "no anchor of this name stands above".to_string()
        } else if info.contains("quoted scalar")
            && (info.contains("indentation") || info.contains("end of stream"))
        {
            "this quote is never closed".to_string()
        } else if info.contains("indentation")
            || info.contains("block mapping, did not find expected key")
            || info.contains("block collection")
            || info.contains("mapping values are not allowed")
        {
            "this line is indented unlike the ones it belongs with".to_string()
        } else if info.contains("simple key expect") {
            "a `:` is missing after this key".to_string()
        } else {
            format!("this is no YAML: {info}")
        };
        plain(at(line, e.marker().col() + 1 + if line == 1 { self.prefix } else { 0 }), message)
    }

    /// The innermost bracket that is open before a position: its line and column, counted from 1.
    fn open_bracket(&self, line: usize, column: usize) -> Option<(usize, usize)> {
        let (mut open, mut quote) = (Vec::new(), None);
        for (number, text) in self.lines.iter().enumerate().take(line) {
            for (i, c) in text.chars().enumerate() {
                if number + 1 == line && i >= column {
                    break;
                }
                match (quote, c) {
                    (Some(q), c) if q == c => quote = None,
                    (None, '"' | '\'') => quote = Some(c),
                    (None, '#') => break,
                    (None, '[' | '{') => open.push((number + 1, i + 1)),
                    (None, ']' | '}') => drop(open.pop()),
                    _ => {}
                }
            }
        }
        open.pop()
    }
}

/// The number of levels below a node.
fn height(node: &Node) -> usize {
    match &node.value {
        Value::Map(entries) => entries.iter().map(|e| height(&e.node) + 1).max().unwrap_or(0),
        Value::List(items) => items.iter().map(|i| height(i) + 1).max().unwrap_or(0),
        _ => 0,
    }
}
