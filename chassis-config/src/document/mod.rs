//! The document people write: `chassis.yaml`, and the same in TOML and JSON.
mod kind;
mod listen;
mod service;

pub use kind::{Kinds, read_kind};
pub use listen::{Address, Listen};
pub use service::{ServiceSection, ShutdownSection};
