//! The service and the operation that a call is for, and its caller.
use std::sync::Arc;

/// The service and the operation that a call is for, and its caller.
#[derive(Clone, Debug)]
pub struct Target {
    /// The logical service, by its name in the registry.
    pub service: Arc<str>,
    /// The operation, from a closed set of names.
    pub operation: Operation,
    /// The calling service, with its labels: `orders;track=stable`. `None` if the call did not name it.
    pub caller: Option<http::HeaderValue>,
}

/// `stock.v1.Stock/Reserve` or `GET /stock/{id}`: never a raw path.
#[derive(Clone)]
pub struct Operation(Repr);

#[derive(Clone)]
enum Repr {
    Static(&'static str),
    Shared(Arc<str>),
    /// A gRPC path; the operation's name has no leading slash.
    Path(http::uri::PathAndQuery),
}

// === impl Operation ===

impl Operation {
    /// An operation without a known name: an unmatched path, an unknown method.
    pub const OTHER: Operation = Operation(Repr::Static("_OTHER"));

    /// A name that is known at compile time.
    pub const fn from_static(name: &'static str) -> Self {
        Operation(Repr::Static(name))
    }

    /// A gRPC path, `/package.Service/Method`.
    pub fn from_path(path: http::uri::PathAndQuery) -> Self {
        Operation(Repr::Path(path))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            Repr::Static(name) => name,
            Repr::Shared(name) => name,
            Repr::Path(path) => path.path().strip_prefix('/').unwrap_or(path.path()),
        }
    }
}

impl From<Arc<str>> for Operation {
    fn from(name: Arc<str>) -> Self {
        Operation(Repr::Shared(name))
    }
}

impl From<&str> for Operation {
    fn from(name: &str) -> Self {
        Operation(Repr::Shared(name.into()))
    }
}

impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.as_str().fmt(f)
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Target ===

impl Target {
    /// `operation` of `service`, without a caller.
    pub fn new(service: impl Into<Arc<str>>, operation: Operation) -> Self {
        Target { service: service.into(), operation, caller: None }
    }

    /// The calling service's name, without its labels.
    pub fn caller_name(&self) -> Option<&str> {
        let all = self.caller.as_ref()?.to_str().ok()?;
        Some(all.split(';').next().unwrap_or(all).trim())
    }

    /// A label of the calling service.
    pub fn caller_label(&self, name: &str) -> Option<&str> {
        let all = self.caller.as_ref()?.to_str().ok()?;
        all.split(';').skip(1).find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            (key.trim() == name).then(|| value.trim())
        })
    }
}
