//! The services of a server by name, and the dispatch of a call to a handler.
use std::{
    collections::{HashMap, HashSet},
    convert::Infallible,
    future::{poll_fn, ready},
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{Body, BoxFuture, Error, Invocation, Operation, Reason, Reply};
use http::{Request, Response, uri::PathAndQuery};
use prost::DecodeError;
use tonic::{Status, body::Body as TonicBody, server::NamedService};
use tower_service::Service;

use crate::{
    body::{HandlersBody, RequestBody},
    descriptors, details,
    health::Health,
    message, reflection,
    status::Answer,
};

/// The tonic services that one server offers.
///
/// They are found by name in a table; a name that is not in it is UNIMPLEMENTED. As a service of
/// [`Invocation`]s this is the handler at the inner end of a server's pipeline.
///
/// ```
/// use chassis_grpc::{GrpcServices, Health};
///
/// let health = Health::default();
/// let services = GrpcServices::default().health(&health).reflection()?;
/// assert!(services.names().any(|name| name == "grpc.health.v1.Health"));
/// # Ok::<_, chassis_grpc::DescriptorError>(())
/// ```
#[derive(Clone, Default)]
pub struct GrpcServices {
    /// Sorted by name: a server has few services, and comparing names is faster than hashing them.
    table: Arc<Vec<(&'static str, Entry)>>,
    descriptors: Vec<Bytes>,
    /// Reports to reflection that the process drains; empty without health. Clones share it, so both may be
    /// added in either order.
    health: Arc<OnceLock<Health>>,
}

/// The error of invalid descriptors: not an encoded `google.protobuf.FileDescriptorSet`.
#[derive(Debug)]
pub struct DescriptorError(Box<dyn std::error::Error + Send + Sync>);

/// Why an incoming call is refused in place of its handler, so that metrics and traces still cover it.
#[derive(Clone)]
pub(crate) struct Malformed(pub(crate) Arc<str>);

#[derive(Clone)]
struct Entry {
    service: Arc<dyn Handler>,
    /// Its methods, if descriptors list them: other names get no statistics of their own.
    methods: Option<HashSet<String>>,
}

/// A service of any type, with its type erased once.
trait Handler: Send + Sync {
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>>;
}

struct Typed<S>(S);

// === impl GrpcServices ===

impl GrpcServices {
    /// Adds `service`, as tonic generates it. It replaces one of the same name.
    #[expect(clippy::should_implement_trait, reason = "it adds a service, as tonic's router says it")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: Service<Request<TonicBody>, Response = Response<TonicBody>, Error = Infallible>,
        S: NamedService + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let entry = Entry { service: Arc::new(Typed(service)), methods: None };
        let table = Arc::make_mut(&mut self.table);
        match table.binary_search_by_key(&S::NAME, |(name, _)| name) {
            Ok(at) => table[at].1 = entry,
            Err(at) => table.insert(at, (S::NAME, entry)),
        }
        self
    }

    /// Adds the descriptors of protos, as their compiler encodes them: for reflection, and so that only names
    /// of existing methods become operations of their own.
    pub fn descriptors(mut self, encoded: impl Into<Bytes>) -> Result<Self, DescriptorError> {
        let encoded = encoded.into();
        descriptors::methods(&encoded)?;
        self.descriptors.push(encoded);
        Ok(self)
    }

    /// Adds `grpc.health.v1`, which reports `health`. Call it after the services were added: it reports each
    /// of them by name too.
    pub fn health(self, health: &Health) -> Self {
        health.cover(self.names());
        // A second one is ignored: a server has one health.
        let _ = self.health.set(health.clone());
        let mut with = self.add(health.service());
        with.descriptors.push(Bytes::from_static(tonic_health::pb::FILE_DESCRIPTOR_SET));
        with
    }

    /// Adds reflection, v1 and v1alpha, from the given [`descriptors`](Self::descriptors). Call it last: it
    /// lists the services added so far. Its streams end when [`Health::close`] is called.
    pub fn reflection(self) -> Result<Self, DescriptorError> {
        reflection::add(self)
    }

    /// The names of its services, in alphabetical order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.table.iter().map(|(name, _)| *name)
    }

    pub(crate) fn draining(&self) -> &Arc<OnceLock<Health>> {
        &self.health
    }

    pub(crate) fn all_descriptors(&self) -> &[Bytes] {
        &self.descriptors
    }

    /// Completes the table after all services were added; cheap to clone, and ready to resolve operations.
    pub(crate) fn finished(mut self) -> Self {
        let descriptors = std::mem::take(&mut self.descriptors);
        let methods = descriptors.iter().filter_map(|set| descriptors::methods(set).ok()).flatten();
        let mut known = HashMap::<String, HashSet<String>>::new();
        for method in methods {
            if let Some((service, name)) = method.operation.split_once('/') {
                known.entry(service.to_owned()).or_default().insert(name.to_owned());
            }
        }
        for (name, entry) in Arc::make_mut(&mut self.table).iter_mut() {
            entry.methods = known.remove(*name);
        }
        self
    }

    fn entry(&self, service: &str) -> Option<&Entry> {
        let at = self.table.binary_search_by_key(&service, |(name, _)| name).ok()?;
        Some(&self.table[at].1)
    }

    /// The operation of a path, by a name from a bounded set.
    pub(crate) fn operation(&self, path: &PathAndQuery) -> Operation {
        let found = split(path.path()).and_then(|(service, method)| Some((self.entry(service)?, method)));
        match found {
            Some((entry, method))
                if entry.methods.as_ref().is_none_or(|methods| methods.contains(method)) =>
            {
                Operation::from_path(path.clone())
            }
            _ => Operation::OTHER,
        }
    }
}

impl Service<Invocation> for GrpcServices {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        if let Some(Malformed(words)) = call.extensions.remove() {
            let error = Error::local(Reason::Malformed, words.to_string());
            return Box::pin(ready(Err(call.refuse(error))));
        }
        match split(call.uri.path()).and_then(|(service, _)| self.entry(service)) {
            Some(entry) => entry.service.call(call),
            None => Box::pin(ready(Ok(unimplemented(call)))),
        }
    }
}

impl std::fmt::Debug for GrpcServices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// The two parts of `/package.Service/Method`; a name with another slash matches no service.
fn split(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.rsplit_once('/')?;
    (!method.is_empty()).then_some((service, method))
}

fn unimplemented(call: Invocation) -> Reply {
    let words = format!("there is no {}", call.uri.path());
    let (status, head) = Answer::from(Status::unimplemented(words)).into_head();
    call.answered(status, head, Body::empty())
}

// === impl Handler ===

impl<S> Handler for Typed<S>
where
    S: Service<Request<TonicBody>, Response = Response<TonicBody>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn call(&self, mut call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            let Ok(()) = poll_fn(|cx| service.poll_ready(cx)).await;
            let Ok(response) = service.call(request(&mut call)).await;
            let (mut head, body) = response.into_parts();
            details::strip(&mut head.headers);
            message::correct(&mut head.headers);
            call.extensions = head.extensions;
            Ok(call.answered(head.status, head.headers, HandlersBody::eager(body)))
        })
    }
}

/// Moves the parts that a tonic service reads out of `call`.
fn request(call: &mut Invocation) -> Request<TonicBody> {
    let mut request = Request::new(RequestBody::tonic(std::mem::take(&mut call.body)));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = std::mem::take(&mut call.uri);
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = std::mem::take(&mut call.metadata);
    *request.extensions_mut() = std::mem::take(&mut call.extensions);
    request
}

// === impl DescriptorError ===

impl From<DecodeError> for DescriptorError {
    fn from(error: DecodeError) -> Self {
        DescriptorError(error.into())
    }
}

impl From<tonic_reflection::server::Error> for DescriptorError {
    fn from(error: tonic_reflection::server::Error) -> Self {
        DescriptorError(error.into())
    }
}

impl std::fmt::Display for DescriptorError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no encoded google.protobuf.FileDescriptorSet")
    }
}

impl std::error::Error for DescriptorError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}
