//! Calls over HTTP/1.1: each uses one connection, which is then kept for the next call.
//!
//! The pool may open connections during a call, within the connect timeout. In the background it opens a first
//! connection, to find out whether the endpoint can be reached at all.
mod pool;
mod server;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{
    Body, Failed, Invocation, Link, Reply,
    protocol::{Leaf, LeafFuture},
};
use http::header::TRANSFER_ENCODING;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use self::pool::{Lease, Pool, Unanswered};
pub(crate) use self::server::Http1;
use crate::{
    ClientConfig, failure, hop,
    net::Connector,
    outgoing::{self, Outgoing},
};

/// Sends calls to one endpoint over HTTP/1.1.
pub struct H1Leaf(Arc<Pool>);

/// An extension of answers over HTTP/1.1 that state neither a length nor chunks: their body ends when the connection is
/// closed, so it may be cut off without an error.
#[derive(Clone, Copy, Debug)]
pub struct EndsWithConnection;

/// The body of an answer; at its end the connection returns to the pool.
struct Held {
    body: Incoming,
    lease: Option<Lease>,
    ended: bool,
}

// === impl H1Leaf ===

impl H1Leaf {
    /// Creates a leaf for the endpoint of `link`; endpoints with the same config share it.
    pub fn new(link: Link, connector: Arc<dyn Connector>, config: impl Into<Arc<ClientConfig>>) -> Self {
        H1Leaf(Arc::new(Pool::new(link, connector, config.into())))
    }
}

impl Leaf for H1Leaf {
    type Future = LeafFuture;

    fn call(&self, call: Invocation) -> LeafFuture {
        Box::pin(send(self.0.clone(), call))
    }

    fn wake(&self) {
        self.0.wake();
    }

    fn close(&self) {
        self.0.close();
    }
}

impl Drop for H1Leaf {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Sends the call on an idle connection, or on the next one if that one turns out to be closed; otherwise on a
/// new one.
///
/// A call that was tried before gets a new connection at once: the event that closed its first connection may
/// have closed all idle ones, and one address may stand for several servers.
async fn send(pool: Arc<Pool>, mut call: Invocation) -> Result<Reply, Failed> {
    let mut permit = Some(pool.permit().await);
    let was_here = call.node().is_some_and(|node| call.tried().iter().any(|t| Arc::ptr_eq(t, node)));
    if was_here {
        pool.make_room();
    }
    loop {
        let idle = if was_here { None } else { pool.take_idle(call.attempt_started()) };
        let is_new = idle.is_none();
        let sender = match idle {
            Some(sender) => Ok(sender),
            None => pool.connect().await,
        };
        let mut sender = match sender {
            Ok(sender) => sender,
            Err(error) => return Err(call.give_back(error)),
        };
        let unanswered = Unanswered::new(&pool, (!is_new).then(|| call.attempt_started()));
        let Outgoing { request, abort } = pool.form.write_origin(&mut call);
        let answer = sender.try_send_request(request).await;
        unanswered.ended();
        if !is_new {
            pool.set_hasty(answer.is_err());
        }
        match answer {
            Ok(response) => {
                if let Some(abort) = abort {
                    call.set_request_abort(abort);
                }
                let lease = permit.take().map(|permit| Lease::new(pool.clone(), sender, permit));
                let (mut head, body) = response.into_parts();
                if body.size_hint().exact().is_none() && !head.headers.contains_key(TRANSFER_ENCODING) {
                    call.extensions.insert(EndsWithConnection);
                }
                hop::strip_h1(&mut head.headers);
                let body = Body::eager(Held { body, lease, ended: false }, failure::of_answer);
                return Ok(call.answered(head.status, head.headers, body));
            }
            Err(mut failed) => match failed.take_message() {
                Some(request) => {
                    outgoing::restore(&mut call, request, abort);
                    if is_new {
                        let error = failure::of_connect(pool.address(), failed.into_error());
                        return Err(call.give_back(error));
                    }
                }
                None => return Err(call.refuse(failure::of_request(failed.into_error()))),
            },
        }
    }
}

// === impl Held ===

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.ended |= matches!(polled, Poll::Ready(None));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if (self.ended || http_body::Body::is_end_stream(&self.body))
            && let Some(lease) = self.lease.take()
        {
            lease.give_back();
        }
    }
}
