//! HTTP/2 for servers: each stream is a call, in a task of its own.
//!
//! It uses `h2` directly, as the client does, and not hyper: an answer that is complete is sent at once, with
//! head, message and trailers, and needs no further poll.
mod goaway;
mod monitor;
mod pace;
mod streams;
mod windows;

use std::{
    cell::RefCell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use chassis_core::{BoxError, BoxFuture, tasks::WakeGated};
use h2::{
    Reason, RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, DATE},
    response,
};
use http_body::Body as _;
use tokio::time::{Instant, Sleep, sleep};

use self::{goaway::GoAway, pace::ReadPace};
pub(crate) use self::{
    monitor::FrameMonitor,
    streams::{PREMATURE, Streams},
    windows::Windows,
};
use super::{
    flood::Abuse,
    frames::HeaderLimit,
    halves::{Pump, length},
    headers,
    keep_alive::KeepAlive,
    read_budget::ReadBudget,
};
use crate::{
    Problem, hop,
    server::{
        Port, ServerBody,
        activity::shares,
        body::Tracked,
        connection::{Answering, Graceful, Requests},
        head::tidy_h2,
        io::Opened,
        received::Received,
        service::names_grpc,
    },
    wire::{GRPC_MEDIA_TYPE, GRPC_MESSAGE, GRPC_STATUS},
};

/// One connection. It ends with its last stream, when its peer does not answer pings, or when it is cut off.
pub(crate) struct Http2 {
    connection: Connection<Opened, Bytes>,
    requests: Requests,
    /// `Some` if the peer does not answer pings; `None` if it must be cut off.
    trouble: WakeGated<BoxFuture<'static, Option<BoxError>>>,
    keep_alive: Arc<KeepAlive>,
    read_budget: ReadBudget,
    /// Bytes of headers that the peer accepts.
    limit: HeaderLimit,
    /// Bytes of headers that this side accepts.
    max_header_list: u32,
    /// The limit of handlers that run or are being cancelled.
    max_handlers: usize,
    /// The number of resets at the last time when no new stream was waiting.
    resets: usize,
    pace: ReadPace,
    /// Nothing is read until then.
    pause: Option<Pin<Box<Sleep>>>,
    goaway: GoAway,
}

/// One stream: first its answer is computed, then it is sent. Both end early if the peer resets the stream.
struct Exchange {
    respond: SendResponse<Bytes>,
    state: State,
    dated: bool,
    /// Bytes of headers, and of trailers, that the peer accepts.
    most: u32,
    /// Its number on the connection, and when it began.
    number: usize,
    began: Instant,
}

enum State {
    Answering(Answering),
    Sending(Pump<Tracked>),
}

/// Handlers for each stream that a peer may have at once: some of the streams that were reset have not ended
/// yet.
const MAX_HANDLERS: usize = 4;

// === impl Http2 ===

impl Http2 {
    /// Performs the handshake on `io`, whose frames update `keep_alive` and `read_budget`.
    pub(crate) async fn begin(
        port: &Port,
        io: Opened,
        keep_alive: Arc<KeepAlive>,
        read_budget: ReadBudget,
        limit: HeaderLimit,
        requests: Requests,
    ) -> Result<Self, h2::Error> {
        let mut connection = builder(port).handshake(io).await?;
        let (interval, bound) = (port.config.keep_alive_interval.0, port.config.keep_alive_timeout.get());
        let ping = connection.ping_pong();
        let (pings, activity) = (keep_alive.clone(), requests.activity().clone());
        let trouble: BoxFuture<'static, Option<BoxError>> = Box::pin(async move {
            tokio::select! {
                biased;
                () = activity.streams.abused() => None,
                () = pings.timed_out(ping, interval, bound) => Some("the peer no longer answers pings".into()),
            }
        });
        let max_handlers = MAX_HANDLERS.saturating_mul(port.config.max_streams.get() as usize);
        let trouble = WakeGated::new(trouble);
        let max_header_list = port.config.max_header_list.as_u32();
        Ok(Http2 {
            connection,
            requests,
            trouble,
            keep_alive,
            read_budget,
            limit,
            max_header_list,
            max_handlers,
            resets: 0,
            pace: ReadPace::default(),
            pause: None,
            goaway: GoAway::default(),
        })
    }

    fn serve(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>, cx: &mut Context<'_>) {
        let streams = &self.requests.activity().streams;
        let (number, began) = (streams.begin(), self.keep_alive.last_received_tokio());
        if streams.resets() != self.resets && respond.poll_reset(cx).is_ready() {
            return self.skip(number, request.headers());
        }
        let (mut head, body) = request.into_parts();
        let (mut has_host, mut content_type) = (false, None);
        let size = headers::measure(&head.headers, |name, value| match name {
            "host" => has_host = true,
            "content-type" => content_type = content_type.or(Some(value)),
            _ => {}
        });
        let is_grpc = content_type.is_some_and(names_grpc);
        let size = headers::size_of_request(&head.method, &head.uri, size);
        let tidied = tidy_h2(&mut head, has_host);
        // gRPC does not use these headers.
        let (length, dated) = if is_grpc { (None, false) } else { (length(&head.headers), true) };
        let request = Request::from_parts(head, Received::h2(body, length, self.max_header_list));
        let answer = match tidied {
            _ if size > self.max_header_list as usize => self.requests.too_large(request, is_grpc, size),
            Ok(()) => self.requests.answer(request, is_grpc),
            Err(refused) => self.requests.refuse(refused, is_grpc),
        };
        // The task ends with its connection.
        let (state, most) = (State::Answering(answer), self.limit.get());
        tokio::spawn(Exchange { respond, state, dated, most, number, began });
    }

    /// Skips a stream that has already ended: no handler is called for it.
    #[cold]
    fn skip(&self, number: usize, headers: &HeaderMap) {
        let streams = &self.requests.activity().streams;
        match self.requests.allowed(headers).is_some_and(|allowed| allowed <= PREMATURE) {
            true => streams.over_its_time(Instant::now()),
            false => streams.reset_early(number, Duration::ZERO, Instant::now()),
        }
    }

    /// Whether the connection must be closed because its peer exceeds a limit.
    fn is_abused(&self) -> bool {
        let activity = self.requests.activity();
        if activity.in_flight() > self.max_handlers {
            activity.streams.give_up(Abuse::TooManyHandlers);
        }
        activity.streams.abuse().is_some()
    }

    /// Begins the next turn, unless reading is paused.
    fn begin_turn(&mut self, cx: &mut Context<'_>) {
        if let Some(pause) = &mut self.pause {
            if pause.as_mut().poll(cx).is_pending() {
                return;
            }
            self.pause = None;
        }
        self.read_budget.refill();
    }

    /// Pauses if most streams of the turn have already ended.
    fn end_turn(&mut self, cx: &mut Context<'_>) {
        if self.pause.is_some() {
            return;
        }
        let streams = &self.requests.activity().streams;
        let was_slow = self.pace.is_slow();
        let pause = self.pace.turn_over(streams.so_far(), || self.keep_alive.last_received_tokio().elapsed());
        if was_slow != self.pace.is_slow() {
            streams.set_slow(!was_slow);
        }
        if let Some(pause) = pause {
            self.read_budget.pause();
            self.pause = Some(Box::pin(sleep(pause)));
            // The end of the pause wakes the task.
            self.begin_turn(cx);
            if self.pause.is_none() {
                cx.waker().wake_by_ref();
            }
        }
    }

    /// Cuts the peer off; all its streams end.
    #[cold]
    fn cut_off(&mut self) {
        if let Some(abuse) = self.requests.activity().streams.abuse() {
            self.requests.closed_for(abuse);
        }
        self.goaway.cut_off(&mut self.connection);
    }

    /// h2 has its own bounds on floods, which are counted here.
    #[cold]
    fn failed(&self, error: h2::Error) -> BoxError {
        if goaway::is_of_flood(&error) {
            self.requests.activity().streams.give_up(Abuse::Frames);
            self.requests.closed_for(Abuse::Frames);
        }
        error.into()
    }
}

impl Future for Http2 {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.goaway.is_cut_off() {
            return this.goaway.poll_cut_off(&mut this.connection, cx);
        }
        let handed = this.requests.activity().windows.handed();
        // Polling for another call also reads.
        this.begin_turn(cx);
        while let Poll::Ready(accepted) = this.connection.poll_accept(cx) {
            match accepted {
                Some(Ok((request, respond))) => {
                    this.read_budget.spend_call();
                    // Streams arrive in the order of their numbers. After the newest one a further poll finds
                    // none: it would read and write to no effect, because the poll that found this one did both
                    // until it would block.
                    let is_newest = respond.stream_id().as_u32() == this.requests.activity().streams.newest();
                    this.serve(request, respond, cx);
                    if is_newest || this.is_abused() {
                        break;
                    }
                }
                Some(Err(error)) => return Poll::Ready(Err(this.failed(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let activity = this.requests.activity();
        if !activity.is_writing() {
            activity.windows.set_written(handed);
        }
        let streams = &activity.streams;
        this.resets = streams.resets();
        let slow = streams.take_slow();
        if slow > 0 {
            this.requests.reset_for(Abuse::SlowReader, slow);
        }
        this.end_turn(cx);
        match ready!(Pin::new(&mut this.trouble).poll(cx)) {
            Some(error) => Poll::Ready(Err(error)),
            None => {
                this.cut_off();
                this.goaway.poll_cut_off(&mut this.connection, cx)
            }
        }
    }
}

impl Graceful for Http2 {
    /// GOAWAY names the last request that is served.
    const LINGER: Duration = Duration::ZERO;

    fn ask(self: Pin<&mut Self>) {
        GoAway::announce(&mut self.get_mut().connection);
    }
}

fn builder(port: &Port) -> Builder {
    let config = &port.config;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(config.max_streams.get())
        // All calls of a client may exceed their deadlines while this process is too busy to read them: no
        // reason to close the connection, as h2 does from the twenty-first on. `streams.rs` counts the real
        // floods.
        .max_pending_accept_reset_streams(MAX_HANDLERS.saturating_mul(config.max_streams.get() as usize))
        // This crate enforces the limit itself: h2 would close the connection, or omit fields silently.
        .max_header_list_size(headers::read(config.max_header_list.as_u32()))
        .initial_window_size(config.stream_window.as_u32())
        .initial_connection_window_size(config.connection_window.as_u32())
        .max_send_buffer_size(shares(config).stream);
    builder
}

// === impl Exchange ===

impl Exchange {
    /// Sends the head; returns the pump that sends the rest, if there is any.
    fn answer(&mut self, response: Response<Tracked>) -> Option<Pump<Tracked>> {
        let (mut head, mut body) = response.into_parts();
        let size = hop::strip_h2(&mut head.headers);
        if headers::is_large(size, self.most) && !headers::fit_head(&mut head.headers, self.most) {
            (head, body) = self.unsayable(head, body);
        }
        if self.dated {
            head.headers.entry(DATE).or_insert_with(date);
        }
        let is_whole = body.is_end_stream();
        if let Some(length) = body.size_hint().exact().filter(|_| !is_whole) {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        match self.respond.send_response(Response::from_parts(head, ()), is_whole) {
            Ok(to) => (!is_whole).then(|| Pump::new(to, body, Reason::INTERNAL_ERROR, self.most)),
            Err(error) => {
                tracing::debug!(%error, "cannot answer");
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }

    /// The answer in place of one whose headers the peer does not accept.
    #[cold]
    fn unsayable(&self, head: response::Parts, body: Tracked) -> (response::Parts, Tracked) {
        let size = headers::size_of_answer(headers::size(&head.headers));
        let words = format!("the headers of the answer are {size} bytes, and the caller takes {}", self.most);
        tracing::warn!(size, most = self.most, "an answer's headers are larger than its caller takes");
        let (head, said) = refusal(StatusCode::INTERNAL_SERVER_ERROR, 13, words, !self.dated).into_parts();
        (head, body.replaced_by(said))
    }
}

/// A refusal in the form of HTTP, or in that of gRPC, which has a code for it.
pub(crate) fn refusal(status: StatusCode, code: u16, words: String, is_grpc: bool) -> Response<ServerBody> {
    if !is_grpc {
        return Problem::new(status).detail(words).into_http().map(ServerBody::from);
    }
    let mut response = Response::new(ServerBody::empty());
    *response.status_mut() = if status.is_server_error() { StatusCode::OK } else { status };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(GRPC_MEDIA_TYPE));
    headers.insert(GRPC_STATUS, code.into());
    // The message is ASCII without `%`.
    headers.extend(HeaderValue::try_from(words).ok().map(|words| (GRPC_MESSAGE, words)));
    response
}

impl Future for Exchange {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let State::Answering(answering) = &mut this.state {
            let Poll::Ready(Ok(response)) = Pin::new(&mut *answering).poll(cx) else {
                if ready!(this.respond.poll_reset(cx)).is_ok() {
                    answering.reset(this.number, this.began);
                }
                return Poll::Ready(());
            };
            match this.answer(response) {
                Some(pump) => this.state = State::Sending(pump),
                None => return Poll::Ready(()),
            }
        }
        match &mut this.state {
            State::Answering(_) => Poll::Pending,
            State::Sending(pump) => pump.poll(cx).map(drop),
        }
    }
}

/// The value of the `date` header; updated once a second.
fn date() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<(Duration, HeaderValue)> =
            const { RefCell::new((Duration::ZERO, HeaderValue::from_static(""))) };
    }
    let now = SystemTime::now();
    let second = Duration::from_secs(now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    LAST.with_borrow_mut(|(at, text)| {
        if *at != second {
            let written = httpdate::fmt_http_date(now);
            *text = HeaderValue::try_from(written).expect("a date is a header's value");
            *at = second;
        }
        text.clone()
    })
}
