//! The server side of HTTP/1.1, on hyper's connections.
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use chassis_core::BoxError;
use http::{Request, Response};
use hyper::{body::Incoming, server::conn};
use hyper_util::rt::TokioIo;

use crate::{
    ServerConfig,
    net::Hangup,
    server::{
        body::Tracked,
        connection::{Answering, Graceful, Requests},
        head::tidy_h1,
        io::Opened,
        received::Received,
        service::is_grpc,
    },
};

pin_project_lite::pin_project! {
    /// A connection of hyper.
    pub(crate) struct Http1 { #[pin] connection: conn::http1::Connection<TokioIo<Opened>, Requests> }
}

// === impl Http1 ===

impl Http1 {
    /// Serves `requests` on `io`.
    pub(crate) fn new(config: &ServerConfig, hangup: &Hangup, io: Opened, requests: Requests) -> Self {
        Http1 { connection: builder(config, hangup).serve_connection(TokioIo::new(io), requests) }
    }
}

impl Future for Http1 {
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().connection.poll(cx).map_err(Into::into)
    }
}

impl Graceful for Http1 {
    /// Clients have been notified before a drain begins: this is the time that the notice and a request take to cross.
    const LINGER: Duration = Duration::from_millis(250);

    fn ask(self: Pin<&mut Self>) {
        self.project().connection.graceful_shutdown();
    }
}

fn builder(config: &ServerConfig, hangup: &Hangup) -> conn::http1::Builder {
    let mut builder = conn::http1::Builder::new();
    // The timer of this crate covers slow heads: hyper's timer would also close idle connections.
    builder
        .header_read_timeout(None)
        .max_header_size(config.max_header_list.get())
        // If the hangup watch notices a FIN, hyper need not: hyper would also drop calls that it could answer
        // at once.
        .half_close(config.half_close || hangup.notices_fin());
    builder
}

impl hyper::service::Service<Request<Incoming>> for Requests {
    type Response = Response<Tracked>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let (mut head, body) = request.into_parts();
        let tidied = tidy_h1(&mut head);
        let is_grpc = is_grpc(&head.headers);
        let answering = match tidied {
            Ok(()) => self.answer(Request::from_parts(head, Received::h1(body)), is_grpc),
            Err(refused) => self.refuse(refused, false),
        };
        answering.over_h1()
    }
}
