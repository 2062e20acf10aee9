//! How the calls of a protocol reach endpoints. It stands above the call, the protocol's own words below it.
use std::any::Any;

use super::protocol::Protocol;
use crate::{
    BoxFuture,
    call::{Failed, Invocation, Reply},
    cluster::{AnyLeaf, Link},
};

/// How a protocol reaches endpoints. Every implementation passes `testing::contract::transport` (feature
/// `testing`).
pub trait Transport: Send + Sync + 'static {
    /// What sends calls to one endpoint.
    type Leaf: Leaf;

    /// The protocol, whose name picks one of an instance's addresses.
    fn protocol(&self) -> &'static dyn Protocol;

    /// A leaf for the endpoint of `link`. Must not block and need not connect yet: the leaf is
    /// [woken](Leaf::wake) when a call wants it, and tells its state by the link.
    fn leaf(&self, link: Link) -> Self::Leaf;
}

/// Sends calls to one endpoint over connections that it keeps up in the background.
pub trait Leaf: Send + Sync + 'static {
    /// The answer, or why there is none.
    type Future: Future<Output = Result<Reply, Failed>> + Send + 'static;

    /// Sends one attempt at a call. It ends with [`Invocation::answered`], with [`Invocation::refuse`], or, where
    /// nothing of it was sent, with [`Invocation::give_back`], which needs headers and body where they were: without
    /// that, a stream that cannot be repeated is lost. If the future is dropped, the caller gave up: what is under
    /// way ends then.
    fn call(&self, call: Invocation) -> Self::Future;

    /// A call would like to go here: start to connect, unless that is under way.
    fn wake(&self) {}

    /// Ends idle connections and lets busy ones finish. Called when the endpoint is gone for good.
    fn close(&self) {}
}

/// A leaf's future where it has no name.
pub type LeafFuture = BoxFuture<'static, Result<Reply, Failed>>;

impl<L: Leaf> AnyLeaf for L {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn wake(&self) {
        Leaf::wake(self);
    }
    fn close(&self) {
        Leaf::close(self);
    }
}
