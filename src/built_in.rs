//! What is built in: the kinds and sections of this build's cargo features, registered here and nowhere else.
use crate::kinds::{Kinds, Port};

/// Registers all of them. What a build is without, [`kinds`](crate::kinds) names by its feature.
pub(crate) fn register(kinds: &mut Kinds) {
    #[cfg(all(feature = "local", unix))]
    Port::add(kinds, chassis_registry::LocalRegistry::kind());
    Port::add(kinds, chassis_registry::StaticRegistry::kind());
    Port::add(kinds, chassis_registry::FileRegistry::kind());
    Port::add(kinds, chassis_registry::MemoryRegistry::kind());
    #[cfg(feature = "http")]
    {
        kinds.section(chassis_core::Section::<chassis_http::ClientPatch>::new("client").read_once());
        kinds.section(chassis_core::Section::<chassis_http::ServerPatch>::new("server").read_once());
    }
}
