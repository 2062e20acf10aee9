//! Settings as YAML, each with a comment that says where it is from.
use chassis_config::{
    Provenance,
    tree::{Node, Path, Segment, Value},
};

/// The column of the comments, if the values leave room.
const COLUMN: usize = 48;

/// The settings of a tree. Secrets and what references stand for are not shown.
pub(super) fn commented(tree: &Node) -> String {
    let mut text = String::new();
    write(tree, &mut Path::default(), &mut text);
    match text.is_empty() {
        true => "{} # no source sets anything: all settings have their defaults\n".to_owned(),
        false => text,
    }
}

fn write(node: &Node, path: &mut Path, text: &mut String) {
    let depth = path.0.len();
    for entry in node.entries() {
        path.0.push(Segment::Key(entry.key.clone()));
        let key = format!("{}{}:", "  ".repeat(depth), word(&entry.key));
        if entry.node.entries().is_empty() {
            let value = match (&entry.node.value, path.is_secret()) {
                (Value::Null, _) => String::new(),
                (_, true) => "\"***\"".to_owned(),
                (value @ (Value::Plain(_) | Value::Quoted(_)), false) => match (&entry.node.written, value) {
                    (Some(written), _) => format!("{written:?}"),
                    (None, Value::Quoted(text)) => format!("{text:?}"),
                    (None, value) => value.to_string(),
                },
                (value, false) => value.to_string(),
            };
            let line = format!("{key} {value}");
            let line = format!("{:COLUMN$} # {}\n", line.trim_end(), Provenance::of(&entry.node));
            text.push_str(&line);
        } else {
            text.push_str(&key);
            text.push('\n');
            write(&entry.node, path, text);
        }
        path.0.pop();
    }
}

/// A key, in quotes where YAML needs them.
fn word(key: &str) -> String {
    let is_plain = !key.is_empty()
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    if is_plain && !key.starts_with('-') { key.to_owned() } else { format!("{key:?}") }
}

#[cfg(test)]
mod tests {
    use chassis_config::{parse, tree::Layer};
    use chassis_core::config::{Format, Text};

    use super::*;

    fn tree(content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        parse(&text, Layer::File).expect("it is sound")
    }

    #[test]
    fn what_is_printed_means_the_same() {
        let content = "outbound: { defaults: { timeout: 2s, retry: off }, services: { 'a b': {} } }\n\
                       faults: [ { name: 'x: y', share: 5% } ]\nempty:\nsaid: '5'\n";
        let printed = commented(&tree(content));
        assert_eq!(tree(&printed).value, tree(content).value, "{printed}");
        let first = format!("    {:44} # c:1:34", "timeout: 2s");
        assert_eq!(printed.lines().nth(2), Some(&*first), "{printed}");
        assert!(commented(&tree("a: { token: hunter2 }")).contains("token: \"***\""));
        assert!(commented(&tree("")).starts_with("{} #"));
    }
}
