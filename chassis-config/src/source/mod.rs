//! Places that settings come from.
mod file;
mod text;

pub use file::FileSource;
pub use text::TextSource;
