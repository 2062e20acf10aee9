//! Watches: server-sent events, from a list or from a revision on.
use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Inner, Server, refusal, store::What};
use crate::wire::{BEHIND, DELETE, EVENTS, Gone, KEEP_ALIVE, PUT, READY, RESET, Revision};

#[derive(Deserialize)]
pub(super) struct From {
    service: String,
    from: Option<String>,
}

/// One watch, in a task of its own, which ends when its reader goes.
struct Watch {
    server: Arc<Inner>,
    service: String,
    to: mpsc::Sender<Result<Bytes, Infallible>>,
    _place: OwnedSemaphorePermit,
}

/// The reader has gone, or reads nothing.
struct Over;

/// So many events are sent in one piece.
const CHUNK: usize = 256;
/// So many pieces wait for the reader.
const PIECES: usize = 2;
/// A reader that takes nothing for so long is given up.
pub(super) const READS: Duration = Duration::from_secs(30);

pub(super) async fn watch(State(server): Server, Query(asked): Query<From>, headers: HeaderMap) -> Response {
    let header = headers.get("last-event-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let from = match asked.from.or(header).map(|from| from.parse::<Revision>()).transpose() {
        Ok(from) => from,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
    };
    if from.is_some_and(|from| server.store().since(from, &asked.service).is_none()) {
        return refusal(StatusCode::GONE, "the changes after this revision are no longer kept");
    }
    let Ok(place) = server.watches.clone().try_acquire_owned() else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "there are too many watches");
    };
    let (to, events) = mpsc::channel(PIECES);
    let tasks = server.tasks.clone();
    let watch = Watch { server, service: asked.service, to, _place: place };
    tasks.spawn(async move {
        let Err(Over) = watch.run(from).await else {
            return;
        };
    });
    let body = Body::from_stream(ReceiverStream::new(events));
    let mut answer = body.into_response();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

// === impl Watch ===

impl Watch {
    async fn run(&self, from: Option<Revision>) -> Result<(), Over> {
        let mut changed = self.server.changed.subscribe();
        let mut at = match from {
            Some(from) => from,
            None => self.list().await?,
        };
        loop {
            changed.borrow_and_update();
            let (news, now) = {
                let store = self.server.store();
                (store.since(at, &self.service), store.revision())
            };
            let Some(news) = news else {
                return self.send(event(BEHIND, None, "")).await;
            };
            for changes in news.chunks(CHUNK) {
                let of = |change: &super::store::Change| {
                    let revision = Some(Revision { number: change.number, ..now });
                    match &change.what {
                        What::Put(instance) => event(PUT, revision, &data(&**instance)),
                        What::Delete(id) => event(DELETE, revision, &data(&Gone { id: id.clone() })),
                    }
                };
                self.send(changes.iter().map(of).collect()).await?;
            }
            at = now;
            // Also what changed in other services is progress, and so is time.
            match timeout(KEEP_ALIVE, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => self.send(format!("id: {at}\n\n")).await?,
            }
        }
    }

    /// Sends all instances; the revision they are of.
    async fn list(&self) -> Result<Revision, Over> {
        let (revision, all) = {
            let store = self.server.store();
            (store.revision(), store.list(Some(&self.service)))
        };
        self.send(event(RESET, None, "")).await?;
        for some in all.chunks(CHUNK) {
            self.send(some.iter().map(|instance| event(PUT, None, &data(&**instance))).collect()).await?;
        }
        self.send(event(READY, Some(revision), "")).await?;
        Ok(revision)
    }

    async fn send(&self, events: String) -> Result<(), Over> {
        match timeout(READS, self.to.send(Ok(events.into()))).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Over),
        }
    }
}

fn event(name: &str, id: Option<Revision>, data: &str) -> String {
    let mut text = String::with_capacity(data.len() + 64);
    if let Some(id) = id {
        let _ = writeln!(text, "id: {id}"); // a string takes all
    }
    let _ = write!(text, "event: {name}\ndata: {data}\n\n");
    text
}

/// JSON on one line.
fn data(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default() // texts and numbers can be written
}
