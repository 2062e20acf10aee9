//! The port for transports, which send the calls of a protocol to endpoints. It is above the call; [`Protocol`]
//! is below it.
use std::any::Any;

use super::protocol::Protocol;
use crate::{
    BoxFuture,
    call::{Failed, Invocation, Reply},
    cluster::{AnyLeaf, Link},
};

/// The connection of a protocol to its endpoints. Every implementation passes `testing::contract::transport`
/// (feature `testing`).
pub trait Transport: Send + Sync + 'static {
    /// The type that sends calls to one endpoint.
    type Leaf: Leaf;

    /// The protocol, whose name selects one of an instance's addresses.
    fn protocol(&self) -> &'static dyn Protocol;

    /// Creates a leaf for the endpoint of `link`. Must not block and need not connect yet: the leaf is
    /// [woken](Leaf::wake) when a call needs it, and reports its state through the link.
    fn leaf(&self, link: Link) -> Self::Leaf;
}

/// Sends calls to one endpoint over connections that it maintains in the background.
pub trait Leaf: Send + Sync + 'static {
    /// The answer, or the reason why there is none.
    type Future: Future<Output = Result<Reply, Failed>> + Send + 'static;

    /// Sends one attempt at a call. It ends with [`Invocation::answered`], with [`Invocation::refuse`], or, if
    /// nothing of it was sent, with [`Invocation::give_back`], which needs headers and body in their original
    /// state: otherwise a stream that cannot be repeated is lost. If the future is dropped, the caller has
    /// cancelled, and the attempt must end.
    fn call(&self, call: Invocation) -> Self::Future;

    /// A call needs this endpoint: start to connect, unless an attempt is running.
    fn wake(&self) {}

    /// Closes idle connections and lets busy ones finish. Called when the endpoint is removed.
    fn close(&self) {}
}

/// A boxed future for a leaf.
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
