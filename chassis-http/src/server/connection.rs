//! One connection, from accept to its end.
use std::{
    convert::Infallible,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use chassis_core::{BoxError, had_waited, layer::panic::caught, tasks::WakeGated};
use http::{Extensions, HeaderMap, HeaderValue, Request, Response, StatusCode, header::CONNECTION};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{
    CLOSE_GRACE, Port,
    activity::{Act, Activity, InFlight, Watch},
    body::{ServerBody, Tracked},
    head::{Refused, switches_no_protocol},
    io::{Observer, Opened, Opening, Version},
    received::Received,
    service::{Answer, Connected},
};
use crate::{
    Problem,
    h1::Http1,
    h2::{Abuse, FrameMonitor, HeaderLimit, Http2, KeepAlive, ReadBudget, refusal},
    hop,
    net::{Hangup, Peer, Stream},
    wire::GRPC_TIMEOUT,
};

/// The requests of one connection.
pub(crate) struct Requests {
    port: Arc<Port>,
    connected: Connected,
    /// Contains only the connection's extensions.
    extensions: Extensions,
    activity: Arc<Activity>,
}

/// An answer that is being computed.
pub(crate) struct Answering {
    answer: Option<Answer>,
    in_flight: Option<InFlight>,
    /// Over HTTP/1.1 only hyper writes connection-specific fields.
    is_h1: bool,
}

/// A connection that can be asked to close.
pub(crate) trait Graceful: Future<Output = Result<(), BoxError>> {
    /// How long an idle connection of a draining server still takes requests. A protocol without a way to refuse one
    /// that is on its way needs this: the client could not tell whether it was executed.
    const LINGER: Duration;

    fn ask(self: Pin<&mut Self>);
}

/// Serves `stream` until its end.
pub(crate) async fn serve(port: Arc<Port>, activity: Arc<Activity>, stream: Stream) {
    let mut opening = Opening::new();
    let begun = Instant::now();
    let Some((stream, version)) = open(&port, &activity, stream, &mut opening).await else { return };
    let peer = stream.peer().clone();
    let connected = Connected::new(peer.clone(), port.name.clone(), port.config.max_body.get());
    let mut extensions = Extensions::new();
    extensions.insert(connected.clone());
    let requests = Requests { port: port.clone(), connected, extensions, activity: activity.clone() };
    let (ended, returned) = match version {
        Version::H1 => {
            activity.head_bytes();
            let stream = stream.watched();
            let hangup = stream.hangup();
            let (io, returned) = Opened::new(stream, opening, Observer::Http1(activity.clone()));
            let connection = Http1::new(&port.config, &hangup, io, requests);
            (watch(&port, &activity, &peer, begun, hangup, connection).await, returned)
        }
        Version::H2 => {
            let keep_alive = Arc::new(KeepAlive::new());
            let read_budget = ReadBudget::default();
            let limit = HeaderLimit::default();
            let monitor =
                FrameMonitor::new(keep_alive.clone(), read_budget.clone(), activity.clone(), limit.clone());
            let (io, returned) = Opened::new(stream, opening, Observer::Http2(monitor));
            let opened = Http2::begin(&port, io, keep_alive, read_budget, limit, requests);
            let connection = timeout(port.config.header_timeout.get(), opened);
            let Ok(Ok(connection)) = connection.await else { return };
            // Incoming bytes over HTTP/2 are always read, to their end.
            (watch(&port, &activity, &peer, begun, Hangup::default(), connection).await, returned)
        }
    };
    if ended {
        returned.close(CLOSE_GRACE, activity.streams.abuse().is_some()).await;
    }
}

/// Performs TLS, if configured, and reads the first bytes. A draining server waits for them as long as for a request on
/// an idle connection over HTTP/1.1: the peer may have sent its first one before it knew of the drain.
async fn open(
    port: &Port,
    activity: &Activity,
    stream: Stream,
    opening: &mut Opening,
) -> Option<(Stream, Version)> {
    let config = &port.config;
    let opened = async {
        let mut stream = match &port.acceptor {
            Some(acceptor) => {
                let stream = stream.watched();
                let hangup = stream.hangup();
                let accepted = timeout(config.handshake_timeout.get(), acceptor.accept(stream));
                accepted.await.ok()?.ok()?.with_hangup(hangup)
            }
            None => stream,
        };
        let version = timeout(config.header_timeout.get(), opening.read(&mut stream)).await.ok()?.ok()??;
        Some((stream, version))
    };
    let late = async {
        port.draining.cancelled().await;
        activity.close_after_answers(); // also behind an answer that needs no wait
        sleep(Http1::LINGER).await;
    };
    tokio::select! {
        biased;
        opened = opened => opened,
        () = late => None,
        () = activity.evicted() => None,
    }
}

/// Runs the connection, and ends it when its watch decides so. `false` if it had to be cut.
///
/// Only `hangup` notices a peer that disconnects while its bytes are not read: a body that the handler does not
/// use, or another request behind this one. Answers that need no wait are sent nevertheless.
async fn watch<C: Graceful>(
    port: &Port,
    activity: &Activity,
    peer: &Peer,
    begun: Instant,
    hangup: Hangup,
    connection: C,
) -> bool {
    let mut connection = pin!(connection);
    let can_leave = hangup.is_known();
    let mut hangup = WakeGated::new(hangup.wait(port.config.half_close));
    let mut has_left = false;
    let mut left_in_vain = poll_fn(|cx| {
        if !has_left {
            ready!(Pin::new(&mut hangup).poll(cx));
            has_left = true;
        }
        if activity.in_flight() > 0 { Poll::Ready(()) } else { Poll::Pending }
    });
    let mut draining = WakeGated::new(async {
        port.draining.cancelled().await;
        activity.close_after_answers();
        if !C::LINGER.is_zero() {
            sleep(C::LINGER).await;
        }
    });
    let mut is_draining = false;
    let mut evicted = port.evicts_idle.then(|| WakeGated::new(activity.evicted()));
    let mut watch = Watch::new(begun, &port.config, &port.random);
    let mut look = WakeGated::new(sleep_until(begun));
    loop {
        let act = tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tell_of_malformed(port, &*error);
                    tracing::debug!(port = &*port.name, error, "connection");
                }
                return true;
            }
            () = &mut left_in_vain, if can_leave => {
                tracing::debug!(port = &*port.name, "the peer has left before its answer");
                return false;
            }
            () = &mut draining, if !is_draining => {
                is_draining = true;
                watch.drain(Instant::now())
            }
            () = &mut look => watch.look(Instant::now(), activity),
            () = room_is_needed(&mut evicted) => {
                evicted = None;
                match activity.in_flight() {
                    0 => Act::Close,
                    _ => watch.drain(Instant::now()), // a request that has arrived meanwhile is answered
                }
            }
        };
        match act {
            Act::Wait(at) => look = WakeGated::new(sleep_until(at)),
            Act::Ask(at) => {
                connection.as_mut().ask();
                look = WakeGated::new(sleep_until(at));
            }
            Act::Close => return false,
            Act::CutOff => {
                port.closed_for(Abuse::SlowReader, peer);
                return false;
            }
        }
    }
}

/// Resolves when the connection has to make room for another one; never for a server that evicts none.
async fn room_is_needed(evicted: &mut Option<WakeGated<impl Future<Output = ()>>>) {
    match evicted {
        Some(evicted) => evicted.await,
        None => std::future::pending().await,
    }
}

/// hyper answers a head that it cannot parse with a status alone, and closes the connection.
#[cold]
fn tell_of_malformed(port: &Port, error: &(dyn std::error::Error + 'static)) {
    let Some(error) = error.downcast_ref::<hyper::Error>().filter(|error| error.is_parse()) else { return };
    let (status, why) = match error.is_parse_too_large() {
        true => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "; `server.max_header_list` bounds it"),
        false => (StatusCode::BAD_REQUEST, ""),
    };
    port.refusals.log(&port.name, status, &format!("{error}{why}"));
}

// === impl Requests ===

impl Requests {
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// The timeout of the caller of a request with these headers, if they contain one.
    pub(crate) fn allowed(&self, headers: &HeaderMap) -> Option<Duration> {
        let grpc = headers.get(GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.to_str().ok()?));
        let rest = || headers.get(&self.port.config.timeout_header.0)?.to_str().ok()?.trim().parse().ok();
        grpc.or_else(|| rest().map(Duration::from_millis))
    }

    /// Counts streams that were reset because their peer exceeded a limit.
    #[cold]
    pub(crate) fn reset_for(&self, abuse: Abuse, streams: usize) {
        self.port.reset_for(abuse, streams);
    }

    /// Counts and logs that the connection is closed for `abuse`.
    pub(crate) fn closed_for(&self, abuse: Abuse) {
        self.port.closed_for(abuse, self.connected.peer());
    }

    pub(crate) fn answer(&self, mut request: Request<Received>, is_grpc: bool) -> Answering {
        let in_flight = Some(self.activity.begin());
        // Copying the common extensions costs half of inserting them again.
        match request.extensions_mut() {
            none if none.is_empty() => *none = self.extensions.clone(),
            some => drop(some.insert(self.connected.clone())),
        }
        let answer = catch_unwind(AssertUnwindSafe(|| self.port.mux.call(request, is_grpc))).ok();
        Answering { answer, in_flight, is_h1: false }
    }

    /// Refuses a request before any service sees it.
    #[cold]
    pub(crate) fn refuse(&self, refused: Refused, is_grpc: bool) -> Answering {
        self.port.refusals.log(&self.port.name, refused.status(), refused.words());
        let answer: Answer = Box::pin(std::future::ready(refused.into_response(is_grpc)));
        Answering { answer: Some(answer), in_flight: Some(self.activity.begin()), is_h1: false }
    }

    /// Refuses a request whose headers are `size` bytes.
    #[cold]
    pub(crate) fn too_large(&self, request: Request<Received>, is_grpc: bool, size: usize) -> Answering {
        let most = self.port.config.max_header_list;
        let words =
            format!("the headers of the request are {size} bytes, `server.max_header_list` is {most}");
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        self.port.refusals.log(&self.port.name, status, &words);
        let said = refusal(status, 8, words, is_grpc);
        // Some of the body is still read, as for every refused request.
        drop(request);
        let answer: Answer = Box::pin(std::future::ready(said));
        Answering { answer: Some(answer), in_flight: Some(self.activity.begin()), is_h1: false }
    }
}

/// A timeout in gRPC's form, such as `100m`.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = number.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    unit.checked_mul(number)
}

// === impl Answering ===

impl Answering {
    /// The same answer for HTTP/1.1, which hyper writes.
    pub(crate) fn over_h1(self) -> Self {
        Answering { is_h1: true, ..self }
    }

    /// Records that the peer cancelled its stream `number`, which began at `began`.
    #[cold]
    pub(crate) fn reset(&mut self, number: usize, began: Instant) {
        let answer = self.answer.take();
        let had_waited = had_waited(|| drop(answer));
        let now = Instant::now();
        if let Some(in_flight) = &self.in_flight
            && !had_waited
        {
            in_flight.streams().reset_early(number, now.saturating_duration_since(began), now);
        }
    }
}

fn panicked(words: &str) -> Response<ServerBody> {
    tracing::error!("a handler panicked: {words}");
    let problem = Problem::new(StatusCode::INTERNAL_SERVER_ERROR).detail("the handler panicked");
    problem.into_http().map(ServerBody::from)
}

impl Future for Answering {
    type Output = Result<Response<Tracked>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The pipeline has its own guard; this one covers services without a pipeline.
        let answered = match &mut self.answer {
            Some(answer) => caught(|| answer.as_mut().poll(cx)),
            None => Err("before it answered".to_owned()),
        };
        let mut response = match answered {
            Ok(polled) => ready!(polled),
            Err(words) => panicked(&words),
        };
        // hyper holds a head back until it has polled the body: after a panic the caller would get no answer.
        if self.is_h1 && !response.body_mut().begins_well(cx) {
            response = panicked("its answer, at once");
        }
        self.answer = None;
        if response.status().is_informational() {
            // hyper would hand the connection over, but no code takes it.
            response = switches_no_protocol();
        }
        if self.is_h1 {
            hop::strip_answer(response.status(), response.headers_mut());
        }
        let in_flight = self.in_flight.take().expect("a future is not polled after its end");
        if self.is_h1 && in_flight.is_last() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| Tracked::new(body, in_flight))))
    }
}
