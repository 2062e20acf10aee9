//! GOAWAY of a server: closes a connection after its last call, or cuts the client off at once.
use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::BoxError;
use h2::{Reason, server::Connection};
use tokio::time::{Sleep, sleep};

use crate::server::{CLOSE_GRACE, io::Opened};

/// Whether, and since when, a connection is being cut off.
#[derive(Default)]
pub(super) struct GoAway {
    /// The time until which the client may read the reason.
    cut_off: Option<Pin<Box<Sleep>>>,
}

// === impl GoAway ===

impl GoAway {
    /// Announces the end; streams that have begun continue.
    pub(super) fn announce(connection: &mut Connection<Opened, Bytes>) {
        connection.graceful_shutdown();
    }

    /// Ends all streams and the connection with `ENHANCE_YOUR_CALM`.
    #[cold]
    pub(super) fn cut_off(&mut self, connection: &mut Connection<Opened, Bytes>) {
        connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
        self.cut_off = Some(Box::pin(sleep(CLOSE_GRACE)));
    }

    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off.is_some()
    }

    /// Resolves when the GOAWAY of [`cut_off`](Self::cut_off) was sent, or the client has taken too long to
    /// read it. Streams that begin meanwhile are not served.
    #[cold]
    pub(super) fn poll_cut_off(
        &mut self,
        connection: &mut Connection<Opened, Bytes>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BoxError>> {
        while let Some(accepted) = match connection.poll_accept(cx) {
            Poll::Ready(None) => return Poll::Ready(Ok(())),
            Poll::Ready(accepted) => accepted,
            Poll::Pending => None,
        } {
            drop(accepted?);
        }
        match &mut self.cut_off {
            Some(over) => {
                over.as_mut().poll(cx).map(|()| Err("the peer does not read why it is cut off".into()))
            }
            None => Poll::Pending,
        }
    }
}

/// Whether h2 itself has cut the client off, by one of its own bounds on floods.
pub(super) fn is_of_flood(error: &h2::Error) -> bool {
    error.is_library() && error.is_go_away() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM)
}
