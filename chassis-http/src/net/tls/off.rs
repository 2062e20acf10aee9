//! A build without TLS.
use std::{io, sync::Arc};

use async_trait::async_trait;

use super::TlsConfig;
use crate::{
    HttpVersion,
    net::{Connector, Stream},
};

const MISSING: &str = "this build has no TLS; the cargo feature `tls` adds it";

/// Refuses every connection: never one without TLS instead.
struct Refused;

/// Can this build do it?
pub(super) fn check() -> Result<(), String> {
    Err(MISSING.to_owned())
}

pub(super) fn check_name(_: &str) -> Result<(), String> {
    Ok(())
}

pub(super) fn connector(_: TlsConfig, _: HttpVersion, _: Arc<dyn Connector>) -> Arc<dyn Connector> {
    Arc::new(Refused)
}

#[async_trait]
impl Connector for Refused {
    async fn connect(&self, _: &str) -> io::Result<Stream> {
        Err(io::Error::new(io::ErrorKind::Unsupported, MISSING))
    }
}
