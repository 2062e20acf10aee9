//! Answers requests: checks where each is from, then reads the page.
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use chassis_core::{Runtime, tasks::catch};
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER, VARY},
    request::Parts,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, watch},
    task::spawn_blocking,
    time::{Instant, timeout},
};

use crate::{
    AdminBody, AdminConfig, HostPattern, Process, Reach,
    events::Feed,
    guard,
    metrics::expose,
    negotiation::{self, Exposition},
    page::{Class, Page, Probe, Read},
    probes::Condition,
    problem::{EVENTS, JSON, Refusal, TEXT, answer},
    read,
    token::Token,
};

/// The admin surface of one process. Clones share it.
#[derive(Clone)]
pub struct Admin(Arc<Inner>);

struct Inner {
    runtime: Runtime,
    process: Arc<dyn Process>,
    token: Option<Token>,
    hosts: Vec<HostPattern>,
    /// Pages that are being made, on threads for blocking work.
    working: Arc<Semaphore>,
    /// Places for readers of events.
    places: Arc<Semaphore>,
    /// Ids of events are those of one process.
    epoch: u64,
    is_over: watch::Sender<bool>,
    begun: Instant,
    /// When a refusal was last logged.
    logged: Mutex<Option<Instant>>,
}

/// Pages that are made at once; others wait. Two readers do not delay each other, and no more threads are taken.
const WORKERS: usize = 2;
/// Readers of events at once: each keeps a connection busy.
const READERS: usize = 16;
/// The time that a request waits for its turn.
const TURN: Duration = Duration::from_secs(10);
/// The least time between two log lines about refused requests.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

// === impl Admin ===

impl Admin {
    /// The surface of `process`, whose calls are those of `runtime`. `hosts` are names that requests may have in `Host`
    /// in addition to those of `config`.
    pub fn new(
        runtime: Runtime,
        process: Arc<dyn Process>,
        config: &AdminConfig,
        hosts: impl IntoIterator<Item = HostPattern>,
    ) -> Self {
        let epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Admin(Arc::new(Inner {
            runtime,
            process,
            token: config.token_file.as_deref().map(Token::new),
            hosts: config.hosts.iter().cloned().chain(hosts).collect(),
            working: Arc::new(Semaphore::new(WORKERS)),
            places: Arc::new(Semaphore::new(READERS)),
            epoch: epoch.as_millis() as u64,
            is_over: watch::Sender::new(false),
            begun: Instant::now(),
            logged: Mutex::default(),
        }))
    }

    /// Checks that the token can be read, if there is one: at the start, when somebody looks at errors.
    ///
    /// # Errors
    /// Why it can't, with the path.
    pub async fn check_token(&self) -> Result<(), String> {
        match &self.0.token {
            Some(token) => token.newest().await.map(|_| ()),
            None => Ok(()),
        }
    }

    /// Ends the streams of events: the process stops.
    pub fn close(&self) {
        self.0.is_over.send_replace(true);
    }

    /// The answer to a request with this head from `peer`, which arrived where `reach` gets.
    pub async fn answer(&self, head: Parts, reach: Reach, peer: Option<IpAddr>) -> Response<AdminBody> {
        let mut response = match self.admit(&head, reach, peer).await {
            Ok((page, may_read)) => self.page(page, &head, may_read).await,
            Err(refusal) => {
                self.log(&refusal, peer);
                refusal.into_response()
            }
        };
        if head.method == Method::HEAD {
            let length = http_body::Body::size_hint(response.body()).exact().unwrap_or_default();
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
            *response.body_mut() = AdminBody::default();
        }
        response
    }

    /// The page that is asked for, and whether its reader may see the state of the process.
    async fn admit(&self, head: &Parts, reach: Reach, peer: Option<IpAddr>) -> Result<(Page, bool), Refusal> {
        guard::check(head, reach, &self.0.hosts)?;
        let unknown = || {
            let words = "there is no such page; `/` lists all";
            Refusal::new(StatusCode::NOT_FOUND, words)
        };
        let (page, class) = Page::at(head.uri.path()).ok_or_else(unknown)?;
        match (class, reach) {
            // Reasons of failures are for readers. A wrong token is no reason to refuse a probe.
            (Class::Open, _) => Ok((page, self.may_read(head, reach, peer).await.is_ok())),
            (Class::Read, Reach::Probes) => Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "`listen.probes` has only the pages that are for everybody",
            )),
            (Class::Read, _) => self.may_read(head, reach, peer).await.map(|()| (page, true)),
        }
    }

    /// A token is asked for wherever there is one, except where files' permissions decide.
    async fn may_read(&self, head: &Parts, reach: Reach, peer: Option<IpAddr>) -> Result<(), Refusal> {
        let is_here = peer.is_none_or(|ip| ip.to_canonical().is_loopback());
        match (reach, &self.0.token) {
            (Reach::Private, _) => Ok(()),
            (Reach::Machine, None) if is_here => Ok(()),
            (Reach::Machine | Reach::Network, Some(token)) => token.check(&head.headers).await,
            (Reach::Machine | Reach::Network, None) => {
                let words = "this is for peers on the same machine only; for others set `admin.token_file`";
                Err(Refusal::new(StatusCode::FORBIDDEN, words))
            }
            (Reach::Probes, _) => Err(Refusal::new(StatusCode::FORBIDDEN, "only for probes")),
        }
    }

    async fn page(&self, page: Page, head: &Parts, may_read: bool) -> Response<AdminBody> {
        match page {
            Page::Index => answer(StatusCode::OK, TEXT, Page::list()),
            Page::Probe(probe) => self.probe(probe, head, may_read),
            Page::Version => self.version(),
            Page::Metrics => self.metrics(head).await,
            Page::Outbound(service) => {
                let of = service.clone();
                let made =
                    self.make(move |this| read::outbound_of(&this.0.runtime, &of).as_ref().map(text)).await;
                let unknown = || {
                    Refusal::new(StatusCode::NOT_FOUND, format!("`{service}` is not called by this process"))
                };
                found(made, unknown)
            }
            Page::Read(Read::Diff) => self.diff(head).await,
            Page::Read(Read::Schema) => {
                let words = "this build has no schema; the cargo feature `cli` adds it";
                let made = self.make(|this| this.0.process.schema().as_ref().map(text)).await;
                found(made, || Refusal::new(StatusCode::NOT_FOUND, words))
            }
            Page::Read(Read::Events) => self.events(head),
            Page::Read(part) => match self.make(move |this| text(&this.read(part))).await {
                Ok(text) => answer(StatusCode::OK, JSON, text),
                Err(refusal) => refusal.into_response(),
            },
        }
    }

    fn read(&self, part: Read) -> Value {
        let Inner { runtime, process, .. } = &*self.0;
        let process = &**process;
        match part {
            Read::Inbound => read::inbound(runtime, process),
            Read::Outbound => read::outbound(runtime),
            Read::Breakers => read::breakers(&runtime.inspect()),
            Read::Limits => read::limits(&runtime.inspect()),
            Read::Budgets => read::budgets(&runtime.inspect()),
            Read::Routes => read::routes(&runtime.inspect()),
            Read::Faults => read::faults(&runtime.inspect()),
            Read::Registry => read::registry(runtime, process),
            Read::Config => read::config(runtime, process),
            Read::Versions => read::versions(process),
            // Those that are not JSON, or take a query, are made elsewhere.
            Read::Status | Read::Diff | Read::Schema | Read::Events => self.status(),
        }
    }

    /// The differences between two versions of the settings.
    async fn diff(&self, head: &Parts) -> Response<AdminBody> {
        let number = |name: &str| {
            let mut parts = head.uri.query().unwrap_or_default().split('&');
            parts.find_map(|part| part.strip_prefix(name)?.strip_prefix('='))?.parse::<u64>().ok()
        };
        let (Some(from), Some(to)) = (number("from"), number("to")) else {
            let words = "write ?from=7&to=9 with two numbers of `/admin/v1/config/versions`";
            return Refusal::new(StatusCode::BAD_REQUEST, words).into_response();
        };
        match self.make(move |this| this.0.process.diff(from, to)).await {
            Ok(Ok(changes)) => {
                json_answer(StatusCode::OK, &json!({ "from": from, "to": to, "changes": changes }))
            }
            Ok(Err(known)) => {
                let known: Vec<_> = known.iter().map(u64::to_string).collect();
                let words = format!("these versions are kept: {}", known.join(", "));
                Refusal::new(StatusCode::NOT_FOUND, words).into_response()
            }
            Err(refusal) => refusal.into_response(),
        }
    }

    fn events(&self, head: &Parts) -> Response<AdminBody> {
        let Ok(place) = self.0.places.clone().try_acquire_owned() else {
            let words = format!("{READERS} readers of events are served at once, and there are as many");
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, words);
            return refusal.with(RETRY_AFTER, HeaderValue::from_static("5")).into_response();
        };
        let mut response = answer(StatusCode::OK, EVENTS, Bytes::new());
        if head.method == Method::GET {
            let is_over = self.0.is_over.subscribe();
            let feed = Feed::new(&self.0.runtime, self.0.epoch, &head.headers, is_over, place);
            *response.body_mut() = AdminBody::events(feed);
        }
        response
    }

    fn probe(&self, probe: Probe, head: &Parts, may_read: bool) -> Response<AdminBody> {
        let answered = self.condition().answer(probe, may_read);
        if negotiation::wants_json(&head.headers) {
            return json_answer(answered.code(), &answered);
        }
        let is_verbose = head.uri.query().is_some_and(|query| {
            query.split('&').any(|part| part == "verbose" || part.starts_with("verbose="))
        });
        answer(answered.code(), TEXT, answered.text(probe, is_verbose))
    }

    fn condition(&self) -> Condition {
        let process = &self.0.process;
        Condition {
            phase: process.phase(),
            is_in_service: process.is_in_service(),
            has_started: process.has_started(),
            checks: self.0.runtime.health().view(),
        }
    }

    fn version(&self) -> Response<AdminBody> {
        let Inner { runtime, process, .. } = &*self.0;
        let version = json!({
            "service": &**runtime.service(),
            "version": process.version(),
            "instance": process.instance(),
            "chassis": env!("CARGO_PKG_VERSION"),
        });
        json_answer(StatusCode::OK, &version)
    }

    async fn metrics(&self, head: &Parts) -> Response<AdminBody> {
        let form = Exposition::of(&head.headers);
        let by_gzip = negotiation::accepts_gzip(&head.headers);
        let registry = self.0.runtime.metrics().registry().clone();
        let mut response = match self.work(move || expose(&registry, form, by_gzip)).await {
            Ok(Ok(text)) => answer(StatusCode::OK, form.content_type(), text),
            Ok(Err(error)) => return Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
            Err(refusal) => return refusal.into_response(),
        };
        let headers = response.headers_mut();
        headers.insert(VARY, HeaderValue::from_static("accept, accept-encoding"));
        if by_gzip {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    async fn make<T: Send + 'static>(
        &self,
        make: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let this = self.clone();
        self.work(move || make(&this)).await
    }

    /// Makes a page on a thread for blocking work: those of calls are not held up by many nodes or series.
    async fn work<T: Send + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
        let turn = timeout(TURN, self.0.working.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            let refusal =
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "other readers are served; try again");
            return Err(refusal.with(RETRY_AFTER, HeaderValue::from_static("1")));
        };
        let made = spawn_blocking(move || {
            let made = catch(make);
            drop(turn);
            made
        });
        let failed = |error: String| {
            tracing::error!(target: "chassis", error, "a page of the admin surface failed");
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be made; the log says why")
        };
        let made = made.await.map_err(|error| failed(error.to_string()))?;
        made.map_err(|panicked| failed(panicked.to_string()))
    }

    fn status(&self) -> Value {
        let Inner { runtime, process, begun, .. } = &*self.0;
        let seen = runtime.inspect();
        let health = self.condition().answer(Probe::Health, true);
        json!({
            "service": seen.service,
            "version": process.version(),
            "instance": process.instance(),
            "chassis": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime": begun.elapsed().as_secs_f64(),
            "phase": process.phase().as_str(),
            "in_service": process.is_in_service(),
            "started": process.has_started(),
            "health": health.status,
            "checks": read::json(&seen.checks),
            "config": { "version": seen.version, "hash": seen.hash },
            "registry": runtime.registry().name(),
            "listeners": process.listeners(),
            "services": seen.services.len(),
            "cells": seen.cells,
        })
    }

    /// Logs one refusal in a second.
    #[cold]
    fn log(&self, refusal: &Refusal, peer: Option<IpAddr>) {
        let (now, mut logged) =
            (Instant::now(), self.0.logged.lock().unwrap_or_else(PoisonError::into_inner));
        if logged.is_none_or(|at| now >= at + LOG_INTERVAL) {
            *logged = Some(now);
            let peer = peer.map(tracing::field::display);
            let status = refusal.status.as_u16();
            tracing::info!(target: "chassis", peer, status, "an admin request was refused: {}", refusal.detail);
        }
    }
}

/// JSON that was found, or a refusal.
fn found(made: Result<Option<Bytes>, Refusal>, unknown: impl FnOnce() -> Refusal) -> Response<AdminBody> {
    match made {
        Ok(Some(text)) => answer(StatusCode::OK, JSON, text),
        Ok(None) => unknown().into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

fn text(value: &impl serde::Serialize) -> Bytes {
    // Maps have keys of text, so it never fails.
    serde_json::to_vec(value).unwrap_or_default().into()
}

fn json_answer(status: StatusCode, value: &impl serde::Serialize) -> Response<AdminBody> {
    answer(status, JSON, text(value))
}
