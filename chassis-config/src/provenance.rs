//! The origin of a setting.
use std::fmt;

use crate::tree::{Layer, Node, Span};

/// The origin of the value of a setting.
///
/// ```
/// use chassis_config::{Provenance, parse, tree::{Layer, Path}};
/// use chassis_core::config::{Format, Text};
///
/// let text = Text { content: "a:\n  b: 1".into(), format: Format::Yaml, origin: "c.yaml".into(), revision: None };
/// let tree = parse(&text, Layer::File).unwrap();
/// let of = Provenance::of(tree.at(&Path::of(["a", "b"])).unwrap());
/// assert_eq!(of.to_string(), "c.yaml:2:6");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provenance {
    /// No source sets it.
    Default,
    /// The program, through its builder.
    Program,
    /// A file.
    File {
        /// Its path.
        file: String,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
    },
    /// A config center.
    Center {
        /// Its key, as the center calls it.
        key: String,
        /// The center's version of the text, if it has versions.
        revision: Option<String>,
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
    },
    /// An environment variable of this name.
    Environment(String),
    /// A single setting, of `--set` or of the builder.
    Set,
}

// === impl Provenance ===

impl Provenance {
    /// The origin of a value of a merged tree.
    pub fn of(node: &Node) -> Self {
        let Span { origin, line, column, .. } = &node.at;
        let (line, column, name) = (*line, *column, origin.name.clone());
        match origin.layer {
            Layer::Defaults => Provenance::Default,
            Layer::Builder => Provenance::Program,
            Layer::File => Provenance::File { file: name, line, column },
            Layer::Center => {
                Provenance::Center { key: name, revision: origin.revision.clone(), line, column }
            }
            Layer::Environment => {
                Provenance::Environment(origin.content.split('=').next().unwrap_or_default().to_owned())
            }
            Layer::Set => Provenance::Set,
        }
    }
}

impl fmt::Display for Provenance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Provenance::Default => f.write_str("default"),
            Provenance::Program => f.write_str("builder"),
            Provenance::File { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Provenance::Center { key, revision, line, column } => match revision {
                Some(revision) if !key.ends_with(&format!("@{revision}")) => {
                    write!(f, "{key}@{revision}:{line}:{column}")
                }
                _ => write!(f, "{key}:{line}:{column}"),
            },
            Provenance::Environment(name) => write!(f, "${name}"),
            Provenance::Set => f.write_str("--set"),
        }
    }
}
