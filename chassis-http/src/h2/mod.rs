//! Calls over HTTP/2, on connections that are kept up in the background.
//!
//! A call never connects: it takes a stream of a connection that is there, waits for one only while
//! all are in use, and comes back unsent where there is none.
mod connection;
mod driver;
mod endpoint;

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{
    Error,
    call::{Body, Invocation, Reply},
    cluster::Link,
    protocol::{Leaf, LeafFuture},
};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;

use self::endpoint::{Endpoint, Slot};
use crate::{
    ClientConfig,
    connector::Connector,
    failure,
    outgoing::{self, Form},
};

/// Sends calls to one endpoint over HTTP/2.
pub struct H2Leaf(Arc<Endpoint>);

/// The body of an answer, whose stream is in use until it ends.
struct Held {
    body: Incoming,
    _slot: Slot,
}

// === impl H2Leaf ===

impl H2Leaf {
    /// For the endpoint of `link`; `sized` requests say how long their body is, where that is known.
    pub fn new(link: Link, connector: Arc<dyn Connector>, config: ClientConfig, sized: bool) -> Self {
        let form = Form::new(link.service(), sized, &config);
        H2Leaf(Arc::new(Endpoint::new(link, connector, config, form)))
    }
}

impl Leaf for H2Leaf {
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

impl Drop for H2Leaf {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// On one connection after the other, while hyper gives the request back untouched.
async fn send(endpoint: Arc<Endpoint>, mut call: Invocation) -> Result<Reply, Error> {
    loop {
        let Some(slot) = endpoint.slot().await else {
            endpoint.wake();
            let error = endpoint.unreachable();
            call.fail_attempt(&error);
            return Err(error.returning(call));
        };
        let out = endpoint.form.write_absolute(&mut call);
        let answer = slot.sender().try_send_request(out.request).await;
        match answer {
            Ok(response) => {
                slot.served();
                if let Some(abort) = out.abort {
                    call.set_request_abort(abort);
                }
                let (head, body) = response.into_parts();
                let body = Body::eager(Held { body, _slot: slot }, failure::of_answer);
                return Ok(call.answered(head.status, head.headers, body));
            }
            Err(mut failed) => match failed.take_message() {
                Some(request) => {
                    outgoing::restore(&mut call, request, out.abort);
                    slot.retire();
                }
                None => {
                    // Even if it was refused, its headers are gone: whoever kept a copy may send it again.
                    let error = failure::of_request(failed.into_error());
                    return Err(call.refuse(error));
                }
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
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
