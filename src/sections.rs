//! The document with the parts that depend on what is built in.
use std::sync::Arc;

use chassis_config::document::{Kinds, read_kind};
use chassis_core::{BoxError, registry::Registry};
use serde::{Deserialize, Deserializer};

/// The document people write, with every section.
#[cfg(feature = "http")]
pub type Document =
    chassis_config::document::Document<RegistrySection, chassis_http::ClientPatch, chassis_http::ServerPatch>;
/// The document people write, with every section.
#[cfg(not(feature = "http"))]
pub type Document = chassis_config::document::Document<RegistrySection>;

/// The `registry` table, by its `kind`. Default `local`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RegistrySection {
    /// Nothing said: `local`.
    #[default]
    Unset,
    /// Lease files in a per-user directory of this machine.
    #[cfg(feature = "local")]
    Local(chassis_registry::LocalConfig),
    /// Instances named in the settings; they can change while calls are in flight.
    Static(chassis_registry::StaticConfig),
    /// A watched document of instances.
    File(chassis_registry::FileConfig),
    /// Within this process: services that give the same `name` find each other.
    Memory(chassis_registry::MemoryConfig),
}

/// A registry as made from its section, and what can be changed in it later.
pub(crate) struct Made {
    pub(crate) registry: Arc<dyn Registry>,
    pub(crate) fixed: Option<Arc<chassis_registry::StaticRegistry>>,
    /// Only this machine looks there: loopback is the address to give.
    pub(crate) is_local: bool,
}

impl Kinds for RegistrySection {
    const KINDS: &'static [&'static str] = &[
        #[cfg(feature = "local")]
        "local",
        "static",
        "file",
        "memory",
    ];
    const WHAT: &'static str = "a registry";

    fn read<'de, D: Deserializer<'de>>(kind: &str, rest: D) -> Result<Self, D::Error> {
        match kind {
            #[cfg(feature = "local")]
            "local" => Deserialize::deserialize(rest).map(RegistrySection::Local),
            "static" => Deserialize::deserialize(rest).map(RegistrySection::Static),
            "file" => Deserialize::deserialize(rest).map(RegistrySection::File),
            _ => Deserialize::deserialize(rest).map(RegistrySection::Memory),
        }
    }
}

impl<'de> Deserialize<'de> for RegistrySection {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read_kind(from)
    }
}

impl RegistrySection {
    /// Makes the registry. Inside Kubernetes, where `local` would find nobody, one has to be named.
    pub(crate) fn make(&self) -> Result<Made, BoxError> {
        let made = |registry: Arc<dyn Registry>, is_local| Made { registry, fixed: None, is_local };
        match self {
            RegistrySection::Unset if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
                Err("inside Kubernetes `registry.kind` has to be set: `static` or `file`".into())
            }
            #[cfg(feature = "local")]
            RegistrySection::Unset => {
                Ok(made(Arc::new(chassis_registry::LocalRegistry::new(Default::default())), true))
            }
            #[cfg(not(feature = "local"))]
            RegistrySection::Unset => Err("`registry.kind` has to be set: this build of chassis has no `local`, \
                                           which the cargo feature `local` adds; there are `static`, `file` and \
                                           `memory`"
                .into()),
            #[cfg(feature = "local")]
            RegistrySection::Local(config) => {
                Ok(made(Arc::new(chassis_registry::LocalRegistry::new(config.clone())), true))
            }
            RegistrySection::Static(config) => {
                let fixed = Arc::new(chassis_registry::StaticRegistry::new(config.clone())?);
                Ok(Made { fixed: Some(fixed.clone()), ..made(fixed, false) })
            }
            RegistrySection::File(config) => {
                Ok(made(Arc::new(chassis_registry::FileRegistry::new(config.clone())), false))
            }
            RegistrySection::Memory(config) => {
                Ok(made(Arc::new(chassis_registry::MemoryRegistry::shared(&config.name)), true))
            }
        }
    }
}
