//! A build without HTTP: nothing listens.
use std::time::Duration;

use chassis_config::Version;
use chassis_core::settings::Settings;

use crate::{Chassis, Document, StartError};

#[derive(Default)]
pub(crate) struct Setup {}

pub(crate) struct Rest;

pub(crate) const PROTOCOLS: &[&'static dyn chassis_core::protocol::Protocol] = &[];

// === impl Rest ===

impl Rest {
    pub(crate) fn new(_: Setup, _: &Version<Document, Settings>) -> Self {
        Rest
    }

    pub(crate) async fn drain(&self, _: Duration) -> usize {
        0
    }
}

pub(crate) async fn listen(_: &mut Chassis) -> Result<Vec<(String, String)>, StartError> {
    Ok(Vec::new())
}
