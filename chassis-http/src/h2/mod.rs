//! Calls over HTTP/2, on connections that are kept up in the background.
//!
//! A call never connects: it takes a stream of a connection that is there, waits for one only while
//! all are in use, and comes back unsent where there is none.
mod connection;
mod driver;
mod endpoint;
mod halves;
mod stream;

use std::{future::poll_fn, sync::Arc};

use chassis_core::{
    Error,
    call::{Body, Invocation, Reply},
    cluster::Link,
    protocol::{Leaf, LeafFuture},
};

pub(crate) use self::halves::{Inbound, Pump, length};
use self::{endpoint::Endpoint, stream::Answer};
use crate::{ClientConfig, connector::Connector, failure, outgoing::Form};

/// Sends calls to one endpoint over HTTP/2.
pub struct H2Leaf(Arc<Endpoint>);

// === impl H2Leaf ===

impl H2Leaf {
    /// For the endpoint of `link`; `sized` requests say how long their body is, where that is known. Endpoints
    /// of one config share it.
    pub fn new(
        link: Link,
        connector: Arc<dyn Connector>,
        config: impl Into<Arc<ClientConfig>>,
        sized: bool,
    ) -> Self {
        let config = config.into();
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

/// On the first connection that takes it.
async fn send(endpoint: Arc<Endpoint>, mut call: Invocation) -> Result<Reply, Error> {
    loop {
        let Some(slot) = endpoint.slot().await else {
            endpoint.wake();
            let error = endpoint.unreachable();
            call.fail_attempt(&error);
            return Err(error.returning(call));
        };
        let mut sender = slot.sender();
        if poll_fn(|cx| sender.poll_ready(cx)).await.is_err() {
            slot.retire();
            continue;
        }
        let out = endpoint.form.write_h2(&mut call);
        // It was there a moment ago; if it is no more, nothing was sent.
        let (answer, stream) = match sender.send_request(out.head, out.is_whole) {
            Ok(begun) => begun,
            Err(error) => {
                if failure::is_of_connection(&error) {
                    slot.retire();
                }
                return Err(call.refuse(failure::of_unsent(error)));
            }
        };
        let abort = if out.is_whole { None } else { stream::send(stream, out.body, endpoint.link.tasks()) };
        match answer.await {
            Ok(response) => {
                slot.served();
                if let Some(abort) = abort {
                    call.set_request_abort(abort);
                }
                let (head, body) = response.into_parts();
                let length = if endpoint.form.is_sized() { length(&head.headers) } else { None };
                let body = Answer::new(Inbound::new(body, length), slot);
                let body = Body::eager(body, failure::of_h2_answer);
                return Ok(call.answered(head.status, head.headers, body));
            }
            Err(error) => {
                let error = match slot.is_silent() {
                    true => failure::of_silence().with_source(error),
                    false => failure::of_stream(&error).with_source(error),
                };
                // Even if it was refused, its headers are gone: whoever kept those may send it again.
                return Err(call.refuse(error));
            }
        }
    }
}
