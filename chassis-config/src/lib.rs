//! Settings documents, from their texts to the version in force. The caller's type defines the document.
//!
//! [`parse`] reads YAML, TOML and JSON into a [`tree`] that keeps the position of every value; [`merge`]
//! overlays the layers; [`read`] deserializes the result and reports [`Problem`]s that quote the line;
//! [`read_part`] does so for one table whose type is only known at run time. A [`Loader`] does all of it, again
//! whenever a source changes, and yields whole [`Version`]s or none.
mod code;
mod de;
mod env;
mod finding;
mod interpolate;
mod loader;
mod merge;
mod overrides;
mod parse;
mod problem;
mod provenance;
mod rename;
mod secret;
mod source;
pub mod tree;
mod version;

pub use code::Code;
pub use de::{read, read_part};
pub use env::Environment;
pub use finding::Finding;
pub use interpolate::Decrypt;
pub use loader::{
    Avoided, Candidate, Change, Control, ControlError, Gate, Held, Loader, Outcome, Record, Refusal,
    SourceOptions, Trial, Unreadable,
};
pub use merge::merge;
pub use overrides::Overrides;
pub use parse::{MAX_BYTES, MAX_DEPTH, MAX_NODES, parse};
pub use problem::{Problem, Severity};
pub use provenance::Provenance;
pub use rename::{Renamed, rewritten};
pub use source::{DirectorySource, FileSource, TextSource, is_blank};
pub use version::{Moved, Version, changes};
