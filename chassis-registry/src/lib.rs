//! Registries for chassis: services register their instances, and clients find them.
//!
//! Each is behind the cargo feature of its name:
//! - `memory`: `MemoryRegistry`, `MemoryContracts` and `MemoryQuota`, within one process, for tests and single-process use;
//! - `static`: `StaticRegistry`, instances named in the configuration;
//! - `file`: `FileRegistry`, a watched document of instances that something else writes;
//! - `local` (Unix): `LocalRegistry`, lease files in a per-user directory. Needs nothing installed.
//! - `dns`: `DnsRegistry`, the hosts or SRV records that DNS has;
//! - `composite`: `CompositeRegistry`, several registries at once, and `RegistryByService`, a registry of its own for single
//!   services.
//!
//! Each one reports what its source says, and no more. Core's cluster keeps the last good set, distrusts an empty one
//! and asks again after an error.
#![cfg_attr(docsrs, feature(doc_cfg))]
/// The JSON Schema of a kind's settings.
#[cfg(feature = "schema")]
#[allow(unused_macros, reason = "a build may be without kinds")]
macro_rules! schema_of {
    ($config:ty) => {
        chassis_core::schema::of::<$config>()
    };
}
#[cfg(all(not(feature = "schema"), any(feature = "file", feature = "local", feature = "memory")))]
macro_rules! schema_of {
    ($config:ty) => {
        Default::default()
    };
}

#[cfg(feature = "composite")]
mod composite;
#[cfg(feature = "memory")]
mod contracts;
#[cfg(feature = "dns")]
mod dns;
#[cfg(feature = "file")]
mod file;
#[cfg(all(feature = "local", unix))]
mod local;
#[cfg(feature = "memory")]
mod memory;
#[cfg(any(feature = "static", feature = "file", feature = "dns", feature = "composite"))]
mod noop;
#[cfg(feature = "memory")]
mod quota;
#[cfg(feature = "static")]
mod r#static;
#[cfg(any(feature = "memory", feature = "static"))]
mod store;

#[cfg(feature = "composite")]
pub use composite::{CompositeRegistry, MemberMode, RegistryByService};
#[cfg(feature = "memory")]
pub use contracts::MemoryContracts;
#[cfg(feature = "dns")]
pub use dns::{DnsConfig, DnsRegistry, DnsService, Family};
#[cfg(feature = "file")]
pub use file::{FileConfig, FileRegistry};
#[cfg(all(feature = "local", unix))]
pub use local::{LocalConfig, LocalRegistry};
#[cfg(feature = "memory")]
pub use memory::{MemoryConfig, MemoryRegistry};
#[cfg(feature = "memory")]
pub use quota::MemoryQuota;
#[cfg(feature = "static")]
pub use r#static::{StaticConfig, StaticInstance, StaticRegistry};

/// Checks an instance before it is registered: every instance needs an address, and here the name of its service too.
#[cfg(any(
    feature = "memory",
    feature = "static",
    feature = "file",
    feature = "local",
    feature = "dns",
    feature = "composite"
))]
fn check(instance: &chassis_core::registry::Instance) -> Result<(), chassis_core::registry::RegistryError> {
    if instance.service.is_empty() {
        let message = format!("instance `{}` doesn't say which service it belongs to", instance.id);
        return Err(chassis_core::registry::RegistryError::new(message));
    }
    instance.check()
}

/// Checks what is to replace the entry `id` of `service`.
#[cfg(any(feature = "memory", feature = "local", feature = "composite"))]
fn check_update(
    instance: &chassis_core::registry::Instance,
    service: &str,
    id: &str,
) -> Result<(), chassis_core::registry::RegistryError> {
    if instance.service != service || instance.id != id {
        let message =
            format!("`{id}` of `{service}` can't become `{}` of `{}`", instance.id, instance.service);
        return Err(chassis_core::registry::RegistryError::new(message));
    }
    check(instance)
}
