//! `grpc.health.v1`: reports to load balancers and probes whether this process takes calls.
//!
//! The reporter of tonic-health leaves watches open for ever. Here they end when the process drains, so that
//! a watching client does not delay the stop.
use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::sync::watch;
use tokio_stream::{Stream, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{self, HealthServer},
};

/// Whether the process and each of its services take calls. Clones share the state.
///
/// Initially NOT_SERVING, until [`serving`](Self::serving) is called.
///
/// ```
/// let health = chassis_grpc::Health::default();
/// health.serving();
/// health.set("shop.v1.Orders", false); // except this one: its database is down
/// ```
#[derive(Clone, Debug)]
pub struct Health(Arc<watch::Sender<Statuses>>);

#[derive(Clone, Debug, Default)]
struct Statuses {
    serving: bool,
    closed: bool,
    /// The services, each with whether it would serve if the process did.
    services: Arc<BTreeMap<String, bool>>,
}

/// The status changes of one service, until the process drains.
struct Watch {
    service: String,
    statuses: WatchStream<Statuses>,
    last: Option<ServingStatus>,
    closed: bool,
}

/// See [`Health::closing`].
pub(crate) struct Closing {
    statuses: WatchStream<Statuses>,
    closed: bool,
}

// === impl Health ===

impl Health {
    /// The process takes calls from now on.
    pub fn serving(&self) {
        self.0.send_modify(|all| all.serving = true);
    }

    /// The process takes no more calls; watchers are notified. Calls in flight continue.
    pub fn not_serving(&self) {
        self.0.send_modify(|all| all.serving = false);
    }

    /// Ends all watches, after a last NOT_SERVING, and all open reflection streams.
    pub fn close(&self) {
        self.0.send_modify(|all| (all.serving, all.closed) = (false, true));
    }

    /// Sets whether `service` takes calls while the process does. For conditions that only a handler knows.
    pub fn set(&self, service: &str, serving: bool) {
        self.0.send_modify(|all| {
            Arc::make_mut(&mut all.services).insert(service.to_owned(), serving);
        });
    }

    /// Adds these services; new ones are serving.
    pub(crate) fn cover<'a>(&self, services: impl Iterator<Item = &'a str>) {
        self.0.send_modify(|all| {
            let known = Arc::make_mut(&mut all.services);
            for name in services {
                known.entry(name.to_owned()).or_insert(true);
            }
        });
    }

    /// Ready after [`close`](Self::close) was called.
    pub(crate) fn closing(&self) -> Closing {
        Closing { statuses: WatchStream::new(self.0.subscribe()), closed: false }
    }

    /// The tonic service that reports this health.
    pub(crate) fn service(&self) -> HealthServer<Health> {
        HealthServer::new(self.clone())
    }
}

impl Default for Health {
    fn default() -> Self {
        Health(Arc::new(watch::Sender::new(Statuses::default())))
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.0.borrow().of(&service) {
            ServingStatus::ServiceUnknown => {
                Err(Status::not_found(format!("there is no service {service:?}")))
            }
            status => Ok(Response::new(says(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        let statuses = WatchStream::new(self.0.subscribe());
        Ok(Response::new(Box::pin(Watch { service, statuses, last: None, closed: false })))
    }
}

fn says(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

// === impl Statuses ===

impl Statuses {
    /// The status of a service, or of the process for the empty name.
    fn of(&self, service: &str) -> ServingStatus {
        let would = if service.is_empty() { Some(&true) } else { self.services.get(service) };
        match would {
            None => ServingStatus::ServiceUnknown,
            Some(true) if self.serving => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        }
    }
}

// === impl Closing ===

impl Closing {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.closed {
            let next = ready!(Pin::new(&mut self.statuses).poll_next(cx));
            self.closed = next.is_none_or(|all| all.closed);
        }
        Poll::Ready(())
    }
}

// === impl Watch ===

impl Stream for Watch {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        while !this.closed {
            let Some(all) = ready!(Pin::new(&mut this.statuses).poll_next(cx)) else { break };
            this.closed = all.closed;
            let status = all.of(&this.service);
            if this.last.replace(status) != Some(status) {
                return Poll::Ready(Some(Ok(says(status))));
            }
        }
        Poll::Ready(None)
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::{health_server::Health as _, *};

    fn ask(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    async fn check(health: &Health, service: &str) -> Result<ServingStatus, Code> {
        let answer = health.check(ask(service)).await;
        answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
    }

    #[tokio::test]
    async fn follows_the_lifecycle() {
        use ServingStatus::{NotServing, Serving};
        let health = Health::default();
        health.cover(["a", "b"].into_iter());
        assert_eq!(check(&health, "").await, Ok(NotServing));
        health.serving();
        health.set("b", false);
        health.cover(["b"].into_iter());
        for (service, expected) in
            [("", Ok(Serving)), ("a", Ok(Serving)), ("b", Ok(NotServing)), ("c", Err(Code::NotFound))]
        {
            assert_eq!(check(&health, service).await, expected, "{service:?}");
        }
        health.not_serving();
        assert_eq!(check(&health, "a").await, Ok(NotServing));
        health.serving();
        assert_eq!((check(&health, "a").await, check(&health, "b").await), (Ok(Serving), Ok(NotServing)));
    }

    #[tokio::test]
    async fn a_watch_reports_each_change_once_and_ends_with_the_process() {
        let health = Health::default();
        health.cover(["a"].into_iter());
        let mut watch = health.watch(ask("a")).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|said| said.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        health.serving();
        assert_eq!(next().await, Some(ServingStatus::Serving));
        health.set("another", false);
        health.close();
        assert_eq!(next().await, Some(ServingStatus::NotServing));
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_watch_waits_for_a_service_to_be_known() {
        let health = Health::default();
        health.serving();
        let mut watch = health.watch(ask("a")).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|said| said.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::ServiceUnknown));
        health.set("a", true);
        assert_eq!(next().await, Some(ServingStatus::Serving));
    }
}
