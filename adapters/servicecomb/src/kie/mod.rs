//! ServiceComb kie as a config center: a label set, read whole and followed by long polls.
mod follow;
mod list;
mod settings;
mod source;
mod text;

pub use self::{settings::KieSourceConfig, source::KieSource};
