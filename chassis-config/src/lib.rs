//! Documents people write, from their texts to the version in force. Which document it is, is the caller's type.
//!
//! [`parse`] reads YAML, TOML and JSON into a [`tree`] that knows where everything stands; [`merge`]
//! lays the layers over each other; [`read`] turns the result into types, and what is wrong into
//! [`Problem`]s that quote the line; [`read_part`] does so for a table whose type is known at run time only. A
//! [`Loader`] does all of it, again whenever a source changes, and hands out whole [`Version`]s or none.
mod de;
mod env;
mod finding;
mod loader;
mod merge;
mod parse;
mod problem;
mod secret;
mod source;
pub mod tree;
mod version;

pub use de::{read, read_part};
pub use env::Environment;
pub use finding::Finding;
pub use loader::{Change, Loader, Refusal, Unreadable};
pub use merge::merge;
pub use parse::{MAX_BYTES, MAX_DEPTH, MAX_NODES, parse};
pub use problem::{Problem, Severity, nearest};
pub use source::{FileSource, TextSource};
pub use version::{Moved, Version, changes};
