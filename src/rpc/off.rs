//! A build without gRPC: it serves no gRPC, and ignores descriptors.
use chassis_core::Runtime;

use crate::{StartError, rest::Rest};

#[derive(Default)]
pub(crate) struct Setup {}

pub(crate) struct Rpc;

#[derive(Default)]
pub(crate) struct Declared {
    pub(crate) idempotent: Vec<String>,
    pub(crate) operations: Vec<String>,
}

// === impl Declared ===

impl Declared {
    pub(crate) fn of(_: &[Vec<u8>]) -> Result<Self, StartError> {
        Ok(Declared::default())
    }
}

pub(crate) fn merged(_: &[Vec<u8>]) -> Vec<u8> {
    Vec::new()
}

pub(crate) const PROTOCOLS: &[&'static dyn chassis_core::protocol::Protocol] = &[];

// === impl Rpc ===

impl Rpc {
    pub(crate) fn new(_: Setup, _: &Rest, _: Vec<Vec<u8>>) -> Self {
        Rpc
    }

    #[allow(dead_code, reason = "called where something listens")]
    pub(crate) fn plan<P>(&mut self, _: &Runtime, _: &mut P) -> Result<(), StartError> {
        Ok(())
    }

    #[allow(dead_code, reason = "called where something listens")]
    pub(crate) fn layered<M>(&self, mux: M) -> M {
        mux
    }

    /// No health service reports whether the process serves.
    pub(crate) fn health(&self) -> impl Fn(bool) + Send + Sync + 'static {
        |_| {}
    }

    pub(crate) fn close(&self) {}
}
