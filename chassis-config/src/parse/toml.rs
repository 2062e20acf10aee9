//! TOML with positions, which the parser of the `toml` crate keeps.
use std::{ops::Range, sync::Arc};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{Keys, MAX_DEPTH, Read, plain, push, too_large};
use crate::tree::{Entry, Node, Origin, Span, Value};

pub(super) fn parse(origin: &Arc<Origin>) -> Read<Node> {
    let table = DeTable::parse(&origin.content).map_err(|e| {
        let span = e.span().unwrap_or(0..1);
        let message = match e.message() {
            "duplicate key" => {
                format!("`{}` is here twice", origin.content.get(span.clone()).unwrap_or("a key"))
            }
            said if said.starts_with("string values must be quoted") => {
                "words and units stand in quotes".into()
            }
            said => said.to_string(),
        };
        plain(at(origin, span), message)
    })?;
    map(origin, table.span(), table.get_ref(), 1)
}

fn node(origin: &Arc<Origin>, value: &Spanned<DeValue<'_>>, depth: usize) -> Read<Node> {
    let span = value.span();
    let read = match value.get_ref() {
        DeValue::String(text) => Value::Quoted(text.to_string()),
        DeValue::Integer(number) => Value::Plain(number.to_string()),
        DeValue::Float(number) => Value::Plain(number.as_str().to_string()),
        DeValue::Boolean(word) => Value::Plain(word.to_string()),
        DeValue::Datetime(time) => Value::Quoted(time.to_string()),
        DeValue::Array(items) => {
            deeper(origin, &span, depth)?;
            let start = span.start..span.start + 1;
            let items = items.iter().map(|item| node(origin, item, depth + 1)).collect::<Result<_, _>>()?;
            return Ok(Node::new(Value::List(items), at(origin, start)));
        }
        DeValue::Table(table) => return map(origin, span, table, depth + 1),
    };
    Ok(Node::new(read, at(origin, span)))
}

fn map(origin: &Arc<Origin>, span: Range<usize>, table: &DeTable<'_>, depth: usize) -> Read<Node> {
    deeper(origin, &span, depth)?;
    let mut sorted: Vec<_> = table.iter().collect();
    sorted.sort_by_key(|(key, _)| key.span().start);
    let (mut entries, mut seen) = (Vec::new(), Keys::default());
    for (key, value) in sorted {
        let entry = Entry {
            key: key.get_ref().to_string(),
            key_at: at(origin, key.span()),
            node: node(origin, value, depth)?,
        };
        push(&mut entries, &mut seen, entry)?;
    }
    let start = span.start..span.start + 1;
    Ok(Node::new(Value::Map(entries), at(origin, start)))
}

fn deeper(origin: &Arc<Origin>, span: &Range<usize>, depth: usize) -> Read<()> {
    match depth > MAX_DEPTH {
        true => Err(too_large(at(origin, span.clone()), format!("nested deeper than {MAX_DEPTH} levels"))),
        false => Ok(()),
    }
}

fn at(origin: &Arc<Origin>, span: Range<usize>) -> Span {
    Span::of_bytes(origin, span.start, span.end)
}
