//! A server of one document, by the rules of the adapter's documentation; a test can make it break them.
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode},
    routing::get,
};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;

/// A document and its revision; `None` where it was deleted.
#[derive(Clone, Default)]
struct Version {
    number: u64,
    content: Option<String>,
}

pub(crate) struct Server {
    pub(crate) address: String,
    served: Arc<Served>,
    /// The threads of the server: its connections end with them.
    runtime: Option<Runtime>,
}

struct Served {
    version: watch::Sender<Version>,
    /// Answers each request in place of the document.
    wrong: Mutex<Option<Wrong>>,
    /// The headers of each request.
    asked: watch::Sender<Vec<HeaderMap>>,
    /// Ends the streams of events.
    cut: watch::Sender<u64>,
}

#[derive(Clone)]
pub(crate) struct Wrong {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, &'static str)>,
    pub(crate) body: &'static str,
}

// === impl Server ===

impl Server {
    pub(crate) async fn start() -> Server {
        Self::start_at("127.0.0.1:0").await
    }

    pub(crate) async fn start_at(address: &str) -> Server {
        let listener = TcpListener::bind(address).await.unwrap();
        let served = Arc::new(Served {
            version: watch::Sender::default(),
            wrong: Mutex::default(),
            asked: watch::Sender::default(),
            cut: watch::Sender::default(),
        });
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new().route("/{*path}", get(answer)).with_state(served.clone());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listener.into_std().unwrap();
        runtime.spawn(async move {
            axum::serve(TcpListener::from_std(listener).unwrap(), router).await.unwrap();
        });
        Server { address, served, runtime: Some(runtime) }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/orders/chassis.yaml", self.address)
    }

    /// Puts the document; its revision.
    pub(crate) fn put(&self, content: &str) -> u64 {
        *self.served.wrong.lock().unwrap() = None;
        self.change(Some(content.to_owned()))
    }

    pub(crate) fn delete(&self) {
        self.change(None);
    }

    fn change(&self, content: Option<String>) -> u64 {
        self.served.version.send_modify(|version| {
            version.number += 1;
            version.content = content;
        });
        self.served.version.borrow().number
    }

    /// Answers so from now on, until the next `put`.
    pub(crate) fn go_wrong(&self, wrong: Wrong) {
        *self.served.wrong.lock().unwrap() = Some(wrong);
        self.cut();
        self.served.version.send_modify(|_| {}); // long polls end
    }

    /// Ends all streams of events.
    pub(crate) fn cut(&self) {
        self.served.cut.send_modify(|count| *count += 1);
    }

    /// The headers of the requests so far.
    pub(crate) fn asked(&self) -> Vec<HeaderMap> {
        self.served.asked.borrow().clone()
    }

    /// Waits for this many requests.
    pub(crate) async fn was_asked(&self, count: usize) {
        let mut asked = self.served.asked.subscribe();
        let waited = timeout(crate::center::PATIENCE, asked.wait_for(|asked| asked.len() >= count)).await;
        waited.expect("requests come").unwrap();
    }

    /// Stops the server, and frees its port.
    pub(crate) async fn stop(mut self) -> String {
        let runtime = self.runtime.take();
        tokio::task::spawn_blocking(move || drop(runtime)).await.unwrap();
        self.address.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn answer(State(served): State<Arc<Served>>, headers: HeaderMap) -> Response<Body> {
    served.asked.send_modify(|asked| asked.push(headers.clone()));
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let wrong = served.wrong.lock().unwrap().clone();
    if let Some(wrong) = wrong {
        return response(wrong.status, &wrong.headers, Body::from(wrong.body));
    }
    if text("accept") == Some("text/event-stream") {
        return events(served, text("last-event-id").and_then(|id| id.parse().ok()));
    }
    let known: Option<u64> = text("if-none-match").and_then(|tag| tag.trim_matches('"').parse().ok());
    let mut version = served.version.subscribe();
    if let Some(wait) = text("prefer").and_then(|prefer| prefer.strip_prefix("wait=")?.parse().ok()) {
        let is_new = |version: &Version| Some(version.number) != known;
        let _ = timeout(Duration::from_secs(wait), async {
            // Also a server that goes wrong answers.
            while !is_new(&version.borrow_and_update()) && version.changed().await.is_ok() {
                if served.wrong.lock().unwrap().is_some() {
                    break;
                }
            }
        })
        .await;
        let wrong = served.wrong.lock().unwrap().clone();
        if let Some(wrong) = wrong {
            return response(wrong.status, &wrong.headers, Body::from(wrong.body));
        }
    }
    let Version { number, content } = version.borrow().clone();
    match content {
        None => response(404, &[], Body::empty()),
        Some(_) if Some(number) == known => response(304, &[], Body::empty()),
        Some(content) => {
            let mut answer = response(200, &[("content-type", "application/yaml")], Body::from(content));
            answer.headers_mut().insert("etag", HeaderValue::try_from(format!("\"{number}\"")).unwrap());
            answer
        }
    }
}

fn events(served: Arc<Served>, mut known: Option<u64>) -> Response<Body> {
    let (to, events) = mpsc::channel::<Result<Bytes, Infallible>>(1);
    let (mut version, mut cut) = (served.version.subscribe(), served.cut.subscribe());
    tokio::spawn(async move {
        loop {
            let Version { number, content } = version.borrow_and_update().clone();
            if known != Some(number) {
                known = Some(number);
                let event = match content {
                    Some(content) => content
                        .split('\n')
                        .fold(format!("id: {number}\n"), |all, line| all + "data: " + line + "\n"),
                    None => format!("id: {number}\nevent: delete\ndata:\n"),
                };
                if to.send(Ok(format!("{event}\n").into())).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                _ = version.changed() => {}
                _ = cut.changed() => return,
                _ = tokio::time::sleep(Duration::from_millis(300)) => {
                    if to.send(Ok(": alive\n\n".into())).await.is_err() {
                        return;
                    }
                }
            }
        }
    });
    response(
        200,
        &[("content-type", "text/event-stream; charset=utf-8")],
        Body::from_stream(ReceiverStream::new(events)),
    )
}

fn response(status: u16, headers: &[(&'static str, &str)], body: Body) -> Response<Body> {
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        answer.headers_mut().insert(HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap());
    }
    answer
}
