//! JSON with positions. `serde_json` decides what is valid JSON; the walk that follows only records positions.
use std::sync::Arc;

use super::{Keys, MAX_DEPTH, Read, plain, push, too_large};
use crate::tree::{Entry, Node, Origin, Span, Value};

pub(super) fn parse(origin: &Arc<Origin>) -> Read<Node> {
    let text = origin.content.strip_prefix('\u{feff}').unwrap_or(&origin.content);
    let bom = origin.content.len() - text.len();
    if let Err(e) = serde_json::from_str::<serde_json::Value>(text) {
        let said = e.to_string();
        let message = said.split(" at line ").next().unwrap_or("this is no JSON").to_string();
        let at = Span { origin: origin.clone(), line: e.line().max(1), column: e.column().max(1), length: 1 };
        return Err(plain(at, message));
    }
    let node = Walk { origin, text: &origin.content, at: bom, depth: 0 }.value()?;
    match node.value {
        Value::Map(_) => Ok(node),
        other => Err(plain(node.at, format!("the document is a map, not `{other}`"))),
    }
}

/// Walks text that is known to be JSON.
struct Walk<'a> {
    origin: &'a Arc<Origin>,
    text: &'a str,
    at: usize,
    depth: usize,
}

impl Walk<'_> {
    fn value(&mut self) -> Read<Node> {
        let start = self.skip();
        let value = match self.text.as_bytes().get(start) {
            Some(b'{') => self.nested(Self::map)?,
            Some(b'[') => self.nested(Self::list)?,
            Some(b'"') => Value::Quoted(self.string()),
            _ => {
                let rest = &self.text[start..];
                let end =
                    rest.find(|c: char| c.is_ascii_whitespace() || ",]}".contains(c)).unwrap_or(rest.len());
                self.at = start + end;
                match &rest[..end] {
                    "null" => Value::Null,
                    word => Value::Plain(word.to_string()),
                }
            }
        };
        let end = if matches!(value, Value::Map(_) | Value::List(_)) { start + 1 } else { self.at };
        Ok(Node::new(value, Span::of_bytes(self.origin, start, end)))
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Read<Value>) -> Read<Value> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            let at = Span::of_bytes(self.origin, self.at, self.at + 1);
            return Err(too_large(at, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        self.at += 1; // the bracket
        let value = read(self)?;
        self.at += 1;
        self.depth -= 1;
        Ok(value)
    }

    fn map(&mut self) -> Read<Value> {
        let (mut entries, mut seen) = (Vec::new(), Keys::default());
        while self.more() {
            let start = self.at;
            let key = self.string();
            let key_at = Span::of_bytes(self.origin, start, self.at);
            self.skip();
            self.at += 1; // the colon
            let node = self.value()?;
            push(&mut entries, &mut seen, Entry { key, key_at, node })?;
        }
        Ok(Value::Map(entries))
    }

    fn list(&mut self) -> Read<Value> {
        let mut items = Vec::new();
        while self.more() {
            items.push(self.value()?);
        }
        Ok(Value::List(items))
    }

    /// Moves to the next item; false at the closing bracket.
    fn more(&mut self) -> bool {
        self.skip();
        if self.text.as_bytes().get(self.at) == Some(&b',') {
            self.at += 1;
            self.skip();
        }
        !matches!(self.text.as_bytes().get(self.at), None | Some(b'}' | b']'))
    }

    fn string(&mut self) -> String {
        let (start, bytes) = (self.at, self.text.as_bytes());
        self.at += 1;
        while !matches!(bytes.get(self.at), None | Some(b'"')) {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at = (self.at + 1).min(bytes.len());
        serde_json::from_str(&self.text[start..self.at]).unwrap_or_default()
    }

    fn skip(&mut self) -> usize {
        while matches!(self.text.as_bytes().get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
        self.at
    }
}
