//! A build without the admin surface: nothing of it listens.
use std::time::Duration;

use crate::{Chassis, StartError, kinds::Kinds};

#[derive(Default)]
pub(crate) struct Surface;

/// Registers no section.
pub(crate) fn register(_: &mut Kinds) {}

// === impl Surface ===

impl Surface {
    pub(crate) async fn open(_: &Chassis) -> Result<Self, StartError> {
        Ok(Surface)
    }

    pub(crate) fn addresses(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    pub(crate) fn serves(&self, _: &[(String, String)], _: &[(String, String)]) {}

    pub(crate) async fn close(&self, _: Duration) {}
}
