//! Answers requests: checks where each is from, then reads the page.
use std::{
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{Runtime, tasks::catch};
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, RETRY_AFTER, VARY},
    request::Parts,
};
use serde_json::json;
use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use crate::{
    AdminBody, AdminConfig, HostPattern, Process, Reach, guard,
    metrics::expose,
    negotiation::{self, Exposition},
    page::{Class, Page, Probe},
    probes::Condition,
    problem::{JSON, Refusal, TEXT, answer},
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
    begun: Instant,
    /// When a refusal was last logged.
    logged: Mutex<Option<Instant>>,
}

/// Pages that are made at once; others wait. Two readers do not delay each other, and no more threads are taken.
const WORKERS: usize = 2;
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
        Admin(Arc::new(Inner {
            runtime,
            process,
            token: config.token_file.as_deref().map(Token::new),
            hosts: config.hosts.iter().cloned().chain(hosts).collect(),
            working: Arc::new(Semaphore::new(WORKERS)),
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
            Page::Status => self.json(Self::status).await,
        }
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

    /// An answer of JSON that `make` makes.
    async fn json(
        &self,
        make: impl FnOnce(&Self) -> serde_json::Value + Send + 'static,
    ) -> Response<AdminBody> {
        let this = self.clone();
        match self.work(move || make(&this).to_string()).await {
            Ok(text) => answer(StatusCode::OK, JSON, text),
            Err(refusal) => refusal.into_response(),
        }
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

    fn status(&self) -> serde_json::Value {
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
            "checks": seen.checks,
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

fn json_answer(status: StatusCode, value: &impl serde::Serialize) -> Response<AdminBody> {
    // Maps have keys of text, so it never fails.
    answer(status, JSON, Bytes::from(serde_json::to_vec(value).unwrap_or_default()))
}
