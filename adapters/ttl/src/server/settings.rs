//! The requests for settings: documents at keys, read and watched by the rules of HTTP.
use std::{convert::Infallible, fmt::Write as _, sync::Arc, time::Duration, time::SystemTime};

use axum::{
    Json,
    body::{Body, to_bytes},
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH},
};
use serde_json::json;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    BODY, Inner, Server,
    documents::{Condition, Document, Refused},
    refusal,
    watch::READS,
};
use crate::wire::{DELETE, EVENTS, KEEP_ALIVE, check_key};

/// One watch of a document.
struct Watch {
    server: Arc<Inner>,
    key: String,
    to: mpsc::Sender<Result<Bytes, Infallible>>,
    _place: OwnedSemaphorePermit,
}

/// A request waits no longer for a change.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

// === the requests ===

pub(super) async fn list(State(server): Server) -> Response {
    let store = server.store();
    let listed = store.documents().iter().filter_map(|(key, document)| {
        let bytes = document.content.as_ref()?.len();
        Some(json!({ "key": key, "revision": document.revision.to_string(), "bytes": bytes }))
    });
    let listed: Vec<_> = listed.collect();
    drop(store);
    Json(listed).into_response()
}

pub(super) async fn get(State(server): Server, Path(key): Path<String>, headers: HeaderMap) -> Response {
    if let Err(why) = check_key(&key) {
        return refusal(StatusCode::BAD_REQUEST, &why);
    }
    let has = |name, word: &str| text(&headers, name).is_some_and(|value| value.contains(word));
    let last = text(&headers, "last-event-id").and_then(|id| id.parse().ok());
    let known = text(&headers, IF_NONE_MATCH.as_str()).and_then(revision);
    let wait = text(&headers, "prefer").and_then(waits);
    if has(ACCEPT.as_str(), EVENTS) {
        return watch(server, key, last);
    }
    let mut document = server.store().documents().get(&key);
    if let Some(wait) = wait.filter(|_| known == Some(document.revision)) {
        let Ok(_place) = server.watches.clone().try_acquire_owned() else {
            return refusal(StatusCode::SERVICE_UNAVAILABLE, "there are too many watches");
        };
        let (mut changed, mut closing) = (server.documents.subscribe(), server.closing.subscribe());
        let news = async {
            loop {
                changed.borrow_and_update();
                let now = server.store().documents().get(&key);
                if Some(now.revision) != known {
                    return Some(now);
                }
                tokio::select! {
                    changed = changed.changed() => changed.ok()?,
                    _ = closing.wait_for(|closing| *closing) => return None,
                }
            }
        };
        document = timeout(wait, news).await.ok().flatten().unwrap_or(document);
    }
    let Document { revision, content } = document;
    let mut answer = match content {
        None => return refusal(StatusCode::NOT_FOUND, "there is no document at this key"),
        Some(_) if known == Some(revision) => StatusCode::NOT_MODIFIED.into_response(),
        Some(content) => {
            let mut answer = content.to_string().into_response();
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type(&key)));
            answer
        }
    };
    answer.headers_mut().insert(ETAG, etag(revision));
    answer
}

pub(super) async fn put(State(server): Server, Path(key): Path<String>, request: Request) -> Response {
    let condition = match check_key(&key).and_then(|()| condition(request.headers())) {
        Ok(condition) => condition,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
    };
    let most = server.config.max_document.get();
    let body = match timeout(BODY, to_bytes(request.into_body(), most)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("a document has at most {most} bytes, and an end");
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, &message);
        }
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let content = match sound(&body) {
        Ok(content) => content,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, why),
    };
    let put = server.store().documents_mut().put(&key, &content, condition, SystemTime::now());
    changed(&server, put).await
}

pub(super) async fn delete(State(server): Server, Path(key): Path<String>, headers: HeaderMap) -> Response {
    let condition = match check_key(&key).and_then(|()| condition(&headers)) {
        Ok(condition) => condition,
        Err(why) => return refusal(StatusCode::BAD_REQUEST, &why),
    };
    let deleted = server.store().documents_mut().delete(&key, condition, SystemTime::now());
    changed(&server, deleted).await
}

/// Answers a change, once it is on disk.
async fn changed(server: &Inner, change: Result<u64, Refused>) -> Response {
    let revision = match change {
        Ok(revision) => revision,
        Err(Refused::Full) => {
            let most = server.config.max_documents;
            let message = format!("there are {most} documents, as many as this server keeps");
            return refusal(StatusCode::INSUFFICIENT_STORAGE, &message);
        }
        Err(Refused::Other(there)) => {
            let message = match there {
                Some(there) => format!("the document has the revision {there}"),
                None => "there is no document at this key".to_owned(),
            };
            return refusal(StatusCode::PRECONDITION_FAILED, &message);
        }
    };
    if !server.changed().await {
        let message = "the change is in force and not on disk: put it again when the disk can be written";
        return refusal(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    let mut answer = Json(json!({ "revision": revision.to_string() })).into_response();
    answer.headers_mut().insert(ETAG, etag(revision));
    answer
}

fn watch(server: Arc<Inner>, key: String, known: Option<u64>) -> Response {
    let Ok(place) = server.watches.clone().try_acquire_owned() else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "there are too many watches");
    };
    let (to, events) = mpsc::channel(1);
    let tasks = server.tasks.clone();
    let watch = Watch { server, key, to, _place: place };
    tasks.spawn(async move { watch.run(known).await.unwrap_or_default() });
    let mut answer = Body::from_stream(ReceiverStream::new(events)).into_response();
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

// === impl Watch ===

impl Watch {
    /// Sends each version that is not `known`, until the reader goes, which is `None`.
    async fn run(&self, mut known: Option<u64>) -> Option<()> {
        let mut changed = self.server.documents.subscribe();
        loop {
            changed.borrow_and_update();
            let document = self.server.store().documents().get(&self.key);
            if known != Some(document.revision) {
                known = Some(document.revision);
                self.send(event(&document)).await?;
            }
            match timeout(KEEP_ALIVE, changed.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return None,
                Err(_) => self.send(":\n\n".to_owned()).await?,
            }
        }
    }

    async fn send(&self, event: String) -> Option<()> {
        timeout(READS, self.to.send(Ok(event.into()))).await.ok()?.ok()
    }
}

/// The whole document as one event.
fn event(document: &Document) -> String {
    let mut event = format!("id: {}\n", document.revision);
    match &document.content {
        None => event.push_str(&format!("event: {DELETE}\ndata:\n")),
        Some(content) => content.split('\n').for_each(|line| {
            let _ = writeln!(event, "data: {line}"); // a string takes all
        }),
    }
    event.push('\n');
    event
}

// === headers ===

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn etag(revision: u64) -> HeaderValue {
    HeaderValue::try_from(format!("\"{revision}\"")).expect("digits and quotes can be sent")
}

/// The revision in an etag, also in a weak one.
fn revision(etag: &str) -> Option<u64> {
    let etag = etag.trim();
    etag.strip_prefix("W/").unwrap_or(etag).strip_prefix('"')?.strip_suffix('"')?.parse().ok()
}

/// The seconds of `prefer: wait=60`, RFC 7240.
fn waits(prefer: &str) -> Option<Duration> {
    let wait = prefer.split([',', ';']).find_map(|one| one.trim().strip_prefix("wait="))?;
    Some(Duration::from_secs(wait.trim_matches('"').parse().ok()?).min(LONGEST_WAIT))
}

fn condition(headers: &HeaderMap) -> Result<Condition, String> {
    match (text(headers, IF_MATCH.as_str()), text(headers, IF_NONE_MATCH.as_str())) {
        (None, None) => Ok(Condition::None),
        (Some(etag), None) => match revision(etag) {
            Some(revision) => Ok(Condition::At(revision)),
            None => Err(format!("`if-match` has one etag of this server, and not `{}`", etag.escape_debug())),
        },
        (None, Some("*")) => Ok(Condition::Absent),
        (_, Some(_)) => Err("a change has `if-match` with an etag, or `if-none-match: *`".to_owned()),
    }
}

/// The text of a document. Lines end in line feeds, because an event can't have other ends.
fn sound(body: &[u8]) -> Result<String, &'static str> {
    let text = std::str::from_utf8(body).map_err(|_| "a document is a text in UTF-8")?;
    if text.trim().is_empty() {
        return Err("the document is empty; one without settings is `{}`");
    }
    let text = text.replace("\r\n", "\n");
    if text.contains('\r') {
        return Err("a line ends in a line feed");
    }
    Ok(text)
}

/// By what the key ends in, as clients read it.
fn content_type(key: &str) -> &'static str {
    match key.rsplit_once('.').map(|(_, end)| end) {
        Some("json") => "application/json",
        Some("toml") => "application/toml",
        _ => "application/yaml",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read() {
        for (etag, expected) in
            [("\"7\"", Some(7)), ("W/\"7\"", Some(7)), ("7", None), ("\"a\"", None), ("*", None)]
        {
            assert_eq!(revision(etag), expected, "{etag}");
        }
        for (prefer, expected) in [
            ("wait=7", Some(7)),
            ("respond-async, wait=7", Some(7)),
            ("wait=99999", Some(600)),
            ("wait=x", None),
            ("", None),
        ] {
            assert_eq!(waits(prefer).map(|wait| wait.as_secs()), expected, "{prefer}");
        }
        let of = |all: &[(&'static str, &str)]| {
            let headers = all.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            condition(&headers.collect()).ok()
        };
        assert_eq!(of(&[]), Some(Condition::None));
        assert_eq!(of(&[("if-match", "\"7\"")]), Some(Condition::At(7)));
        assert_eq!(of(&[("if-none-match", "*")]), Some(Condition::Absent));
        for wrong in [
            &[("if-match", "*")][..],
            &[("if-none-match", "\"7\"")],
            &[("if-match", "\"7\""), ("if-none-match", "*")],
        ] {
            assert_eq!(of(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn an_event_has_the_whole_document() {
        for content in ["a: 1", "\na: 1\n\n  b\n", "{}\n"] {
            let event = event(&Document { revision: 7, content: Some(content.into()) });
            let read = chassis_http::sse::Reader::new(1_000).read(event.as_bytes()).unwrap();
            assert_eq!((read.len(), read[0].id.as_deref(), read[0].data.as_str()), (1, Some("7"), content));
        }
        assert_eq!(sound(b"a: 1\r\nb: 2"), Ok("a: 1\nb: 2".to_owned()));
        assert!([&b"a\rb"[..], b"\xff", b"", b" \n"].iter().all(|body| sound(body).is_err()));
    }
}
