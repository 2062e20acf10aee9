//! A third protocol: lines over TCP, with the same routing, limits and breakers as gRPC and REST.
//!
//! `cargo run --example line_protocol` starts two servers of it, calls them and checks the results.
//!
//! A frame is its length in four bytes, then lines: the operation (in an answer: the status), then any number
//! of `name: value` lines, an empty line, and the text. Four parts make it a protocol of chassis: [`Line`]
//! (classifies answers and writes refusals), [`Tcp`] (reaches endpoints), and the two edges, [`serve`] and
//! [`Client`].
use std::{
    io::{Error as IoError, ErrorKind, Result as IoResult},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use chassis::{
    Body, Chassis, Code, Connection, Error, Invocation, Link, Operation, Reason, Reply, Target, Verdict,
    pipeline::{self, Pipeline},
    protocol::{Leaf, LeafFuture, Protocol, Transport},
    registries::MemoryRegistry,
    registry::{Instance, Registration, Registry},
    wire::CALLER,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Classifies answers and writes refusals.
struct Line;

/// Reaches an endpoint with a new connection for each call.
struct Tcp;

struct TcpLeaf(Link);

/// The client's edge.
struct Client {
    service: Arc<str>,
    pipeline: Pipeline,
}

/// One message.
struct Frame {
    head: String,
    metadata: HeaderMap,
    text: Bytes,
}

static LINE: Line = Line;
/// Metadata of an answer: the name of the status code.
const CODE: HeaderName = HeaderName::from_static("code");
/// Metadata of a refusal: the mechanism that refused. The call was not executed.
const REFUSED: HeaderName = HeaderName::from_static("refused");
/// Metadata of a call: the caller's timeout in milliseconds.
const WAITS: HeaderName = HeaderName::from_static("x-request-timeout-ms");
/// Maximum length of a frame; a longer one ends the connection.
const MOST_BYTES: usize = 1 << 20;

// === impl Line ===

impl Protocol for Line {
    fn name(&self) -> &'static str {
        "line"
    }

    fn judge_head(&self, _: StatusCode, metadata: &HeaderMap) -> Option<Verdict> {
        let word = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let code = word(CODE.as_str()).and_then(Code::from_name).unwrap_or(Code::Unknown);
        match word(REFUSED.as_str()).and_then(Reason::from_name) {
            Some(reason) => Some(Verdict::refused(reason, code, code.number())),
            None => (code != Code::Ok).then(|| Verdict::answered(code, code.number())),
        }
    }

    fn judge_end(&self, _: StatusCode, _: Option<&HeaderMap>) -> Verdict {
        Verdict::answered(Code::Ok, 0)
    }

    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body) {
        let mut metadata = HeaderMap::new();
        metadata.insert(CODE, HeaderValue::from_static(error.code().name()));
        if !error.maybe_executed() {
            metadata.insert(REFUSED, HeaderValue::from_static(error.reason().name()));
        }
        (StatusCode::OK, metadata, Body::full(error.message().to_owned()))
    }
}

// === impl Tcp ===

impl Transport for Tcp {
    type Leaf = TcpLeaf;

    fn protocol(&self) -> &'static dyn Protocol {
        &LINE
    }

    fn leaf(&self, link: Link) -> TcpLeaf {
        link.set(Connection::Ready); // there is no connection to maintain
        TcpLeaf(link)
    }
}

impl Leaf for TcpLeaf {
    type Future = LeafFuture;

    fn call(&self, mut call: Invocation) -> LeafFuture {
        let address = self.0.address().to_owned();
        Box::pin(async move {
            let mut stream = match TcpStream::connect(&address).await {
                Ok(stream) => stream,
                Err(error) => {
                    let failed = Error::remote(Reason::ConnectFailed, "no connection").with_source(error);
                    return Err(call.give_back(failed)); // it was not sent, so another node may take it
                }
            };
            let exchanged = async {
                let text = std::mem::take(&mut call.body).collect().await.map_err(IoError::other)?.to_bytes();
                let head = call.target.operation.to_string();
                Frame { head, metadata: call.metadata.clone(), text }.write(&mut stream).await?;
                Frame::read(&mut stream).await?.ok_or_else(|| IoError::from(ErrorKind::UnexpectedEof))
            };
            match exchanged.await {
                Ok(answer) => Ok(call.answered(StatusCode::OK, answer.answer(), Body::full(answer.text))),
                Err(error) => {
                    let lost =
                        Error::remote(Reason::ConnectionLost, "the connection broke").with_source(error);
                    Err(call.refuse(lost))
                }
            }
        })
    }
}

// === the server's edge ===

/// Accepts connections and answers calls until `over`. `known` lists the operations; any other one is
/// reported as unknown.
async fn serve(listener: TcpListener, pipeline: Pipeline, service: Arc<str>, known: &'static [&'static str]) {
    while let Ok((stream, _)) = listener.accept().await {
        let (pipeline, service) = (pipeline.clone(), service.clone());
        tokio::spawn(async move {
            // A peer that closed the connection gets no answer.
            let _ = answer(stream, &pipeline, &service, known).await;
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    pipeline: &Pipeline,
    service: &Arc<str>,
    known: &[&'static str],
) -> IoResult<()> {
    while let Some(frame) = Frame::read(&mut stream).await? {
        let operation = known.iter().find(|name| **name == frame.head);
        let operation = operation.map_or(Operation::OTHER, |name| Operation::from_static(name));
        let mut call = Invocation::new(&LINE, Target::new(service.clone(), operation));
        call.target.caller = frame.metadata.get(CALLER).cloned();
        let waits = frame.metadata.get(WAITS).and_then(|value| value.to_str().ok()?.parse().ok());
        if let Some(waits) = waits {
            call.end_within(Duration::from_millis(waits));
        }
        (call.metadata, call.body) = (frame.metadata, Body::full(frame.text));
        let (metadata, text) = match pipeline.run(call).await {
            Ok(mut reply) => (std::mem::take(&mut reply.metadata), reply.into_body().collect().await),
            Err(error) => {
                let (_, metadata, text) = LINE.refuse(&error);
                (metadata, text.collect().await)
            }
        };
        let code = metadata.get(CODE).and_then(|value| value.to_str().ok()).unwrap_or("OK").to_owned();
        let text = text.map_err(IoError::other)?.to_bytes();
        Frame { head: code, metadata, text }.write(&mut stream).await?;
    }
    Ok(())
}

// === impl Client ===

impl Client {
    fn new(app: &Chassis, service: &str) -> Self {
        Client { service: service.into(), pipeline: app.client(service, &Arc::new(Tcp)) }
    }

    async fn call(&self, operation: &'static str, text: &str) -> Result<String, Error> {
        let target = Target::new(self.service.clone(), Operation::from_static(operation));
        let mut call = Invocation::new(&LINE, target);
        call.body = Body::full(text.to_owned());
        let reply = self.pipeline.run(call).await?;
        match reply.as_error() {
            Some(error) => Err(error),
            None => Ok(String::from_utf8_lossy(&reply.into_body().collect().await?.to_bytes()).into_owned()),
        }
    }
}

// === impl Frame ===

impl Frame {
    /// Reads the next frame; `None` at the end.
    async fn read(stream: &mut TcpStream) -> IoResult<Option<Self>> {
        let length = match stream.read_u32().await {
            Ok(length) => length as usize,
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        };
        if length > MOST_BYTES {
            return Err(IoError::other("the frame is too long"));
        }
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        Self::parse(&bytes).map(Some).ok_or_else(|| IoError::other("the frame is no frame"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, text) = std::str::from_utf8(bytes).ok()?.split_once("\n\n")?;
        let mut lines = head.lines();
        let head = lines.next()?.to_owned();
        let mut metadata = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ")?;
            metadata.append(name.parse::<HeaderName>().ok()?, value.parse().ok()?);
        }
        Some(Frame { head, metadata, text: Bytes::copy_from_slice(text.as_bytes()) })
    }

    async fn write(&self, stream: &mut TcpStream) -> IoResult<()> {
        let mut head = format!("{}\n", self.head);
        for (name, value) in &self.metadata {
            head += &format!("{name}: {}\n", value.to_str().map_err(IoError::other)?);
        }
        let bytes = [head.as_bytes(), b"\n", &self.text].concat();
        stream.write_u32(u32::try_from(bytes.len()).map_err(IoError::other)?).await?;
        stream.write_all(&bytes).await
    }

    /// The metadata of an answer, including its code.
    fn answer(&self) -> HeaderMap {
        let mut metadata = self.metadata.clone();
        metadata.insert(CODE, self.head.parse().unwrap_or(HeaderValue::from_static("UNKNOWN")));
        metadata
    }
}

// === the demonstration ===

/// The operations of the servers.
const OPERATIONS: &[&str] = &["Say", "Shout", "Sing"];

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let (registry, sung) = (MemoryRegistry::new(), Arc::new(AtomicUsize::new(0)));
    let [_quiet, _loud] = [start("quiet", &registry, &sung).await?, start("loud", &registry, &sung).await?];

    let settings = serde_json::json!({ "outbound": { "services": { "voice": {
        "routes": [
            { "name": "loud", "match": { "operation": "Shout" }, "to": { "volume": "loud" } },
            { "name": "rest", "to": { "volume": "quiet" } },
        ],
        "breaker": { "scope": "operation", "min_calls": 5, "open": "1m" },
        "retry": "off",
    } } } });
    let app = Chassis::builder("choir").environment(Default::default()).settings(settings);
    let app = app.registry(registry).build().await?;
    let voice = Client::new(&app, "voice");

    let replies = [voice.call("Say", "hello").await?, voice.call("Shout", "hello").await?];
    println!("routes:  {replies:?}");
    assert_eq!(replies, ["quiet: hello", "loud: hello"]);

    let mut refused = Vec::new();
    for _ in 0..8 {
        refused.extend(voice.call("Shout", "again").await.err());
    }
    let first = refused.first().ok_or("the limit admits everything")?;
    println!("limit:   {} of 8 refused, {}", refused.len(), first.reason());
    assert_eq!((refused.len(), first.reason(), first.maybe_executed()), (4, Reason::RateLimited, false));

    let mut reasons = Vec::new();
    for _ in 0..20 {
        reasons.extend(voice.call("Sing", "la").await.err().map(|error| error.reason()));
    }
    let open = reasons.iter().filter(|reason| **reason == Reason::CircuitOpen).count();
    println!(
        "breaker: {open} of 20 refused by the open circuit, {} reached a handler",
        sung.load(Ordering::Relaxed)
    );
    assert_eq!((open, sung.load(Ordering::Relaxed)), (15, 5));
    Ok(())
}

/// Starts a server with a limit of its own and registers it. The server runs while the returned values are
/// held.
async fn start(
    volume: &'static str,
    registry: &MemoryRegistry,
    sung: &Arc<AtomicUsize>,
) -> Result<(Chassis, Box<dyn Registration>), BoxError> {
    let settings = serde_json::json!({ "inbound": { "rate_limits": [
        { "name": "five", "rate": "1/h", "burst": 5, "key": "operation", "match": { "operation": "Shout" } },
    ] } });
    let app = Chassis::builder("voice").environment(Default::default()).settings(settings);
    let app = app.registry(registry.clone()).build().await?;
    let sung = sung.clone();
    let handler = tower::service_fn(move |mut call: Invocation| {
        if call.target.operation.as_str() == "Sing" {
            sung.fetch_add(1, Ordering::Relaxed);
        }
        async move {
            let text = std::mem::take(&mut call.body).collect().await?.to_bytes();
            let (code, text) = match call.target.operation.as_str() {
                "Sing" => (Code::Internal, "hoarse".to_owned()),
                "_OTHER" => (Code::Unimplemented, "what?".to_owned()),
                _ => (Code::Ok, format!("{volume}: {}", String::from_utf8_lossy(&text))),
            };
            let metadata = HeaderMap::from_iter([(CODE, HeaderValue::from_static(code.name()))]);
            Ok::<Reply, Error>(call.answered(StatusCode::OK, metadata, Body::full(text)))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let instance = Instance::new("voice", volume).with_label("volume", volume);
    let instance = instance.with_address("line", listener.local_addr()?.to_string());
    let pipeline = pipeline::server(app.runtime(), handler);
    app.runtime().tasks().spawn(serve(listener, pipeline, "voice".into(), OPERATIONS));
    Ok((app, registry.register(instance).await?))
}
