//! A user's own protocol, in a hundred lines: with routes, balancing, retries, breakers and limits like the
//! others.
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis::{
    Body, Code, Connection, Error, Invocation, Link, Operation, Reason, Reply, Target, Verdict,
    http::connector::{Connector, Network, Stream},
    pipeline::{self, Pipeline},
    protocol::{Leaf, LeafFuture, Protocol, Transport},
};
use chassis_core::{
    tasks::Tasks,
    testing::contract::{
        self,
        transport::{Endpoint, Handler},
    },
};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::mesh::{Caller, Mesh};

/// A request is one line (`operation|milliseconds left|track|text`), an answer too (`code|reason|text`).
struct Line;

static LINE: Line = Line;

/// Opens a stream for each call.
struct LineTransport(Network);

struct LineLeaf {
    link: Link,
    network: Network,
}

const CODE: &str = "line-code";
const REASON: &str = "line-reason";

impl Protocol for Line {
    fn name(&self) -> &'static str {
        "line"
    }

    fn judge_head(&self, _: StatusCode, metadata: &HeaderMap) -> Option<Verdict> {
        let said = |name: &str| metadata.get(name).and_then(|value| value.to_str().ok());
        let code = said(CODE).and_then(Code::from_name).unwrap_or(Code::Unknown);
        Some(match said(REASON).and_then(Reason::from_name) {
            Some(reason) => Verdict::refused(reason, code, code.number()),
            None => Verdict::answered(code, code.number()),
        })
    }

    fn judge_end(&self, status: StatusCode, _: Option<&HeaderMap>) -> Verdict {
        Verdict::answered(Code::from_http(status), status.as_u16())
    }

    fn refuse(&self, error: &Error) -> (StatusCode, HeaderMap, Body) {
        let mut metadata = said(error.code());
        if !error.maybe_executed() {
            metadata.insert(REASON, HeaderValue::from_static(error.reason().name()));
        }
        (StatusCode::OK, metadata, Body::full(error.message().to_owned()))
    }
}

fn said(code: Code) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static(CODE), HeaderValue::from_static(code.name()))])
}

fn text<'a>(metadata: &'a HeaderMap, name: &str) -> &'a str {
    metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

// === the client ===

impl Transport for LineTransport {
    type Leaf = LineLeaf;

    fn protocol(&self) -> &'static dyn Protocol {
        &LINE
    }

    fn leaf(&self, link: Link) -> LineLeaf {
        LineLeaf { link, network: self.0.clone() }
    }
}

impl Leaf for LineLeaf {
    type Future = LeafFuture;

    fn wake(&self) {
        self.link.set(Connection::Ready); // calls show whether it can be reached
    }

    fn call(&self, mut call: Invocation) -> LeafFuture {
        let (network, address) = (self.network.clone(), self.link.address().to_owned());
        Box::pin(async move {
            let stream = match network.connect(&address).await {
                Ok(stream) => stream,
                Err(why) => {
                    let error = Error::remote(Reason::ConnectFailed, "nothing listens").with_source(why);
                    return Err(call.give_back(error));
                }
            };
            match ask(stream, &mut call).await {
                Ok((metadata, body)) => Ok(call.answered(StatusCode::OK, metadata, body)),
                Err(why) => {
                    Err(call
                        .refuse(Error::remote(Reason::ConnectionLost, "the line went dead").with_source(why)))
                }
            }
        })
    }
}

async fn ask(stream: Stream, call: &mut Invocation) -> std::io::Result<(HeaderMap, Body)> {
    let mut stream = BufReader::new(stream);
    let body = std::mem::take(&mut call.body).collect().await.map_err(std::io::Error::other)?.to_bytes();
    let (left, track) = (text(&call.metadata, "x-request-timeout-ms"), text(&call.metadata, "track"));
    let line = format!("{}|{left}|{track}|{}\n", call.target.operation, String::from_utf8_lossy(&body));
    stream.write_all(line.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    let parts: Vec<_> = answer.trim_end().splitn(3, '|').collect();
    let [code, reason, text] = parts[..] else { return Err(std::io::ErrorKind::UnexpectedEof.into()) };
    let mut metadata = said(Code::from_name(code).unwrap_or(Code::Unknown));
    if let Ok(reason) = HeaderValue::from_str(reason) {
        metadata.insert(REASON, reason);
    }
    Ok((metadata, Body::full(text.to_owned())))
}

// === the server ===

async fn serve(pipeline: Pipeline, stream: Stream, service: Arc<str>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let parts: Vec<_> = line.trim_end().splitn(4, '|').collect();
    let [operation, left, _, text_said] = parts[..] else { return Ok(()) };
    let mut call = Invocation::new(&LINE, Target::new(service, Operation::from(operation)));
    if let Ok(left) = left.parse() {
        call.end_within(Duration::from_millis(left));
    }
    call.body = Body::full(text_said.to_owned());
    let (metadata, body) = match pipeline.run(call).await {
        Ok(mut reply) => (std::mem::take(&mut reply.metadata), reply.into_body().collect().await),
        Err(error) => {
            let (_, metadata, body) = LINE.refuse(&error);
            (metadata, body.collect().await)
        }
    };
    let body = body.map_err(std::io::Error::other)?.to_bytes();
    let body = String::from_utf8_lossy(&body);
    let answer = format!("{}|{}|{body}\n", text(&metadata, CODE), text(&metadata, REASON));
    stream.write_all(answer.as_bytes()).await
}

/// An instance whose handler answers its name, or fails if the test asks for it.
struct LineServer {
    executed: Arc<AtomicU64>,
    failing: Arc<AtomicU64>,
    running: chassis::Running,
}

impl LineServer {
    async fn start(mesh: &Mesh, id: &'static str, track: &str, config: &str) -> Self {
        let (app, _source) = mesh.server("stock", id).label("track", track).config(config).build().await;
        let (executed, failing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (count, fails) = (executed.clone(), failing.clone());
        let handler = tower::service_fn(move |call: Invocation| {
            count.fetch_add(1, SeqCst);
            let fails = fails.load(SeqCst) > 0;
            async move {
                let code = if fails { Code::Unavailable } else { Code::Ok };
                Ok::<Reply, Error>(call.answered(StatusCode::OK, said(code), Body::full(id)))
            }
        });
        let pipeline = pipeline::server(app.runtime(), handler);
        let address = format!("memory:{id}");
        let mut listener = mesh.network.bind(&address).await.unwrap();
        let service = app.runtime().service().clone();
        app.runtime().tasks().spawn(async move {
            while let Ok(stream) = listener.accept().await {
                tokio::spawn(serve(pipeline.clone(), stream, service.clone()));
            }
        });
        let running = app.advertise("line", &address).start().await.unwrap();
        LineServer { executed, failing, running }
    }

    fn executed(&self) -> u64 {
        self.executed.load(SeqCst)
    }

    fn fail(&self, fails: bool) {
        self.failing.store(u64::from(fails), SeqCst);
    }
}

/// Makes a call; `Ok` is the instance's name.
async fn call(caller: &Caller, transport: &Arc<LineTransport>, track: Option<&str>) -> Result<String, Code> {
    let mut call = Invocation::new(&LINE, Target::new("stock", Operation::from_static("Count")));
    call.options.idempotent = true;
    if let Some(track) = track {
        call.metadata.insert("track", HeaderValue::from_str(track).unwrap());
    }
    let reply = caller.app.client("stock", transport).run(call).await.map_err(|error| error.code())?;
    match reply.verdict().unwrap() {
        verdict if verdict.is_success() => {
            let text = reply.into_body().collect().await.unwrap().to_bytes();
            Ok(String::from_utf8(text.to_vec()).unwrap())
        }
        verdict => Err(verdict.code),
    }
}

const CONFIG: &str = "
outbound:
  services:
    stock:
      timeout: 1s
      breaker: { scope: service, min_calls: 5, open: 10s }
      routes:
        - { name: canary, match: { header: { track: canary } }, to: { track: canary } }
        - { name: stable, to: { track: stable } }
";

#[tokio::test(start_paused = true)]
async fn a_protocol_of_ones_own_has_all_of_it() {
    let mesh = Mesh::new();
    let limited = "inbound: { rate_limits: [{ name: few, rate: 1/s, burst: 10 }] }";
    let mut stable = vec![
        LineServer::start(&mesh, "stable-1", "stable", "").await,
        LineServer::start(&mesh, "stable-2", "stable", "").await,
    ];
    let canary = LineServer::start(&mesh, "canary-1", "canary", limited).await;
    let caller = mesh.caller(CONFIG).await;
    let transport = Arc::new(LineTransport(mesh.network.clone()));
    // Routed, and balanced.
    for _ in 0..40 {
        assert!(call(&caller, &transport, None).await.unwrap().starts_with("stable"));
    }
    assert!(stable.iter().all(|one| one.executed() > 5));
    // Limited at the server: the refusal comes without the handler.
    for _ in 0..10 {
        assert_eq!(call(&caller, &transport, Some("canary")).await.as_deref(), Ok("canary-1"));
    }
    assert_eq!(call(&caller, &transport, Some("canary")).await, Err(Code::ResourceExhausted));
    assert_eq!(canary.executed(), 10);
    // Retried at another node.
    stable[0].fail(true);
    for _ in 0..10 {
        assert_eq!(call(&caller, &transport, None).await.as_deref(), Ok("stable-2"));
    }
    // Circuit open: refused without any attempt, until the node recovers.
    stable[1].fail(true);
    while call(&caller, &transport, None).await != Err(Code::Unavailable)
        || caller.runtime().inspect().circuits[0].state != chassis::layer::breaker::State::Open
    {}
    let before = stable.iter().map(LineServer::executed).sum::<u64>();
    for _ in 0..10 {
        assert_eq!(call(&caller, &transport, None).await, Err(Code::Unavailable));
    }
    assert_eq!(stable.iter().map(LineServer::executed).sum::<u64>(), before);
    stable.iter().for_each(|one| one.fail(false));
    tokio::time::sleep(Duration::from_secs(11)).await;
    for _ in 0..10 {
        assert!(call(&caller, &transport, None).await.is_ok());
    }
    // A removed node is not called again, and a call that could not be sent goes to another one.
    stable.remove(0).running.stop().await;
    for _ in 0..10 {
        assert_eq!(call(&caller, &transport, None).await.as_deref(), Ok("stable-2"));
    }
    let figures = crate::mesh::scrape(caller.runtime());
    assert!(
        figures.contains("chassis_client_call_duration_seconds_count{code=\"OK\",operation=\"Count\""),
        "{figures}"
    );
}

/// A server of this protocol at `memory:stock`.
struct LineEndpoint(Network, Tasks);

#[async_trait::async_trait]
impl Endpoint for LineEndpoint {
    fn address(&self) -> String {
        "memory:stock".to_owned()
    }

    fn call(&self, text: &'static str) -> Invocation {
        let mut call = Invocation::new(&LINE, Target::new("stock", Operation::from_static("Count")));
        call.body = Body::full(text);
        call
    }

    async fn start(&mut self, handler: Handler) {
        self.1 = Tasks::new();
        let (mut listener, tasks) = (self.0.bind("memory:stock").await.unwrap(), self.1.clone());
        self.1.spawn(async move {
            while let Ok(stream) = listener.accept().await {
                tasks.spawn(answer(stream, handler.clone()));
            }
        });
    }

    async fn stop(&mut self) {
        self.1.end(Duration::from_secs(1)).await;
    }

    fn is_watched(&self) -> bool {
        false
    }
}

/// Answers one call, unless the caller disconnects before.
async fn answer(stream: Stream, handler: Handler) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let mut left = String::new();
    let said = tokio::select! {
        said = handler.handle(line.as_bytes()) => said,
        _ = stream.read_line(&mut left) => return,
    };
    stream.write_all(format!("OK||{said}\n").as_bytes()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_transport_of_ones_own_keeps_the_contract() {
    let network = Network::default();
    let endpoint = LineEndpoint(network.clone(), Tasks::new());
    contract::transport::transport(LineTransport(network), endpoint).await;
}
