//! Users' own parts of the pipeline: layers at named stages, pickers, byte transports.
use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use chassis::{
    BoxError, CallError, Code, Error, Failed, Invocation, Next, Reason, Reply, Stage, from_fn,
    http::connector::{Acceptor, Connector, Network, Stream},
    layer::balance::{Candidates, Picker},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower::{Layer, Service, timeout::TimeoutLayer};

use crate::mesh::{Act, Ask, Mesh, Wire, both};

/// The names of passed layers, in order.
type Log = Arc<Mutex<Vec<&'static str>>>;

/// A plain tower layer: records its name and passes the call on.
#[derive(Clone)]
struct Note(&'static str, Log);

/// The service of [`Note`].
#[derive(Clone)]
struct Noted<S> {
    inner: S,
    note: Note,
}

impl<S> Layer<S> for Note {
    type Service = Noted<S>;
    fn layer(&self, inner: S) -> Noted<S> {
        Noted { inner, note: self.clone() }
    }
}

impl<S: Service<Invocation>> Service<Invocation> for Noted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: Invocation) -> S::Future {
        self.note.1.lock().unwrap().push(self.note.0);
        self.inner.call(call)
    }
}

/// The same as an async function.
fn noting<E: CallError>(
    name: &'static str,
    log: &Log,
) -> impl Fn(Invocation, Next<E>) -> chassis::BoxFuture<'static, Result<Reply, E>> + use<E> {
    let log = log.clone();
    move |call, next| {
        log.lock().unwrap().push(name);
        Box::pin(async move { next.run(call).await })
    }
}

both! {
    /// Tower layers and async functions, at every stage: each runs at its stage, as often as the stage does.
    async fn layers_stand_where_they_are_put(wire: Wire) {
        let (mesh, log) = (Mesh::new(), Log::default());
        let of = |name| Note(name, log.clone());
        let (server, server_fn) = (of("server call"), noting("server fn", &log));
        let (handler, handler_fn) = (of("handler"), noting("handler fn", &log));
        let plan = mesh.server("stock", "stock-1").with(|builder| {
            let builder = builder.layer(Stage::ServerCall, "server-call", server);
            let builder = builder.layer(Stage::ServerCall, "server-fn", from_fn(server_fn));
            let builder = builder.layer(Stage::Handler, "handler", handler);
            builder.layer(Stage::Handler, "handler-fn", from_fn(handler_fn))
        });
        let stock = plan.start().await;
        let (call, call_fn) = (of("call"), noting("call fn", &log));
        let (attempt, attempt_fn) = (of("attempt"), noting("attempt fn", &log));
        let (node, node_fn) = (of("node"), noting("node fn", &log));
        let (only, only_fn) = (of("of ledger"), noting("of ledger", &log));
        let plan = mesh.server("tests", "tests").with(|builder| {
            let builder = builder.layer(Stage::Call, "call", call).layer(Stage::Call, "call-fn", from_fn(call_fn));
            let builder = builder.layer(Stage::Call.of("ledger"), "only", only);
            let builder = builder.layer(Stage::Node.of("ledger"), "only-fn", from_fn(only_fn));
            let builder = builder.layer(Stage::Attempt, "attempt", attempt);
            let builder = builder.layer(Stage::Attempt, "attempt-fn", from_fn(attempt_fn));
            builder.layer(Stage::Node, "node", node).layer(Stage::Node, "node-fn", from_fn(node_fn))
        });
        let caller = plan.caller().await;
        stock.does_next([Act::Fail(Code::Unavailable)]);
        assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
        let served = ["server call", "server fn", "handler", "handler fn"];
        let attempt = [&["attempt", "attempt fn", "node", "node fn"][..], &served].concat();
        let expected = [&["call", "call fn"][..], &attempt, &attempt].concat();
        assert_eq!(*log.lock().unwrap(), expected);

        let [out, _] = caller.app.chains("stock");
        assert_eq!(
            out,
            "route → trace → metrics → [call] → [call-fn] → fallback → deadline → rate_limit → concurrency → \
             message_limits → fault(call) → breaker → retry → [attempt] → [attempt-fn] → fault(attempt) → balance → attempt → \
             [node] → [node-fn] → connect"
        );
        let [out, _] = caller.app.chains("ledger");
        assert!(out.contains("[call-fn] → [only] → fallback") && out.contains("[only-fn] → [node]"), "{out}");
        log.lock().unwrap().clear();
        caller.call(wire, Ask::to("ledger")).await.refused(Reason::UnknownService);
        assert_eq!(log.lock().unwrap()[..3], ["call", "call fn", "of ledger"]);
    }
}

async fn impatient_at<E: CallError>(wire: Wire, stage: Stage<E>) {
    let mesh = Mesh::new();
    let (stock, _ledger) = (mesh.start("stock", "stock-1").await, mesh.start("ledger", "ledger-1").await);
    stock.does(Act::Hang);
    let caller = mesh.server("tests", "tests").config("outbound: { defaults: { retry: off } }");
    let impatient = TimeoutLayer::new(Duration::from_millis(50));
    let caller = caller.with(move |builder| builder.layer(stage.of("stock"), "impatient", impatient));
    let caller = caller.caller().await;
    let outcome = caller.call(wire, Ask::to("stock")).await;
    outcome.refused(Reason::DeadlineExceeded);
    assert_eq!((outcome.took.as_millis(), outcome.maybe_executed), (50, Some(true)), "{stage:?}");
    assert!(caller.call(wire, Ask::to("ledger")).await.is_ok());
}

both! {
    /// Tower's own layers work unchanged, although their errors are boxed: at each stage, for one service.
    async fn a_time_out_of_towers_is_one(wire: Wire) {
        let impatient = || TimeoutLayer::new(Duration::from_millis(50));
        impatient_at(wire, Stage::Call).await;
        impatient_at(wire, Stage::Attempt).await;
        impatient_at(wire, Stage::Node).await;
        for stage in [Stage::ServerCall, Stage::Handler] {
            let mesh = Mesh::new();
            let stock = mesh.server("stock", "stock-1");
            let stock = stock.with(move |builder| builder.layer(stage, "impatient", impatient())).start().await;
            stock.does(Act::Hang);
            let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
            let outcome = caller.call(wire, Ask::to("stock")).await;
            assert_eq!((outcome.code, outcome.took.as_millis()), (Code::DeadlineExceeded, 50), "{stage:?} {outcome:?}");
        }
    }
}

both! {
    /// A layer changes calls and answers, refuses, answers itself, waits.
    async fn layers_do_as_they_like(wire: Wire) {
        let mesh = Mesh::new();
        let plan = mesh.server("stock", "stock-1").with(|builder| {
            builder.layer(Stage::Handler, "auth", from_fn(async |call: Invocation, next: Next| {
                match call.metadata.get("x-token").is_some_and(|token| token == "s3cret") {
                    true => next.run(call).await,
                    false => {
                        let error = Error::local(Reason::Internal, "who are you?").with_code(Code::PermissionDenied);
                        Err(call.refuse(error.with_rule("auth")))
                    }
                }
            }))
        });
        let stock = plan.start().await;
        let stranger = mesh.caller("").await;
        let outcome = stranger.call(wire, Ask::to("stock")).await;
        assert_eq!((outcome.code, outcome.rule.as_deref()), (Code::PermissionDenied, Some("auth")), "{outcome:?}");
        assert_eq!((outcome.maybe_executed, stock.executed()), (Some(false), 0));

        let plan = mesh.server("tests", "tests").config("outbound: { defaults: { retry: { per_try: 20ms } } }");
        let plan = plan.with(|builder| {
            let builder = builder.layer(Stage::Call, "token", from_fn(async |mut call: Invocation, next: Next| {
                call.metadata.insert("x-token", http::HeaderValue::from_static("s3cret"));
                let mut reply = next.run(call).await?;
                reply.metadata.insert("x-seen", http::HeaderValue::from_static("yes"));
                Ok(reply)
            }));
            // A wait outside the node: it takes no attempt's time.
            builder.layer(Stage::Attempt.of("stock"), "slowly", from_fn(async |call: Invocation, next: Next<Failed>| {
                tokio::time::sleep(Duration::from_millis(50)).await;
                next.run(call).await
            }))
        });
        let caller = plan.caller().await;
        let outcome = caller.call(wire, Ask::to("stock")).await;
        assert_eq!((outcome.by(), outcome.header("x-seen")), ("stock-1", Some("yes")));
        assert_eq!((outcome.took.as_millis(), stock.executed()), (50, 1));
    }
}

/// Sends each user to an instance of their own, while it is available.
#[derive(Clone)]
struct ByUser;

impl Picker for ByUser {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let user = candidates.subject().metadata.get("x-user").map_or(&b""[..], |user| user.as_bytes());
        let count = candidates.nodes().len();
        let home = user.iter().map(|byte| usize::from(*byte)).sum::<usize>() % count;
        (home..home + count).map(|i| i % count).find(|i| candidates.is_available(*i)).unwrap_or(home)
    }
}

both! {
    async fn a_picker_is_named_in_the_settings(wire: Wire) {
        let mesh = Mesh::new();
        let mut stocks = Vec::new();
        for n in 0..3 {
            stocks.push(mesh.start("stock", &format!("stock-{n}")).await);
        }
        let by_user = "outbound: { services: { stock: { balance: by-user } } }";
        let plan = mesh.server("tests", "tests").config(by_user).with(|builder| builder.picker("by-user", ByUser));
        let caller = plan.caller().await;
        // Until all are connected, a user may be sent to another one.
        for _ in 0..10 {
            assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let ask = |user: &str| Ask::to("stock").header("x-user", user);
        let mut homes = Vec::new();
        for user in ["a", "b", "c"] {
            let home = caller.call(wire, ask(user)).await.by().to_owned();
            for _ in 0..20 {
                assert_eq!(caller.call(wire, ask(user)).await.by(), home, "{user}");
            }
            homes.push(home);
        }
        homes.sort();
        assert_eq!(homes, ["stock-0", "stock-1", "stock-2"]);

        let refused = caller.push("outbound: { services: { stock: { balance: by-usr } } }").await.refused();
        assert!(refused.iter().any(|line| line.contains("by-usr") && line.contains("by-user")), "{refused:?}");
        assert_eq!(caller.call(wire, ask("a")).await.by(), caller.call(wire, ask("a")).await.by());

        caller.push("outbound: { services: { stock: { balance: round_robin } } }").await.applied();
        let before = stocks.iter().map(|stock| stock.executed()).collect::<Vec<_>>();
        for _ in 0..30 {
            assert!(caller.call(wire, ask("a")).await.is_ok());
        }
        let counts: Vec<_> = stocks.iter().zip(before).map(|(stock, before)| stock.executed() - before).collect();
        assert_eq!(counts, [10, 10, 10]);
    }
}

/// Stands for TLS: without the key the bytes on the wire are unreadable.
struct Veiled {
    stream: Stream,
    key: u8,
}

/// Encodes the connections that it opens or accepts.
#[derive(Clone)]
struct Veil(Network, u8);

impl AsyncRead for Veiled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (key, before) = (self.key, to.filled().len());
        let polled = Pin::new(&mut self.stream).poll_read(cx, to);
        to.filled_mut()[before..].iter_mut().for_each(|byte| *byte ^= key);
        polled
    }
}

impl AsyncWrite for Veiled {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let veiled: Vec<_> = bytes.iter().map(|byte| byte ^ self.key).collect();
        Pin::new(&mut self.stream).poll_write(cx, &veiled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Veil {
    fn over(&self, stream: Stream) -> Stream {
        let (peer, key) = (stream.peer().clone(), self.1);
        Stream::new(Veiled { stream, key }, peer)
    }
}

#[async_trait::async_trait]
impl Connector for Veil {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        Ok(self.over(self.0.connect(address).await?))
    }
}

#[async_trait::async_trait]
impl Acceptor for Veil {
    async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        Ok(self.over(stream))
    }
}

/// The place of TLS, on both sides.
#[tokio::test(start_paused = true)]
async fn bytes_go_through_a_connector_and_an_acceptor() {
    let mesh = Mesh::new();
    let veil = Veil(mesh.network.clone(), 0x5a);
    let (app, _source) = mesh.server("stock", "stock-1").build().await;
    let hello = axum::routing::get(|| async { "hello" });
    let running =
        app.acceptor(veil.clone()).serve_http(axum::Router::new().route("/", hello)).start().await.unwrap();
    let caller = mesh.server("tests", "tests").with(|builder| builder.connector(veil)).caller().await;
    let answer = caller.app.http("stock").get("/").send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "hello");
    let plain = mesh.caller("").await;
    let failed: Result<_, BoxError> = plain.app.http("stock").get("/").send().await.map_err(Into::into);
    assert!(failed.is_err(), "no connection without the key");
    running.stop().await;
}
