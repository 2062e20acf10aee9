//! Foreign gateways that forward the refusal of the service behind them.
//!
//! A refusal is only true for the hop of the service that refused: the gateway itself has executed the call.
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use bytes::Bytes;
use chassis::{
    Body, Code, Invocation, Next, Reason, Stage,
    http::connector::{Connector, Listener, MemoryNetwork},
    registry::Instance,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};

use crate::mesh::{Act, Ask, Mesh, Outcome, Server, Wire, all_well, both, until};

/// The headers that a gateway forwards to the service behind it, besides path and body.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Passes {
    /// Only those of its own client library.
    Nothing,
    /// The headers of the incoming request.
    Headers,
    /// Its authority too, and a header that names it.
    Everything(&'static str),
}

/// Counts incoming calls, then calls the service behind it, and answers with its status, headers and
/// trailers. Uses HTTP/2, which gRPC and REST have in common.
struct Gateway {
    booked: Arc<AtomicUsize>,
}

impl Gateway {
    /// The gateway is called `shop`; `stock-1` is behind it.
    fn start(mesh: &Mesh, wire: Wire, passes: Passes) -> Self {
        let network: MemoryNetwork = mesh.network.memory().clone();
        let mut listener = network.listen("gateway").unwrap();
        let booked = Arc::new(AtomicUsize::new(0));
        let count = booked.clone();
        tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                let (network, count) = (network.clone(), count.clone());
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        count.fetch_add(1, SeqCst);
                        tokio::spawn(relay(network.clone(), passes, request, respond));
                    }
                });
            }
        });
        let mut instance = Instance::new("shop", "gateway");
        instance.addresses =
            [(wire.protocol().to_owned(), "memory:gateway".to_owned())].into_iter().collect();
        mesh.registry.put(instance);
        Gateway { booked }
    }

    fn booked(&self) -> usize {
        self.booked.load(SeqCst)
    }
}

async fn relay(
    network: MemoryNetwork,
    passes: Passes,
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) {
    let (head, body) = request.into_parts();
    let stream = network.connect("memory:stock-1").await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    let driving = tokio::spawn(connection);
    let path = head.uri.path_and_query().unwrap().as_str();
    let authority = match passes {
        Passes::Everything(_) => "shop",
        Passes::Nothing | Passes::Headers => "127.0.0.1:8080",
    };
    let mut onward = Request::builder().method(head.method).uri(format!("http://{authority}{path}"));
    for (name, value) in &head.headers {
        let needed = ["content-type", "te", "content-length"].contains(&name.as_str());
        if needed || passes != Passes::Nothing {
            onward = onward.header(name, value);
        }
    }
    if let Passes::Everything(mark) = passes {
        onward = onward.header(mark, "10.0.0.7");
    }
    let (answer, mut to) = client.send_request(onward.body(()).unwrap(), false).unwrap();
    let (whole, _) = all_of(body).await;
    to.send_data(whole, true).unwrap();
    let (head, body) = answer.await.unwrap().into_parts();
    let is_whole = body.is_end_stream();
    let mut back = respond.send_response(Response::from_parts(head, ()), is_whole).unwrap();
    if !is_whole {
        let (whole, trailers) = all_of(body).await;
        match trailers {
            None => back.send_data(whole, true).unwrap(),
            Some(trailers) => {
                back.send_data(whole, false).unwrap();
                back.send_trailers(trailers).unwrap();
            }
        }
    }
    driving.abort();
}

async fn all_of(mut body: h2::RecvStream) -> (Bytes, Option<HeaderMap>) {
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        let _ = body.flow_control().release_capacity(data.len());
        whole.extend_from_slice(&data);
    }
    (whole.into(), body.trailers().await.unwrap())
}

/// One instance of `stock`, which admits one call at a time, with one in flight that the caller observes.
async fn full(mesh: &Mesh, wire: Wire) -> (Server, tokio::task::JoinHandle<Outcome>) {
    let stock = mesh.server("stock", "stock-1").config("inbound: { concurrency: 1 }").start().await;
    stock.does(Act::Hang);
    let busy = mesh.caller("").await;
    let held = busy.spawn(wire, Ask::to("stock"));
    until("it is full", || stock.seen().len() == 1).await;
    (stock, held)
}

const TO_HTTP2: &str = "client: { http_version: \"2\" }";

both! {
    /// A gateway has booked the order, and failed because a service behind it refused. Regression: every
    /// order was booked twice, and its circuit counted nothing.
    async fn an_order_is_booked_once(wire: Wire) {
        let everything = ["x-forwarded-for", "x-forwarded-proto", "x-real-ip"].map(Passes::Everything);
        for passes in [Passes::Nothing, Passes::Headers].into_iter().chain(everything) {
            let mesh = Mesh::new();
            let (_stock, held) = full(&mesh, wire).await;
            let gateway = Gateway::start(&mesh, wire, passes);
            let caller = mesh.caller(&format!("{TO_HTTP2}\noutbound: {{ defaults: {{ breaker: {{ min_calls: 20 }} }} }}")).await;
            let outcomes = caller.calls(wire, 20, || Ask::to("shop")).await;
            assert_eq!(gateway.booked(), 20, "{passes:?}");
            for outcome in &outcomes {
                assert_eq!(outcome.code, Code::Unavailable, "{outcome:?}");
                assert_ne!(outcome.maybe_executed, Some(false), "{outcome:?}");
                assert!(outcome.headers.get("x-chassis-refused").is_none(), "{outcome:?}");
            }
            // They are failures of the gateway like any others.
            caller.call(wire, Ask::to("shop")).await.refused(Reason::CircuitOpen);
            assert_eq!(gateway.booked(), 20);
            held.abort();
        }
    }
}

both! {
    /// A call that may be sent twice is retried, with the same result.
    async fn an_idempotent_call_is_retried_as_after_any_failure(wire: Wire) {
        let mesh = Mesh::new();
        let (_stock, held) = full(&mesh, wire).await;
        let gateway = Gateway::start(&mesh, wire, Passes::Nothing);
        let caller = mesh.caller(TO_HTTP2).await;
        let outcome = caller.call(wire, Ask::to("shop").safe()).await;
        assert_eq!((outcome.code, gateway.booked()), (Code::Unavailable, 2));
        held.abort();
    }
}

both! {
    /// A download through the gateway, refused with the same headers.
    async fn a_stream_is_opened_once(wire: Wire) {
        let mesh = Mesh::new();
        let (_stock, held) = full(&mesh, wire).await;
        let gateway = Gateway::start(&mesh, wire, Passes::Headers);
        let caller = mesh.caller(&format!("{TO_HTTP2}\noutbound: {{ defaults: {{ retry: {{ when: safe }} }} }}")).await;
        let refused = caller.download(wire, Ask::to("shop"), 3).await.err().expect("it is refused");
        assert_ne!(refused.maybe_executed, Some(false), "{refused:?}");
        // Over REST a download is a GET.
        let expected = match wire { Wire::Grpc => 1, Wire::Rest => 2 };
        assert_eq!(gateway.booked(), expected);
        let (parts, one) = tokio::sync::mpsc::channel(1);
        parts.send("one".to_owned()).await.unwrap();
        drop(parts);
        let refused = caller.upload(wire, Ask::to("shop"), one).await;
        assert_eq!((refused.code, gateway.booked()), (Code::Unavailable, expected + 1));
        held.abort();
    }
}

both! {
    /// A chassis service reports its own refusal and is believed: the call goes to another instance, and no
    /// node counts a failure.
    async fn a_refusal_by_the_service_itself_is_believed(wire: Wire) {
        for version in ["1", "2"] {
            let mesh = Mesh::new();
            let (full, held) = full(&mesh, wire).await;
            let other = mesh.start("stock", "stock-2").await;
            let settings = format!("client: {{ http_version: \"{version}\" }}\noutbound: {{ defaults: {{ balance: round_robin, retry: {{ backoff: 1ms, budget: off }} }} }}");
            let caller = mesh.server("web", "web").label("track", "canary").config(&settings).caller().await;
            all_well(&caller.calls(wire, 20, || Ask::to("stock")).await);
            assert_eq!((full.seen().len(), other.executed()), (1, 20));
            for node in caller.view(wire, "stock").nodes {
                assert_eq!(node.failure_share, 0.0, "{node:?}");
            }
            let retried = caller.metric(r#"chassis_retry_attempts_total{outcome="retried",service="stock"}"#);
            assert!(retried >= 9.0, "{retried}");
            held.abort();
        }
    }
}

/// A service in the middle that forwards its upstream's head has done its own work.
#[tokio::test(start_paused = true)]
async fn a_layer_that_passes_a_head_on_does_not_pass_the_refusal_on() {
    let mesh = Mesh::new();
    let booked = Arc::new(AtomicUsize::new(0));
    let count = booked.clone();
    let plan = mesh.server("shop", "shop-1").with(move |builder| {
        let books = chassis::from_fn(move |call: Invocation, _: Next| {
            count.fetch_add(1, SeqCst);
            // The headers of `stock`'s answer to this service.
            let head = [("x-chassis-refused", "OVERLOADED"), ("x-chassis-hop", "0 stock shop")];
            let head =
                head.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            let reply =
                call.answered(StatusCode::SERVICE_UNAVAILABLE, head.into_iter().collect(), Body::empty());
            std::future::ready(Ok(reply))
        });
        builder.layer(Stage::Handler, "books", books)
    });
    let _shop = plan.start().await;
    let outcome = mesh.caller("").await.call(Wire::Rest, Ask::to("shop")).await;
    assert_eq!((outcome.status, booked.load(SeqCst)), (Some(503), 1));
    assert_eq!((outcome.header("x-chassis-refused"), outcome.header("x-chassis-hop")), (None, None));
}
