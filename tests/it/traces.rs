//! The context along a chain of hops: the trace, baggage, chosen headers; and the spans of a call.
use std::{
    cell::RefCell,
    sync::{Arc, Once},
};

use chassis::Code;
use http::HeaderMap;
use tracing::{span::Attributes, subscriber::Interest};
use tracing_subscriber::{
    layer::{Context as LayerContext, SubscriberExt},
    registry::LookupSpan,
};

use crate::mesh::{Act, Ask, Mesh, Wire, both};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// Trace and span of a `traceparent`.
#[track_caller]
fn parent(headers: &HeaderMap) -> (String, String) {
    let value = headers.get("traceparent").expect("it is part of a trace").to_str().unwrap();
    let parts: Vec<_> = value.split('-').collect();
    assert_eq!((parts.len(), parts[0], parts[3]), (4, "00", "01"), "{value}");
    (parts[1].to_owned(), parts[2].to_owned())
}

both! {
    async fn a_trace_goes_through_all_hops(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let stock = mesh.server("stock", "stock-1").calls(&["ledger"]).start().await;
        let caller = mesh.caller("").await;
        let ask = Ask::to("stock")
            .header("traceparent", PARENT)
            .header("tracestate", "vendor=1")
            .header("baggage", "tenant=acme")
            .via(&[(wire, "ledger")]);
        let outcome = caller.call(wire, ask).await;
        assert_eq!(outcome.hops, ["stock-1", "ledger-1"]);
        let mut spans = vec!["00f067aa0ba902b7".to_owned()];
        for hop in [&stock, &ledger] {
            let headers = hop.last().headers;
            let (trace, span) = parent(&headers);
            assert_eq!(trace, TRACE);
            assert!(!spans.contains(&span), "each hop has a span of its own");
            spans.push(span);
            assert_eq!(headers["tracestate"], "vendor=1");
            assert_eq!(headers["baggage"], "tenant=acme");
        }
    }
}

both! {
    /// Two parents count as none, and unknown flags are not sent to the next hop.
    async fn what_is_no_parent_is_not_handed_on(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        let two = || {
            let other = PARENT.replace("4bf9", "4bf8");
            Ask::to("stock").header("traceparent", PARENT).header("traceparent", &other).header("tracestate", "a=1")
        };
        assert!(caller.call(wire, two()).await.is_ok());
        let headers = stock.last().headers;
        assert!(!headers.contains_key("traceparent") && !headers.contains_key("tracestate"), "{headers:?}");
        caller.push("telemetry: { sample: 100% }").await.applied();
        assert!(caller.call(wire, two()).await.is_ok());
        let headers = stock.last().headers;
        assert_ne!(&parent(&headers).0[4..], &TRACE[4..], "a new trace");
        assert!(!headers.contains_key("tracestate"));
        let flagged = PARENT.replace("-01", "-ff");
        assert!(caller.call(wire, Ask::to("stock").header("traceparent", &flagged)).await.is_ok());
        let headers = stock.last().headers;
        let said = headers["traceparent"].to_str().unwrap();
        assert!(said.contains(TRACE) && said.ends_with("-03"), "{said}");
    }
}

both! {
    async fn baggage_needs_no_trace(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let _stock = mesh.server("stock", "stock-1").calls(&["ledger"]).start().await;
        let caller = mesh.caller("").await;
        let ask = Ask::to("stock").header("baggage", "tenant=acme").via(&[(wire, "ledger")]);
        assert!(caller.call(wire, ask).await.is_ok());
        let headers = ledger.last().headers;
        assert_eq!(headers.get("baggage").expect("it was handed on"), "tenant=acme");
        assert!(!headers.contains_key("traceparent"), "no trace began");
    }
}

both! {
    async fn baggage_of_ones_own_is_kept(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let stock = mesh.server("stock", "stock-1").calls(&["ledger"]).start().await;
        stock.does(Act::Run(Arc::new(|echo, seen| {
            Box::pin(async move {
                let ask = Ask::to("ledger").header("baggage", "tenant=other");
                assert!(echo.clients("ledger").call(seen.wire, ask).await.is_ok());
                Ok(())
            })
        })));
        let caller = mesh.caller("").await;
        let ask = Ask::to("stock").header("traceparent", PARENT).header("baggage", "tenant=acme");
        assert!(caller.call(wire, ask).await.is_ok());
        let headers = ledger.last().headers;
        assert_eq!(headers.get_all("baggage").iter().collect::<Vec<_>>(), ["tenant=other"]);
        assert_eq!(parent(&headers).0, TRACE);
    }
}

both! {
    async fn a_share_of_calls_begins_a_trace(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        assert!(!stock.last().headers.contains_key("traceparent"), "none does by default");
        caller.push("telemetry: { sample: 100% }").await.applied();
        assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        let first = parent(&stock.last().headers).0;
        assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        assert_ne!(parent(&stock.last().headers).0, first);
    }
}

both! {
    async fn chosen_headers_go_on(wire: Wire) {
        let mesh = Mesh::new();
        let ledger = mesh.start("ledger", "ledger-1").await;
        let stock = mesh.server("stock", "stock-1").config("propagate: [x-tenant]").calls(&["ledger"]);
        let stock = stock.start().await;
        let caller = mesh.caller("").await;
        let ask = || {
            Ask::to("stock")
                .header("x-tenant", "acme")
                .header("x-tenant", "twice")
                .header("x-other", "stays")
                .via(&[(wire, "ledger")])
        };
        assert!(caller.call(wire, ask()).await.is_ok());
        let headers = ledger.last().headers;
        assert_eq!(headers.get_all("x-tenant").iter().collect::<Vec<_>>(), ["acme", "twice"]);
        assert!(!headers.contains_key("x-other"));

        stock.push("propagate: [x-other]").await.applied();
        assert!(caller.call(wire, ask()).await.is_ok());
        let headers = ledger.last().headers;
        assert_eq!(headers["x-other"], "stays");
        assert!(!headers.contains_key("x-tenant"));
    }
}

thread_local! {
    /// The spans opened by the test of this thread, with their parents, while it records.
    static SPANS: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Records spans for the test in whose thread they are opened.
struct Spans;

impl<S> tracing_subscriber::Layer<S> for Spans
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    /// Checked each time, because the result depends on the thread.
    fn register_callsite(&self, _: &'static tracing::Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: LayerContext<'_, S>) -> bool {
        metadata.target().starts_with("chassis::") && SPANS.with_borrow(Option::is_some)
    }

    fn on_new_span(&self, span: &Attributes<'_>, _: &tracing::Id, context: LayerContext<'_, S>) {
        let parent = context.lookup_current().map_or("", |parent| parent.name());
        let name = format!("{parent}/{}", span.metadata().name());
        SPANS.with_borrow_mut(|spans| spans.iter_mut().for_each(|spans| spans.push(name.clone())));
    }
}

/// The spans that `work` opens. One subscriber for all threads: with one per thread, tracing asks only the
/// first thread at a callsite, and uses the result for all.
async fn spans_of(work: impl Future<Output = ()>) -> Vec<String> {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| {
        let subscriber = tracing_subscriber::registry().with(Spans);
        tracing::subscriber::set_global_default(subscriber).expect("no other subscriber is set");
    });
    SPANS.set(Some(Vec::new()));
    work.await;
    SPANS.take().unwrap_or_default()
}

both! {
    async fn each_attempt_is_a_span_of_its_own(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        stock.does_next([Act::Fail(Code::Unavailable)]);
        let ask = Ask::to("stock").safe().header("traceparent", PARENT);
        let spans = spans_of(async {
            assert!(caller.call(wire, ask).await.is_ok());
        });
        let spans = spans.await;
        let [first, second] = <[_; 2]>::try_from(stock.seen()).unwrap().map(|seen| parent(&seen.headers));
        assert_eq!((first.0.as_str(), second.0.as_str()), (TRACE, TRACE));
        assert_ne!(first.1, second.1);
        let of = |name: &str| spans.iter().filter(|span| *span == name).count();
        assert_eq!((of("call/attempt"), of("/call")), (2, 3), "one call out, two in: {spans:?}");
    }
}
