//! Calls over HTTP/2, on connections that a background task maintains.
//!
//! A call never connects: it reserves a stream of an open connection, waits for one only while all are in use,
//! and is returned unsent if there is no connection.
mod connection;
mod driver;
mod endpoint;
pub(crate) mod goaway;
mod sniffer;
mod stream;

use std::{future::poll_fn, sync::Arc};

use chassis_core::{
    Abort, Body, Error, Failed, Invocation, Link, Reply,
    protocol::{Leaf, LeafFuture},
};

use self::{
    endpoint::{Endpoint, Slot},
    stream::Answer,
};
use super::{
    halves::{Inbound, length},
    headers,
};
use crate::{ClientConfig, failure, net::Connector, outgoing::Form};

/// Sends calls to one endpoint over HTTP/2.
pub struct H2Leaf(Arc<Endpoint>);

// === impl H2Leaf ===

impl H2Leaf {
    /// Creates a leaf for the endpoint of `link`; `sized` requests declare the length of their body if it is
    /// known. Endpoints with the same config share it.
    pub fn new(
        link: Link,
        connector: Arc<dyn Connector>,
        config: impl Into<Arc<ClientConfig>>,
        sized: bool,
    ) -> Self {
        let config = config.into();
        let form = Form::new(link.service(), sized, &config).over(&*connector);
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

/// Sends the call on the first connection that accepts it.
async fn send(endpoint: Arc<Endpoint>, mut call: Invocation) -> Result<Reply, Failed> {
    loop {
        let Some(mut slot) = endpoint.slot().await else {
            endpoint.wake();
            let error = endpoint.unreachable();
            return Err(call.give_back(error));
        };
        let mut sender = slot.sender();
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            slot.retire();
            continue;
        }
        let most = slot.max_header_list();
        let begun = {
            let Some(_entered) = slot.enter() else {
                slot.retire();
                continue;
            };
            let out = endpoint.form.write_h2(&mut call);
            match out.is_too_large(most) {
                Some(size) => Err(failure::of_large_request(size, most)),
                None => match sender.send_request(out.head, out.is_whole) {
                    Ok((answer, stream)) => {
                        slot.drop_left();
                        Ok((answer, stream, (!out.is_whole).then_some(out.body)))
                    }
                    // The connection was just open; if it no longer is, nothing was sent.
                    Err(error) => {
                        if goaway::is_of_connection(&error) {
                            slot.retire();
                        }
                        Err(failure::of_unsent(error))
                    }
                },
            }
        };
        let (mut answer, stream, body) = match begun {
            Ok(begun) => begun,
            Err(error) => return Err(call.refuse(error)),
        };
        let abort = body.and_then(|body| stream::send(stream, body, most, endpoint.link.tasks()));
        slot.awaits(call.attempt_started());
        let answer = match (&mut answer).await {
            Ok(response) => Ok(response),
            Err(error) => match abort.as_ref().and_then(Abort::failure).and_then(|request| request.take()) {
                Some(failed) => Err(failure::of_request_body(failed)),
                None => Err(lost(error, answer.stream_id().as_u32(), &slot)),
            },
        };
        slot.answered();
        let response = match answer {
            Ok(response) => response,
            // Even if the request was refused, its headers are consumed: only the retries, which kept a copy,
            // may send it again.
            Err(error) => return Err(call.refuse(error)),
        };
        slot.served();
        let (head, body) = response.into_parts();
        let size = headers::size_of_answer(headers::size(&head.headers));
        let most = endpoint.config.max_header_list.as_u32();
        if size > most as usize {
            return Err(call.refuse(failure::of_large_answer(size, most)));
        }
        let request = abort.as_ref().and_then(Abort::failure);
        if let Some(abort) = abort {
            call.set_request_abort(abort);
        }
        let length = if endpoint.form.is_sized() { length(&head.headers) } else { None };
        let body = Answer::new(Inbound::new(body, length, most), request, slot);
        let body = Body::eager(body, failure::of_h2_answer);
        return Ok(call.answered(head.status, head.headers, body));
    }
}

/// The error of the request on `stream` that got no answer.
#[cold]
fn lost(error: h2::Error, stream: u32, slot: &Slot) -> Error {
    let said = match slot.is_silent() {
        true => failure::of_ping_timeout(),
        false => failure::of_stream(&error),
    };
    // If the head was not sent when the connection ended, the server did not receive it.
    let unsent = goaway::is_of_connection(&error) && !slot.has_sent(stream);
    let said = if unsent { said.with_maybe_executed(false) } else { said };
    said.with_source(error)
}
