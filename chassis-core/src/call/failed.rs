//! The error of attempts: of all services below the retries.
use std::{error::Error as StdError, fmt, ops::Deref, sync::Arc};

use super::Invocation;
use crate::{BoxError, cluster::Node, types::Error};

/// The reason why an attempt has no answer: the error of transports, and of layers below the retries.
///
/// It is an [`Error`], to which it derefs, and contains two further parts for the retries: the call, if nothing
/// of it was sent ([`Invocation::give_back`]), and the node of the attempt. A layer at
/// [`Stage::Attempt`](crate::Stage::Attempt) or [`Stage::Node`](crate::Stage::Node) passes it on unchanged,
/// changes its error by [`map`](Self::map), or creates one from an `Error`.
///
/// ```
/// use chassis_core::{Error, Failed, Reason};
///
/// let failed = Failed::from(Error::local(Reason::RateLimited, "100/s is used up"));
/// assert_eq!((failed.reason(), failed.endpoint()), (Reason::RateLimited, None));
/// ```
pub struct Failed(Box<Inner>);

struct Inner {
    error: Error,
    call: Option<Invocation>,
    node: Option<Arc<Node>>,
}

/// The error of a service in the pipeline: [`Error`], or [`Failed`] below the retries.
///
/// Layers that are used above and below the retries are generic over it. No other type implements it.
pub trait CallError:
    From<Error> + From<Failed> + Into<Failed> + Into<Error> + StdError + Send + Sync + sealed::Sealed + 'static
{
    /// Creates the error type from `error`, which ended an attempt at `node`, if one had been picked.
    #[doc(hidden)]
    fn at(error: Error, node: Option<Arc<Node>>) -> Self;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for crate::types::Error {}
    impl Sealed for super::Failed {}
}

// === impl Invocation ===

impl Invocation {
    /// Refuses the call: notifies its listeners, and returns the error for the layer to return: an [`Error`],
    /// or below the retries, where only the attempt may end, a [`Failed`].
    pub fn refuse<E: CallError>(mut self, error: Error) -> E {
        let (error, node) = self.0.fail(error);
        E::at(error, node)
    }

    /// Ends the attempt with `error`, and gives the call back, so that it can go to another endpoint: for a
    /// transport that has sent nothing of it, and has restored its parts.
    pub fn give_back(self, error: Error) -> Failed {
        Failed::from(error).returning(self)
    }
}

// === impl Failed ===

impl Failed {
    /// Converts the error of a user's tower layer, as [`Error::from_layer`] does. A `Failed` is returned
    /// unchanged, with the call that it gives back; if it is the source of another error, it is returned
    /// without that call.
    pub fn from_layer(error: impl Into<BoxError>) -> Self {
        let error = match error.into().downcast::<Failed>() {
            Ok(failed) => return *failed,
            Err(other) => other,
        };
        let mut beneath = error.source();
        while let Some(source) = beneath {
            if let Some(Failed(inner)) = source.downcast_ref::<Failed>() {
                let node = inner.node.clone();
                return Failed::at(inner.error.repeat().with_source(error), node);
            }
            beneath = source.source();
        }
        Error::from_layer(error).into()
    }

    /// Replaces the error; the call and the node stay.
    pub fn map(mut self, change: impl FnOnce(Error) -> Error) -> Self {
        self.0.error = change(self.0.error);
        self
    }

    /// Gives the untouched call back, so that it can go to another endpoint: the attempt ends here.
    pub fn returning(mut self, mut call: Invocation) -> Self {
        let node = call.end_unsent(&self.0.error);
        self.0.node = self.0.node.or(node);
        self.0.call = Some(call);
        self
    }

    /// Sets the node to `node` if there is none.
    pub(crate) fn or_at(mut self, node: Option<Arc<Node>>) -> Self {
        self.0.node = self.0.node.or(node);
        self
    }

    /// Takes the untouched call out, if it was given back.
    pub fn take_unsent(&mut self) -> Option<Invocation> {
        self.0.call.take()
    }

    /// The error for the caller: without the call, and with the address of the node.
    pub fn into_error(self) -> Error {
        let Inner { error, node, .. } = *self.0;
        Error::at(error, node)
    }

    /// The node of the attempt, if one was picked.
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.0.node.as_ref()
    }

    /// The address of that node.
    pub fn endpoint(&self) -> Option<&str> {
        self.node().map(|node| node.address()).or(self.0.error.endpoint())
    }
}

impl CallError for Failed {
    fn at(error: Error, node: Option<Arc<Node>>) -> Self {
        Failed(Box::new(Inner { error, call: None, node }))
    }
}

impl CallError for Error {
    fn at(error: Error, node: Option<Arc<Node>>) -> Self {
        match node {
            Some(node) => error.with_endpoint(node.address()),
            None => error,
        }
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Failed::at(error, None)
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.into_error()
    }
}

impl Deref for Failed {
    type Target = Error;
    fn deref(&self) -> &Error {
        &self.0.error
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.error.fmt(f)
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Failed");
        out.field("error", &self.0.error).field("node", &self.0.node).field("unsent", &self.0.call.is_some());
        out.finish()
    }
}

impl StdError for Failed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.error.source()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Reply;

    /// It moves through every layer below the retries, in each answer.
    #[test]
    fn is_as_small_as_an_error() {
        assert_eq!(size_of::<Failed>(), size_of::<usize>());
        assert_eq!(size_of::<Option<Failed>>(), size_of::<usize>());
        assert_eq!(size_of::<Result<Reply, Failed>>(), 2 * size_of::<usize>());
    }
}
