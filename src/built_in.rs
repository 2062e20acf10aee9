//! The kinds and sections that the cargo features of this build provide. All are registered here.
use crate::kinds::{Kinds, Port};

/// Registers all of them. [`kinds`](crate::kinds) names the cargo feature of a kind that this build lacks.
pub(crate) fn register(kinds: &mut Kinds) {
    #[cfg(all(feature = "local", unix))]
    Port::add(kinds, chassis_registry::LocalRegistry::kind());
    Port::add(kinds, chassis_registry::StaticRegistry::kind());
    Port::add(kinds, chassis_registry::FileRegistry::kind());
    Port::add(kinds, chassis_registry::MemoryRegistry::kind());
    #[cfg(feature = "dns")]
    Port::add(kinds, chassis_registry::DnsRegistry::kind());
    #[cfg(feature = "consul")]
    {
        Port::add(kinds, chassis_consul::ConsulRegistry::kind());
        Port::add(kinds, chassis_consul::ConsulSource::kind());
    }
    #[cfg(feature = "etcd")]
    {
        Port::add(kinds, chassis_etcd::EtcdRegistry::kind());
        Port::add(kinds, chassis_etcd::EtcdSource::kind());
    }
    #[cfg(feature = "ttl")]
    Port::add(kinds, chassis_ttl::TtlRegistry::kind());
    #[cfg(feature = "http")]
    {
        kinds.section(chassis_core::Section::<chassis_http::ClientPatch>::new("client").read_once());
        kinds.section(chassis_core::Section::<chassis_http::ServerPatch>::new("server").read_once());
    }
}
