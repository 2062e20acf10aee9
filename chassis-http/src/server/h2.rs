//! HTTP/2 as a server speaks it: each stream is a call, in a task of its own.
//!
//! It is `h2`'s own, as on the side of the client, and not hyper's: an answer that is there goes out
//! whole, head, message and trailers, without another look at it.
use std::{
    cell::RefCell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use chassis_core::{BoxError, BoxFuture};
use h2::{
    Reason, RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::{
    HeaderValue, Request, Response,
    header::{CONTENT_LENGTH, DATE},
};
use http_body::Body as _;

use super::{
    Port,
    body::Tracked,
    connection::{Answering, Requests},
    head::tidy_h2,
    io::Opened,
    received::Received,
    service::is_grpc,
};
use crate::{
    h2::{Pump, length},
    hop,
    silence::Silence,
    turns::Turns,
};

/// One connection; it is over when all its streams are, or when its peer fell silent.
pub(super) struct Http2 {
    connection: Connection<Opened, Bytes>,
    requests: Requests,
    silence: BoxFuture<'static, ()>,
    turns: Turns,
}

/// One stream: first its answer is made, then it is sent. Both end early when the peer resets it.
struct Exchange {
    respond: SendResponse<Bytes>,
    state: State,
    dated: bool,
}

enum State {
    Answering(Answering),
    Sending(Pump<Tracked>),
}

// === impl Http2 ===

impl Http2 {
    /// Begins to speak it on `io`; `heard` is told by that of what comes in, and it is read
    /// in `turns`.
    pub(super) async fn begin(
        port: &Port,
        io: Opened,
        heard: Arc<Silence>,
        turns: Turns,
        requests: Requests,
    ) -> Result<Self, h2::Error> {
        let mut connection = builder(port).handshake(io).await?;
        let (interval, bound) = (port.config.keep_alive_interval.0, port.config.keep_alive_timeout.get());
        let ping = connection.ping_pong();
        let silence = Box::pin(async move { heard.lasts(ping, interval, bound).await });
        Ok(Http2 { connection, requests, silence, turns })
    }

    /// Says GOAWAY, and lets streams end that were begun.
    pub(super) fn ask(&mut self) {
        self.connection.graceful_shutdown();
    }

    fn serve(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        let (mut head, body) = request.into_parts();
        let tidied = tidy_h2(&mut head);
        let is_grpc = is_grpc(&head.headers);
        // gRPC has no use for these.
        let (length, dated) = if is_grpc { (None, false) } else { (length(&head.headers), true) };
        let request = Request::from_parts(head, Received::h2(body, length));
        let state = State::Answering(match tidied {
            Ok(()) => self.requests.answer(request, is_grpc),
            Err(refused) => self.requests.refuse(refused),
        });
        // It ends with its connection.
        tokio::spawn(Exchange { respond, state, dated });
    }
}

impl Future for Http2 {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Each look for another call reads, too.
        self.turns.begin();
        while let Poll::Ready(accepted) = self.connection.poll_accept(cx)? {
            match accepted {
                Some((request, respond)) => {
                    self.turns.call();
                    self.serve(request, respond);
                }
                None => return Poll::Ready(Ok(())),
            }
        }
        self.silence.as_mut().poll(cx).map(|()| Err("the peer no longer answers pings".into()))
    }
}

fn builder(port: &Port) -> Builder {
    let config = &port.config;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(config.max_streams.get())
        // All calls of a client may be over their time in the moment in which this process is too busy to
        // look at them: no reason to close the connection, as h2 does from the twenty-first on.
        .max_pending_accept_reset_streams(config.max_streams.get() as usize)
        .max_header_list_size(config.max_header_list.as_u32())
        .initial_window_size(config.stream_window.as_u32())
        .initial_connection_window_size(config.connection_window.as_u32());
    builder
}

// === impl Exchange ===

impl Exchange {
    /// Sends the head; gives back what sends the rest, if there is any.
    fn answer(&mut self, response: Response<Tracked>) -> Option<Pump<Tracked>> {
        let (mut head, body) = response.into_parts();
        hop::strip_h2(&mut head.headers);
        if self.dated {
            head.headers.entry(DATE).or_insert_with(date);
        }
        let is_whole = body.is_end_stream();
        if let Some(length) = body.size_hint().exact().filter(|_| !is_whole) {
            head.headers.entry(CONTENT_LENGTH).or_insert_with(|| length.into());
        }
        match self.respond.send_response(Response::from_parts(head, ()), is_whole) {
            Ok(to) => (!is_whole).then(|| Pump::new(to, body, Reason::INTERNAL_ERROR)),
            Err(error) => {
                tracing::debug!(%error, "cannot answer");
                self.respond.send_reset(Reason::INTERNAL_ERROR);
                None
            }
        }
    }
}

impl Future for Exchange {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let State::Answering(answering) = &mut this.state {
            let Poll::Ready(Ok(response)) = Pin::new(answering).poll(cx) else {
                return this.respond.poll_reset(cx).map(drop);
            };
            match this.answer(response) {
                Some(pump) => this.state = State::Sending(pump),
                None => return Poll::Ready(()),
            }
        }
        match &mut this.state {
            State::Answering(_) => Poll::Pending,
            State::Sending(pump) => pump.poll(cx),
        }
    }
}

/// When answers are sent; written anew once a second.
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
