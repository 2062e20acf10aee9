//! The entry of one process: registered, kept by heartbeats, and registered again when it went.
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chassis_core::{
    adapter::{Entry, Pace, Updates},
    clock,
    registry::RegistryError,
};
use http::Method;
use serde::Deserialize;
use serde_json::json;
use tokio::time::sleep;

use crate::{
    client::{Client, Failure, Query},
    entry::Definition,
    link::{Link, Topic},
    service::ensure_service,
    settings::ServiceCombConfig,
};

/// An instance that this process has registered.
pub(crate) struct Own {
    client: Client,
    link: Link,
    config: ServiceCombConfig,
    definition: Definition,
    /// The ids of the registered service and instance.
    place: Option<Place>,
}

/// An entry on the server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    service: String,
    instance: String,
    generation: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Registered {
    instance_id: String,
}

/// The errors of service center that say that the entry is not there: neither the service nor the instance exists.
const GONE: [u32; 2] = [400_012, 400_017];
/// There are as many services or instances as service center takes.
pub(crate) const NO_QUOTA: u32 = 400_100;
/// How long after such a refusal the entry is put up again.
const OVER_QUOTA: Duration = Duration::from_secs(60);
const INSTANCES: &str = "/v4/{project}/registry/microservices/{service}/instances";
const INSTANCE: &str = "/v4/{project}/registry/microservices/{service}/instances/{instance}";
const HEARTBEAT: &str = "/v4/{project}/registry/microservices/{service}/instances/{instance}/heartbeat";
const PROPERTIES: &str = "/v4/{project}/registry/microservices/{service}/instances/{instance}/properties";
const STATUS: &str = "/v4/{project}/registry/microservices/{service}/instances/{instance}/status";
const SERVICE_PROPERTIES: &str = "/v4/{project}/registry/microservices/{service}/properties";

// === impl Own ===

impl Own {
    pub(crate) fn new(client: Client, link: Link, config: ServiceCombConfig, definition: Definition) -> Self {
        Own { client, link, config, definition, place: None }
    }

    /// Registers the service and an instance of it. The instance keeps its `id`, if it had one.
    async fn register(&self, definition: &Definition, id: Option<&str>) -> Result<Place, Failure> {
        let service = ensure_service(&self.client, &definition.key).await?;
        if !self.config.properties.is_empty() {
            let query = Query::new(Method::PUT, SERVICE_PROPERTIES).param("service", service.as_str());
            self.client.send(&query.body(json!({ "properties": self.config.properties }))).await?;
        }
        let generation = generation();
        let query = Query::new(Method::POST, INSTANCES).param("service", service.as_str());
        let answer = self.client.send(&query.body(definition.registration(id, generation))).await?;
        let registered: Registered = answer.read("answer to a registration")?;
        Ok(Place { service, instance: registered.instance_id, generation })
    }

    /// A request about the entry. `false`: it is not there.
    async fn ask(&self, query: Query, place: &Place) -> Result<bool, Failure> {
        let query = query.param("service", place.service.as_str()).param("instance", place.instance.as_str());
        match self.client.send(&query).await {
            Ok(_) => Ok(true),
            Err(failure) if GONE.contains(&failure.code) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn remove(&self, place: &Place) -> Result<(), Failure> {
        self.ask(Query::new(Method::DELETE, INSTANCE), place).await.map(drop) // it may have gone by itself
    }

    /// Makes the entry one of `new`. Readers see the old one or the new one at every moment.
    async fn replace(&mut self, new: Definition) -> Result<(), Failure> {
        let Some(place) = self.place.clone() else {
            self.place = Some(self.register(&new, None).await?);
            self.definition = new;
            return Ok(());
        };
        if self.definition.can_become(&new) {
            if !self.definition.has_properties_of(&new) {
                let body = new.properties(place.generation);
                if !self.ask(Query::new(Method::PUT, PROPERTIES).body(body), &place).await? {
                    return self.replace_by_another(new, place).await;
                }
            }
            if self.definition.status() != new.status() {
                let query = Query::new(Method::PUT, STATUS).with("value", new.status());
                if !self.ask(query, &place).await? {
                    return self.replace_by_another(new, place).await;
                }
            }
            self.definition = new;
            return Ok(());
        }
        self.replace_by_another(new, place).await
    }

    /// Only the properties and the status of an entry can be changed: another one is put up beside it.
    async fn replace_by_another(&mut self, new: Definition, old: Place) -> Result<(), Failure> {
        let place = self.register(&new, None).await?;
        self.definition = new;
        self.place = Some(place.clone());
        // A server that takes what has the same addresses for the same instance has renamed nothing.
        if place.instance != old.instance
            && let Err(failure) = self.remove(&old).await
        {
            tracing::debug!(id = old.instance, %failure, "a replaced entry stays until its time is over");
        }
        Ok(())
    }

    /// Registers until that works.
    async fn register_again(&mut self) {
        let mut pace = Pace::new(self.config.jitter.0);
        let id = self.place.as_ref().map(|place| place.instance.clone());
        let mut is_over_quota = false;
        loop {
            match self.register(&self.definition, id.as_deref()).await {
                Ok(place) => {
                    self.place = Some(place);
                    return;
                }
                Err(failure) if failure.code == NO_QUOTA => {
                    if !std::mem::replace(&mut is_over_quota, true) {
                        let service = &self.definition.key.name;
                        tracing::warn!(target: "chassis", service, %failure, "not put up again: the quota is used up");
                    }
                    sleep(self.client.random().between(OVER_QUOTA * 4 / 5, OVER_QUOTA)).await;
                    continue;
                }
                Err(failure) => tracing::debug!(id, %failure, "not in service center yet"),
            }
            sleep(pace.next(clock::Instant::now(), self.client.random())).await;
        }
    }

    /// Says that the process lives until the server does not know it any more.
    async fn beat(&self) {
        let Some(place) = &self.place else { return };
        let mut end = self.link.listen(Topic::End(place.instance.clone()));
        let every = self.config.heartbeat.get();
        let mut pace = Pace::new(self.config.jitter.0);
        loop {
            let longest = match self.ask(Query::new(Method::PUT, HEARTBEAT), place).await {
                Ok(true) => {
                    pace.reset();
                    self.client.random().between(every - every / 10, every)
                }
                Ok(false) => return,
                Err(failure) => {
                    tracing::debug!(id = place.instance, %failure, "a heartbeat to service center failed");
                    pace.next(clock::Instant::now(), self.client.random()).min(every)
                }
            };
            if pace.failures() > 0 {
                sleep(longest).await;
                continue;
            }
            // The end of this entry was pushed, or the connection was cut: both are found out at once.
            tokio::select! {
                () = sleep(longest) => {}
                () = end.news() => {}
            }
        }
    }

    fn error(&self, failure: &Failure) -> RegistryError {
        let words = format!("{}: {failure}", self.client.name());
        match failure.code {
            NO_QUOTA => RegistryError::quota_exceeded(words),
            _ => RegistryError::new(words),
        }
    }
}

/// The time, which orders the entries of one id.
fn generation() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    since.as_micros().try_into().unwrap_or(u64::MAX)
}

#[async_trait]
impl Entry for Own {
    type Value = Definition;
    type Ended = ();

    async fn put_up(&mut self) -> Result<(), RegistryError> {
        let place = self.register(&self.definition, None).await;
        self.place = Some(place.map_err(|failure| self.error(&failure))?);
        Ok(())
    }

    async fn keep(&mut self, updates: &mut Updates<Definition>) {
        loop {
            let update = tokio::select! {
                () = self.beat() => None,
                update = updates.next() => Some(update),
            };
            match update {
                None => {
                    tracing::warn!(target: "chassis", service = self.definition.key.name, "the entry in service center went; it is put up again");
                    self.register_again().await;
                }
                Some((definition, done)) => {
                    let replaced = self.replace(definition).await;
                    done(replaced.map_err(|failure| self.error(&failure)));
                }
            }
        }
    }

    async fn take_down(&mut self) -> Result<(), RegistryError> {
        let Some(place) = self.place.take() else { return Ok(()) };
        self.remove(&place).await.map_err(|failure| self.error(&failure))
    }
}
