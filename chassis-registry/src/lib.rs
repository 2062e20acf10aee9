//! Registries for chassis: where services say that they are there, and others learn of it.
//!
//! Each is behind the cargo feature of its name:
//! - `memory`: `MemoryRegistry`, within one process, for tests and single-process use;
//! - `static`: `StaticRegistry`, instances named in the configuration;
//! - `file`: `FileRegistry`, a watched document of instances that something else writes;
//! - `local` (Unix): `LocalRegistry`, lease files in a per-user directory. Needs nothing installed.
//!
//! All of them only tell what their source says. Keeping the last good set, distrusting an empty one and
//! asking again after an error are the work of whoever watches.
#![cfg_attr(docsrs, feature(doc_cfg))]
#[cfg(any(feature = "memory", feature = "static"))]
mod board;
#[cfg(any(feature = "static", feature = "file"))]
mod elsewhere;
#[cfg(feature = "file")]
mod file;
#[cfg(all(feature = "local", unix))]
mod local;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "static")]
mod r#static;

#[cfg(feature = "file")]
pub use file::{FileConfig, FileRegistry};
#[cfg(all(feature = "local", unix))]
pub use local::{LocalConfig, LocalRegistry};
#[cfg(feature = "memory")]
pub use memory::{MemoryConfig, MemoryRegistry};
#[cfg(feature = "static")]
pub use r#static::{StaticConfig, StaticInstance, StaticRegistry};

/// May `instance` be put up? Beyond what every instance must have, it must say whose it is.
#[cfg(any(feature = "memory", feature = "static", feature = "file", feature = "local"))]
fn check(instance: &chassis_core::registry::Instance) -> Result<(), chassis_core::registry::RegistryError> {
    if instance.service.is_empty() {
        let message = format!("instance `{}` doesn't say which service it belongs to", instance.id);
        return Err(chassis_core::registry::RegistryError::new(message));
    }
    instance.check()
}
