//! Endpoints whose behaviour a test scripts, and which record their calls.
use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;

use super::{STATUS, TEST};
use crate::{
    call::{Failed, Invocation, Reply},
    clock::Instant,
    cluster::{Connection, Link},
    plugin::{
        protocol::Protocol,
        transport::{Leaf, LeafFuture, Transport},
    },
    types::{Body, Code, Error, Reason},
};

/// A transport to endpoints that a test scripts. Clones share it.
///
/// Endpoints are [`Ready`](Connection::Ready) at once unless the test sets another state.
#[derive(Clone)]
pub struct Upstream(Arc<Inner>);

struct Inner {
    protocol: &'static dyn Protocol,
    script: Box<dyn Fn(&Arrival) -> Answer + Send + Sync>,
    seen: Mutex<Seen>,
}

struct Seen {
    begin_as: Connection,
    endpoints: BTreeMap<String, Endpoint>,
    arrivals: Vec<Arrival>,
}

#[derive(Default)]
struct Endpoint {
    links: Vec<Arc<Link>>,
    connection: Option<Connection>,
    calls: usize,
    wakes: usize,
    closes: usize,
}

/// A call that arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The address of the endpoint.
    pub address: String,
    /// The number of calls that arrived there before.
    pub nth: usize,
    /// The number of calls that arrived at all endpoints before.
    pub total: usize,
    /// The time of arrival.
    pub at: Instant,
    /// The operation.
    pub operation: String,
    /// The method.
    pub method: Method,
    /// The metadata: trace, attempt and deadline headers among them.
    pub metadata: HeaderMap,
    /// The caller's deadline.
    pub deadline: Option<Instant>,
    /// The part of the body that was read so far.
    pub body: Bytes,
}

/// The scripted result of one call.
#[derive(Debug)]
pub struct Answer {
    delay: Duration,
    frames: Option<usize>,
    hold: Option<Duration>,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Reply { status: StatusCode, metadata: HeaderMap, body: Body },
    Fail(Error),
    Return(Error),
    Hang,
}

/// The leaf of an [`Upstream`]'s endpoint.
pub struct UpstreamLeaf {
    address: String,
    upstream: Upstream,
}

// === impl Upstream ===

impl Upstream {
    /// Answers as `script` returns, by the test protocol.
    pub fn new(script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        Self::speaking(&TEST, script)
    }

    /// The same by another protocol, whose name also chooses the instance's address.
    pub fn speaking(
        protocol: &'static dyn Protocol,
        script: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let seen = Seen { begin_as: Connection::Ready, endpoints: BTreeMap::new(), arrivals: Vec::new() };
        Upstream(Arc::new(Inner { protocol, script: Box::new(script), seen: Mutex::new(seen) }))
    }

    /// The initial state of new endpoints. Default: ready.
    pub fn begin_as(self, connection: Connection) -> Self {
        self.seen().begin_as = connection;
        self
    }

    /// Sets the state of the connection to `address`.
    pub fn connect(&self, address: &str, connection: Connection) {
        let links = {
            let mut seen = self.seen();
            let endpoint = seen.endpoint(address);
            endpoint.connection = Some(connection);
            endpoint.links.clone()
        };
        links.iter().for_each(|link| link.set(connection));
    }

    /// The number of calls that arrived at `address`.
    pub fn calls(&self, address: &str) -> usize {
        self.seen().endpoints.get(address).map_or(0, |endpoint| endpoint.calls)
    }

    /// The number of calls that arrived.
    pub fn total(&self) -> usize {
        self.seen().arrivals.len()
    }

    /// All calls that arrived, in order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.seen().arrivals.clone()
    }

    /// The call that arrived last.
    ///
    /// # Panics
    /// If no call arrived.
    pub fn last(&self) -> Arrival {
        self.seen().arrivals.last().cloned().expect("a call arrived")
    }

    /// The number of `wake` calls for the endpoint at `address`.
    pub fn wakes(&self, address: &str) -> usize {
        self.seen().endpoints.get(address).map_or(0, |endpoint| endpoint.wakes)
    }

    /// The number of `close` calls for endpoints at `address`.
    pub fn closes(&self, address: &str) -> usize {
        self.seen().endpoints.get(address).map_or(0, |endpoint| endpoint.closes)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call, and asks the script for its result.
    fn arrive(&self, address: &str, call: &Invocation) -> (usize, Answer) {
        let arrival = {
            let mut seen = self.seen();
            let total = seen.arrivals.len();
            let endpoint = seen.endpoint(address);
            let nth = endpoint.calls;
            endpoint.calls += 1;
            let arrival = Arrival {
                address: address.to_owned(),
                nth,
                total,
                at: Instant::now(),
                operation: call.target.operation.to_string(),
                method: call.method.clone(),
                metadata: call.metadata.clone(),
                deadline: call.deadline,
                body: Bytes::new(),
            };
            seen.arrivals.push(arrival.clone());
            arrival
        };
        (arrival.total, (self.0.script)(&arrival))
    }

    async fn answer(self, index: usize, answer: Answer, mut call: Invocation) -> Result<Reply, Failed> {
        let Answer { delay, frames, hold, then } = answer;
        if let Then::Return(error) = then {
            return Err(call.give_back(error));
        }
        let mut request = std::mem::take(&mut call.body);
        self.receive(index, &mut request, frames).await;
        if let Some(hold) = hold {
            tokio::spawn(async move {
                tokio::time::sleep(hold).await;
                drop(request);
            });
        }
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        match then {
            Then::Reply { status, metadata, body } => Ok(call.answered(status, metadata, body)),
            Then::Fail(error) | Then::Return(error) => Err(call.refuse(error)),
            Then::Hang => std::future::pending().await,
        }
    }

    /// Reads this many frames of the request, or all of them.
    async fn receive(&self, index: usize, request: &mut Body, frames: Option<usize>) {
        let mut read = BytesMut::new();
        for _ in 0..frames.unwrap_or(usize::MAX) {
            match poll_fn(|cx| Pin::new(&mut *request).poll_frame(cx)).await {
                Some(Ok(frame)) => read.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
                Some(Err(_)) | None => break,
            }
            if let Some(arrival) = self.seen().arrivals.get_mut(index) {
                arrival.body = Bytes::copy_from_slice(&read);
            }
        }
    }
}

impl Seen {
    fn endpoint(&mut self, address: &str) -> &mut Endpoint {
        self.endpoints.entry(address.to_owned()).or_default()
    }
}

impl Transport for Upstream {
    type Leaf = UpstreamLeaf;

    fn protocol(&self) -> &'static dyn Protocol {
        self.0.protocol
    }

    fn leaf(&self, link: Link) -> UpstreamLeaf {
        let (address, link) = (link.address().to_owned(), Arc::new(link));
        let connection = {
            let mut seen = self.seen();
            let begin_as = seen.begin_as;
            let endpoint = seen.endpoint(&address);
            endpoint.links.push(link.clone());
            endpoint.connection.unwrap_or(begin_as)
        };
        link.set(connection);
        UpstreamLeaf { address, upstream: self.clone() }
    }
}

impl Leaf for UpstreamLeaf {
    type Future = LeafFuture;

    fn call(&self, call: Invocation) -> LeafFuture {
        let (index, answer) = self.upstream.arrive(&self.address, &call);
        Box::pin(self.upstream.clone().answer(index, answer, call))
    }

    fn wake(&self) {
        self.upstream.seen().endpoint(&self.address).wakes += 1;
    }

    fn close(&self) {
        self.upstream.seen().endpoint(&self.address).closes += 1;
    }
}

// === impl Answer ===

impl Answer {
    /// 200, with the whole body at once.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::reply(StatusCode::OK, Body::full(body))
    }

    /// This status and no body.
    ///
    /// # Panics
    /// If it is not a valid status.
    pub fn status(status: u16) -> Self {
        Self::reply(StatusCode::from_u16(status).expect("a status"), Body::empty())
    }

    /// 200 with a streaming body.
    pub fn streaming(body: Body) -> Self {
        Self::reply(StatusCode::OK, body)
    }

    /// 200 with a body, and trailers that end the call with `code`.
    pub fn trailers(body: impl Into<Bytes>, code: Code) -> Self {
        let trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from(code.number()))]);
        Self::reply(StatusCode::OK, Body::with_trailers(Some(body.into()), trailers))
    }

    /// No answer, but `error`.
    pub fn error(error: Error) -> Self {
        Self::then(Then::Fail(error))
    }

    /// No answer: the connection broke during the call.
    pub fn lost() -> Self {
        Self::error(Error::remote(Reason::ConnectionLost, "the connection broke"))
    }

    /// Nothing was sent, and the call is given back.
    pub fn unsent() -> Self {
        Self::then(Then::Return(Error::remote(Reason::ConnectFailed, "connection refused")))
    }

    /// The other side refused the call before it read it; the call is not given back.
    pub fn refused() -> Self {
        Self::error(Error::remote(Reason::StreamRefused, "REFUSED_STREAM"))
    }

    /// No answer, ever.
    pub fn hang() -> Self {
        Self::then(Then::Hang)
    }

    fn reply(status: StatusCode, body: Body) -> Self {
        Self::then(Then::Reply { status, metadata: HeaderMap::new(), body })
    }

    fn then(then: Then) -> Self {
        Answer { delay: Duration::ZERO, frames: None, hold: None, then }
    }

    /// Delays the answer.
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Adds a header, if there is an answer.
    pub fn with(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let (Then::Reply { metadata, .. }, Ok(value)) = (&mut self.then, value.try_into()) {
            metadata.append(name, value);
        }
        self
    }

    /// Answers after this many frames of the request. Default: all of them.
    pub fn reading(mut self, frames: usize) -> Self {
        self.frames = Some(frames);
        self
    }

    /// Keeps the request's body for this time, as the task of a connection does. Default: until the answer.
    pub fn holding(mut self, hold: Duration) -> Self {
        self.hold = Some(hold);
        self
    }
}
