//! One call over either protocol, and its outcome.
use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use chassis::{Channel, Chassis, Code, Error, HttpClient, Problem, Reason, RequestExt};
use chassis_protos::echo::{EchoReply, EchoRequest, echo_client::EchoClient};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use tokio::{sync::mpsc::Receiver, time::Instant};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Status, Streaming, metadata::MetadataMap};

use super::{
    echo::{CALL_ID, INSTANCE, VIA},
    served::Reply,
    within,
};

/// The protocol of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    Grpc,
    Rest,
}

/// The operation of a call. Each exists over both protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Not idempotent: `Echo/Call`, `POST /echo`.
    Call,
    /// Idempotent, by its proto and by its method: `Echo/Safe`, `GET /safe/{message}`.
    Safe,
    /// `Echo/Download`, `GET /download/{message}`.
    Download,
    /// `Echo/Upload`, `POST /upload`.
    Upload,
    /// `Echo/Chat`, `POST /chat`: every message is answered while more are sent.
    Chat,
}

/// The clients of one service.
#[derive(Clone)]
pub(crate) struct Clients {
    pub(crate) grpc: EchoClient<Channel>,
    pub(crate) rest: HttpClient,
}

/// One call, independent of the protocol.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) service: String,
    pub(crate) op: Op,
    /// Sent with the call: executions are recorded by it.
    pub(crate) id: String,
    pub(crate) message: String,
    pub(crate) headers: HeaderMap,
    pub(crate) timeout: Option<Duration>,
    pub(crate) pins: Vec<(String, String)>,
    pub(crate) idempotent: bool,
    pub(crate) no_retry: bool,
    pub(crate) detached: bool,
}

/// The outcome of a call.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) code: Code,
    /// Over REST, if there was an answer.
    pub(crate) status: Option<u16>,
    /// The mechanism that refused, local or remote.
    pub(crate) reason: Option<Reason>,
    pub(crate) rule: Option<String>,
    pub(crate) retry_after: Option<Duration>,
    /// If the error or the status contains it.
    pub(crate) maybe_executed: Option<bool>,
    /// The echoed message, or the message of the failure.
    pub(crate) message: String,
    /// The body in place of a reply; for an injected fault, its text.
    pub(crate) body: String,
    /// The details of a status.
    pub(crate) details: Vec<u8>,
    pub(crate) instance: Option<String>,
    /// The instances of a chained call, outermost first.
    pub(crate) hops: Vec<String>,
    /// The remaining time of the deadline when the handler started.
    pub(crate) remaining: Option<Duration>,
    /// The number of messages of an upload.
    pub(crate) count: u32,
    /// Of the answer, including trailers where they came with it.
    pub(crate) headers: HeaderMap,
    pub(crate) took: Duration,
}

/// An answer that comes in parts.
pub(crate) enum Parts {
    Grpc(Box<Streaming<EchoReply>>),
    Rest(chassis::ReplyBody, VecDeque<String>),
}

// === impl Wire ===

impl Wire {
    /// The name of the operation in settings and metrics.
    pub(crate) fn operation(self, op: Op) -> &'static str {
        match (self, op) {
            (Wire::Grpc, Op::Call) => "chassis.test.v1.Echo/Call",
            (Wire::Grpc, Op::Safe) => "chassis.test.v1.Echo/Safe",
            (Wire::Grpc, Op::Download) => "chassis.test.v1.Echo/Download",
            (Wire::Grpc, Op::Upload) => "chassis.test.v1.Echo/Upload",
            (Wire::Grpc, Op::Chat) => "chassis.test.v1.Echo/Chat",
            (Wire::Rest, Op::Call) => "POST /echo",
            (Wire::Rest, Op::Safe) => "GET /safe/{message}",
            (Wire::Rest, Op::Download) => "GET /download/{message}",
            (Wire::Rest, Op::Upload) => "POST /upload",
            (Wire::Rest, Op::Chat) => "POST /chat",
        }
    }

    /// The name of the protocol in the registry and the inspection.
    pub(crate) fn protocol(self) -> &'static str {
        match self {
            Wire::Grpc => "grpc",
            Wire::Rest => "http",
        }
    }
}

// === impl Ask ===

impl Ask {
    /// `Call` of this service, with default options.
    pub(crate) fn to(service: &str) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        Ask {
            service: service.to_owned(),
            op: Op::Call,
            id: format!("call-{}", NUMBER.fetch_add(1, SeqCst)),
            message: "hello".to_owned(),
            headers: HeaderMap::new(),
            timeout: None,
            pins: Vec::new(),
            idempotent: false,
            no_retry: false,
            detached: false,
        }
    }

    /// Uses the idempotent operation.
    pub(crate) fn safe(mut self) -> Self {
        self.op = Op::Safe;
        self
    }

    pub(crate) fn message(mut self, message: &str) -> Self {
        self.message = message.to_owned();
        self
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    pub(crate) fn pin(mut self, label: &str, value: &str) -> Self {
        self.pins.push((label.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    pub(crate) fn no_retry(mut self) -> Self {
        self.no_retry = true;
        self
    }

    pub(crate) fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// The handler calls on before it answers, hop by hop: `via(&[(Wire::Grpc, "ledger")])`. The services
    /// must be among its [`Plan::calls`].
    pub(crate) fn via(self, hops: &[(Wire, &str)]) -> Self {
        let hops: Vec<_> = hops.iter().map(|(wire, name)| format!("{} {name}", wire.protocol())).collect();
        self.header(VIA, &hops.join(","))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(CALL_ID, HeaderValue::from_str(&self.id).unwrap());
        headers
    }

    /// Converts to a request of a stub.
    pub(crate) fn grpc<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers());
        if let Some(timeout) = self.timeout {
            request.set_timeout(timeout);
        }
        for (label, value) in &self.pins {
            request = request.pin(label, value);
        }
        let pick = |on: bool, request: tonic::Request<T>, set: fn(tonic::Request<T>) -> tonic::Request<T>| {
            if on { set(request) } else { request }
        };
        request = pick(self.idempotent, request, RequestExt::idempotent);
        request = pick(self.no_retry, request, RequestExt::no_retry);
        pick(self.detached, request, RequestExt::detached)
    }

    /// Converts to a request of the REST client.
    pub(crate) fn rest(&self, mut request: chassis::http::RequestBuilder) -> chassis::http::RequestBuilder {
        for (name, value) in &self.headers() {
            request = request.header(name, value);
        }
        if let Some(timeout) = self.timeout {
            request = request.timeout(timeout);
        }
        for (label, value) in &self.pins {
            request = request.pin(label, value);
        }
        if self.idempotent {
            request = request.idempotent();
        }
        if self.no_retry {
            request = request.no_retry();
        }
        if self.detached {
            request = request.detached();
        }
        request
    }

    fn says(&self) -> EchoRequest {
        EchoRequest { message: self.message.clone(), ..EchoRequest::default() }
    }
}

/// Converts to the messages of a stub.
fn messages(parts: Receiver<String>) -> impl Stream<Item = EchoRequest> + Send {
    ReceiverStream::new(parts).map(|message| EchoRequest { message, ..EchoRequest::default() })
}

/// Converts to the lines of a body.
fn lines(parts: Receiver<String>) -> impl http_body::Body<Data = Bytes, Error = Error> + Send {
    let frame = |part: String| Ok(http_body::Frame::data(Bytes::from(part + "\n")));
    http_body_util::StreamBody::new(ReceiverStream::new(parts).map(frame))
}

// === impl Clients ===

impl Clients {
    pub(crate) fn of(app: &Chassis, service: &str) -> Self {
        Clients { grpc: EchoClient::new(app.grpc(service)), rest: app.http(service) }
    }

    pub(crate) async fn call(&self, wire: Wire, ask: Ask) -> Outcome {
        let began = Instant::now();
        let (service, id) = (ask.service.clone(), ask.id.clone());
        let call = self.call_once(wire, ask);
        let outcome = within(|| format!("the answer of {service} to {id} over {wire:?}"), call).await;
        Outcome { took: began.elapsed(), ..outcome }
    }

    async fn call_once(&self, wire: Wire, ask: Ask) -> Outcome {
        match (wire, ask.op) {
            (Wire::Grpc, Op::Call) => Outcome::grpc(self.grpc.clone().call(ask.grpc(ask.says())).await),
            (Wire::Grpc, _) => Outcome::grpc(self.grpc.clone().safe(ask.grpc(ask.says())).await),
            (Wire::Rest, Op::Call) => {
                let request = self.rest.post("/echo").json(&serde_json::json!({ "message": ask.message }));
                Outcome::rest(ask.rest(request).send().await).await
            }
            (Wire::Rest, _) => {
                let request = self.rest.get("/safe/{message}").param("message", &ask.message);
                Outcome::rest(ask.rest(request).send().await).await
            }
        }
    }

    pub(crate) async fn download(&self, wire: Wire, ask: Ask, parts: u32) -> Result<Parts, Outcome> {
        within(|| format!("the head of a download over {wire:?}"), self.begin_download(wire, ask, parts))
            .await
    }

    async fn begin_download(&self, wire: Wire, ask: Ask, parts: u32) -> Result<Parts, Outcome> {
        match wire {
            Wire::Grpc => {
                let request = EchoRequest { repeat: parts, ..ask.says() };
                match self.grpc.clone().download(ask.grpc(request)).await {
                    Ok(response) => Ok(Parts::Grpc(Box::new(response.into_inner()))),
                    Err(status) => Err(Outcome::status(status)),
                }
            }
            Wire::Rest => {
                let request = self.rest.get("/download/{message}").param("message", &ask.message);
                match ask.rest(request.query("repeat", parts)).send().await {
                    Ok(response) if response.status().is_success() => {
                        Ok(Parts::Rest(response.into_body(), VecDeque::new()))
                    }
                    failed => Err(Outcome::rest(failed).await),
                }
            }
        }
    }

    pub(crate) async fn upload(&self, wire: Wire, ask: Ask, parts: Receiver<String>) -> Outcome {
        let began = Instant::now();
        let call = async {
            match wire {
                Wire::Grpc => Outcome::grpc(self.grpc.clone().upload(ask.grpc(messages(parts))).await),
                Wire::Rest => {
                    let request = self.rest.post("/upload").stream(lines(parts));
                    Outcome::rest(ask.rest(request).send().await).await
                }
            }
        };
        let outcome = within(|| format!("the answer to an upload over {wire:?}"), call).await;
        Outcome { took: began.elapsed(), ..outcome }
    }

    pub(crate) async fn chat(&self, wire: Wire, ask: Ask, parts: Receiver<String>) -> Result<Parts, Outcome> {
        let head = async {
            match wire {
                Wire::Grpc => match self.grpc.clone().chat(ask.grpc(messages(parts))).await {
                    Ok(response) => Ok(Parts::Grpc(Box::new(response.into_inner()))),
                    Err(status) => Err(Outcome::status(status)),
                },
                Wire::Rest => {
                    let request = self.rest.post("/chat").stream(lines(parts));
                    match ask.rest(request).send().await {
                        Ok(response) if response.status().is_success() => {
                            Ok(Parts::Rest(response.into_body(), VecDeque::new()))
                        }
                        failed => Err(Outcome::rest(failed).await),
                    }
                }
            }
        };
        within(|| format!("the head of a chat over {wire:?}"), head).await
    }
}

// === impl Outcome ===

impl Outcome {
    fn new(code: Code) -> Self {
        Outcome {
            code,
            status: None,
            reason: None,
            rule: None,
            retry_after: None,
            maybe_executed: None,
            message: String::new(),
            body: String::new(),
            details: Vec::new(),
            instance: None,
            hops: Vec::new(),
            remaining: None,
            count: 0,
            headers: HeaderMap::new(),
            took: Duration::ZERO,
        }
    }

    /// Whether the call succeeded.
    pub(crate) fn is_ok(&self) -> bool {
        self.code == Code::Ok
    }

    /// The instance that answered successfully.
    #[track_caller]
    pub(crate) fn by(&self) -> &str {
        assert!(self.is_ok(), "{self:?}");
        self.instance.as_deref().unwrap_or_default()
    }

    /// Refused by this mechanism, with its own code.
    #[track_caller]
    pub(crate) fn refused(&self, reason: Reason) -> &Self {
        assert_eq!((self.code, self.reason), (reason.code(), Some(reason)), "{self:?}");
        self
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    fn answered(reply: EchoReply, headers: HeaderMap, status: Option<u16>) -> Self {
        Outcome {
            status,
            message: reply.message,
            instance: Some(reply.instance),
            hops: reply.hops,
            remaining: (reply.remaining_ms > 0).then(|| Duration::from_millis(reply.remaining_ms)),
            count: reply.count,
            headers,
            ..Outcome::new(Code::Ok)
        }
    }

    fn grpc(answer: Result<tonic::Response<EchoReply>, Status>) -> Self {
        match answer {
            Ok(response) => {
                let (metadata, reply, _) = response.into_parts();
                Self::answered(reply, metadata.into_headers(), None)
            }
            Err(status) => Self::status(status),
        }
    }

    fn status(status: Status) -> Self {
        let code = Code::from_number(i32::from(status.code()) as u16);
        let error = chassis::grpc::error(&status);
        Outcome {
            reason: error.as_ref().map(Error::reason),
            rule: error.as_ref().and_then(|error| error.rule().map(str::to_owned)),
            retry_after: error.as_ref().and_then(Error::retry_after),
            maybe_executed: error.as_ref().map(Error::maybe_executed),
            message: status.message().to_owned(),
            details: status.details().to_vec(),
            instance: status.metadata().get(INSTANCE).map(|id| id.to_str().unwrap().to_owned()),
            headers: status.metadata().clone().into_headers(),
            ..Outcome::new(code)
        }
    }

    async fn rest(answer: Result<chassis::http::Response, Error>) -> Self {
        let response = match answer {
            Ok(response) => response,
            Err(error) => return Self::error(&error),
        };
        let (headers, status) = (response.headers().clone(), response.status().as_u16());
        let refusal = response.refusal();
        let instance = headers.get(INSTANCE).map(|id| id.to_str().unwrap().to_owned());
        let body = match response.bytes().await {
            Ok(body) => body,
            Err(error) => return Self::error(&error),
        };
        if status < 400 {
            return match serde_json::from_slice::<Reply>(&body) {
                Ok(reply) => Self::answered(reply.into(), headers, Some(status)),
                Err(_) => Outcome {
                    status: Some(status),
                    headers,
                    body: String::from_utf8_lossy(&body).into_owned(),
                    ..Outcome::new(Code::Ok)
                },
            };
        }
        let problem = Problem::read(http::StatusCode::from_u16(status).unwrap(), &headers, &body);
        Outcome {
            status: Some(status),
            reason: problem.reason(),
            rule: problem.rule().map(str::to_owned),
            retry_after: Error::from(problem.clone()).retry_after(),
            maybe_executed: refusal.map(|refusal| refusal.maybe_executed()),
            message: problem.detail_text().unwrap_or_default().to_owned(),
            body: String::from_utf8_lossy(&body).into_owned(),
            instance,
            headers,
            ..Outcome::new(problem.code())
        }
    }

    fn error(error: &Error) -> Self {
        Outcome {
            reason: Some(error.reason()),
            rule: error.rule().map(str::to_owned),
            retry_after: error.retry_after(),
            maybe_executed: Some(error.maybe_executed()),
            message: error.message().to_owned(),
            body: error.details().and_then(|details| details.body.clone()).unwrap_or_default(),
            ..Outcome::new(error.code())
        }
    }
}

// === impl Parts ===

impl Parts {
    /// The next part; `None` at a successful end.
    pub(crate) async fn next(&mut self) -> Option<Result<String, Outcome>> {
        within(|| "the next part of a stream, or its end".to_owned(), self.part()).await
    }

    async fn part(&mut self) -> Option<Result<String, Outcome>> {
        match self {
            Parts::Grpc(parts) => match parts.message().await {
                Ok(part) => Some(Ok(part?.message)),
                Err(status) => Some(Err(Outcome::status(status))),
            },
            Parts::Rest(body, lines) => loop {
                if let Some(line) = lines.pop_front() {
                    return Some(Ok(line));
                }
                match body.frame().await? {
                    Ok(frame) => {
                        let text = frame.into_data().unwrap_or_default();
                        let text = std::str::from_utf8(&text).unwrap();
                        lines.extend(text.lines().map(str::to_owned));
                    }
                    Err(error) => return Some(Err(Outcome::error(&error))),
                }
            },
        }
    }

    /// The number of remaining parts, and the failure if there was one.
    pub(crate) async fn rest(&mut self) -> (usize, Option<Outcome>) {
        let mut count = 0;
        loop {
            match self.next().await {
                None => return (count, None),
                Some(Err(outcome)) => return (count, Some(outcome)),
                Some(Ok(_)) => count += 1,
            }
        }
    }
}
