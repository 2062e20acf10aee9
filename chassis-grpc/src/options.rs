//! Options of one call, set on the request of a tonic stub.
use std::sync::Arc;

use chassis_core::{CallOptions, LabelSet};
use tonic::Request;

/// Options of one call, beyond tonic's own `set_timeout`.
///
/// ```
/// use chassis_grpc::RequestExt;
///
/// let request = tonic::Request::new("a message").pin("track", "canary").idempotent();
/// # let _ = request;
/// ```
pub trait RequestExt: Sized {
    /// Restricts the call to instances with this label, regardless of the routes. Several labels must all
    /// match. Without such an instance the call is refused.
    fn pin(self, label: &str, value: &str) -> Self;

    /// The call may be executed twice without harm, so it is retried even if it may have been executed.
    fn idempotent(self) -> Self;

    /// The call is never retried. (A call that provably never left is still resent.)
    fn no_retry(self) -> Self;

    /// The call is not limited by the deadline of the call that is being handled here.
    fn detached(self) -> Self;
}

// === impl RequestExt ===

impl<T> RequestExt for Request<T> {
    fn pin(mut self, label: &str, value: &str) -> Self {
        let options = options(&mut self);
        let one = LabelSet::from_iter([(label, value)]);
        options.labels = Some(Arc::new(match &options.labels {
            Some(labels) => labels.and(&one),
            None => one,
        }));
        self
    }

    fn idempotent(mut self) -> Self {
        options(&mut self).idempotent = true;
        self
    }

    fn no_retry(mut self) -> Self {
        options(&mut self).no_retry = true;
        self
    }

    fn detached(mut self) -> Self {
        options(&mut self).detached = true;
        self
    }
}

fn options<T>(request: &mut Request<T>) -> &mut CallOptions {
    request.extensions_mut().get_or_insert_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_up() {
        let request =
            Request::new(()).pin("track", "canary").pin("zone", "a").pin("track", "stable").idempotent();
        let options = request.extensions().get::<CallOptions>().unwrap();
        assert_eq!(options.labels.as_ref().unwrap().to_string(), "track=stable,zone=a");
        assert!(options.idempotent && !options.no_retry && !options.detached);

        let request = Request::new(()).no_retry().detached();
        let options = request.extensions().get::<CallOptions>().unwrap();
        assert!(!options.idempotent && options.no_retry && options.detached && options.labels.is_none());
    }
}
