//! The kinds and sections that the cargo features of this build provide. All are registered here.
use crate::kinds::{Kinds, Port};

/// Registers all of them. [`kinds`](crate::kinds) names the cargo feature of a kind that this build lacks.
pub(crate) fn register(kinds: &mut Kinds) {
    #[cfg(all(feature = "local", unix))]
    Port::add(kinds, chassis_registry::LocalRegistry::kind());
    Port::add(kinds, chassis_registry::StaticRegistry::kind());
    Port::add(kinds, chassis_registry::FileRegistry::kind());
    Port::add(kinds, chassis_registry::MemoryRegistry::kind());
    kinds.add_composites();
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
    #[cfg(feature = "http-center")]
    Port::add(kinds, chassis_http_center::HttpSource::kind());
    #[cfg(feature = "servicecomb")]
    {
        Port::add(kinds, chassis_servicecomb::ServiceCombRegistry::kind());
        Port::add(kinds, chassis_servicecomb::KieSource::kind());
    }
    #[cfg(feature = "kubernetes")]
    {
        Port::add(kinds, chassis_kubernetes::KubernetesRegistry::kind());
        Port::add(kinds, chassis_kubernetes::KubernetesSource::kind());
    }
    #[cfg(feature = "ttl")]
    {
        Port::add(kinds, chassis_ttl::TtlRegistry::kind());
        Port::add(kinds, chassis_ttl::TtlSource::kind());
    }
    #[cfg(feature = "http")]
    {
        use chassis_http::{ClientPatch, ServerPatch};

        let client = chassis_core::Section::<ClientPatch>::new("client").read_once();
        kinds.section(client.schema(crate::cli::schema_of!(ClientPatch)));
        let server = chassis_core::Section::<ServerPatch>::new("server").read_once();
        kinds.section(server.schema(crate::cli::schema_of!(ServerPatch)));
    }
    crate::admin::register(kinds);
}
