//! Places that settings come from.
mod directory;
pub(crate) mod events;
mod file;
mod text;

pub use directory::DirectorySource;
pub(crate) use directory::DirectoryWatcher;
pub use file::{FileSource, is_blank};
pub use text::TextSource;
