//! The options of one call, and the methods that set them on every kind of request.
use std::{sync::Arc, time::Duration};

use super::Invocation;
use crate::{algorithm::HashKey, types::LabelSet};

/// The options that a caller sets for one call, in addition to the settings. [`RequestExt`] sets them.
#[derive(Clone, Debug, Default)]
pub struct CallOptions {
    /// The time to the end of the answer. It is sent with the call, and only shortens an inherited deadline.
    pub timeout: Option<Duration>,
    /// Only nodes with these labels, regardless of the routes.
    pub labels: Option<Arc<LabelSet>>,
    /// A key for pickers that hash: they send calls with the same key to the same node while it is available.
    pub hash_key: Option<HashKey>,
    /// The call may be executed twice without harm.
    pub idempotent: bool,
    /// The call is never retried. (A call that provably never left is still resent.)
    pub no_retry: bool,
    /// The deadline of the call that is being handled here does not apply.
    pub detached: bool,
}

/// Sets the options of a call on the request that becomes it: a `tonic::Request`, a REST `RequestBuilder`, an
/// [`http::Request`], an [`Invocation`], or [`CallOptions`] by themselves.
///
/// ```
/// use std::time::Duration;
/// use chassis_core::{CallOptions, RequestExt};
///
/// let request = http::Request::new("a body").timeout(Duration::from_millis(200)).pin("track", "canary");
/// let options = request.extensions().get::<CallOptions>().unwrap();
/// assert_eq!(options.timeout, Some(Duration::from_millis(200)));
/// ```
///
/// `By` is only there for implementations: the crate of a protocol implements this trait for a request of another
/// crate, and names a type of its own there. Callers need not name it.
pub trait RequestExt<By = ()>: Sized {
    /// The options to set.
    fn options_mut(&mut self) -> &mut CallOptions;

    /// Bounds the time to the end of the answer. It is sent with the call as its deadline, and only shortens an
    /// inherited one.
    fn timeout(mut self, timeout: Duration) -> Self {
        self.options_mut().timeout = Some(timeout);
        self
    }

    /// Restricts the call to instances with this label, regardless of the routes. Several labels must all match.
    /// Without such an instance the call is refused.
    fn pin(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        let options = self.options_mut();
        let one = LabelSet::from_iter([(label.into(), value.into())]);
        options.labels = Some(Arc::new(match &options.labels {
            Some(labels) => labels.and(&one),
            None => one,
        }));
        self
    }

    /// Pickers that hash send calls with the same key to the same node while it is available. Other pickers ignore
    /// it.
    fn hash_key(mut self, key: impl AsRef<[u8]>) -> Self {
        self.options_mut().hash_key = Some(HashKey::of(key));
        self
    }

    /// The call may be executed twice without harm, so it is retried even if it may have been executed.
    fn idempotent(mut self) -> Self {
        self.options_mut().idempotent = true;
        self
    }

    /// The call is never retried. (A call that provably never left is still resent.)
    fn no_retry(mut self) -> Self {
        self.options_mut().no_retry = true;
        self
    }

    /// The deadline of the call that is being handled here does not apply to this call.
    fn detached(mut self) -> Self {
        self.options_mut().detached = true;
        self
    }
}

// === impl RequestExt ===

impl RequestExt for CallOptions {
    fn options_mut(&mut self) -> &mut CallOptions {
        self
    }
}

impl RequestExt for Invocation {
    fn options_mut(&mut self) -> &mut CallOptions {
        &mut self.options
    }
}

/// They travel in its extensions.
impl<B> RequestExt for http::Request<B> {
    fn options_mut(&mut self) -> &mut CallOptions {
        self.extensions_mut().get_or_insert_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_add_up() {
        let request = http::Request::new(());
        let request = request.pin("track", "canary").pin("zone", "a").pin("track", "stable").idempotent();
        let options = request.extensions().get::<CallOptions>().unwrap();
        assert_eq!(options.labels.as_ref().unwrap().to_string(), "track=stable,zone=a");
        assert!(options.idempotent && !options.no_retry && !options.detached);

        let second = Duration::from_secs(1);
        let options = CallOptions::default().no_retry().detached().hash_key("ada").timeout(second);
        assert!(!options.idempotent && options.no_retry && options.detached && options.labels.is_none());
        assert_eq!((options.hash_key, options.timeout), (Some(HashKey::of("ada")), Some(second)));
    }
}
