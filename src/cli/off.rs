//! A build without the command line.
use chassis_config::{Overrides, Version};

use crate::StartError;

/// Asks for nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cli {}

// === impl Cli ===

impl Cli {
    pub(crate) fn overrides(&self, overrides: Overrides) -> Overrides {
        overrides
    }

    pub(crate) fn answer<D, T>(&self, _: &Version<D, T>) {}

    pub(crate) fn refuse(&self, _: &StartError) {}
}
