//! A build without the command line.
use chassis_config::{Overrides, Version};

use crate::{StartError, document::Reader};

/// Asks for nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cli {}

/// The JSON Schema of a section: none.
#[allow(unused_macros, reason = "a build may have no section of its own")]
macro_rules! schema_of {
    ($section:ty) => {
        serde_json::json!({})
    };
}
#[allow(unused_imports, reason = "a build may have no section of its own")]
pub(crate) use schema_of;

/// The JSON Schema of the settings: none.
#[allow(dead_code, reason = "for the admin surface, which a build may be without")]
pub(crate) fn schema_of_all(_: &Reader) -> Option<serde_json::Value> {
    None
}

// === impl Cli ===

impl Cli {
    pub(crate) fn overrides(&self, overrides: Overrides) -> Overrides {
        overrides
    }

    pub(crate) fn is_question(&self) -> bool {
        false
    }

    pub(crate) fn answer_at_once(&self, _: &Reader) {}

    pub(crate) fn answer<D, T>(&self, _: &Version<D, T>, _: &Reader) {}

    pub(crate) fn refuse(&self, _: &StartError) {}
}
