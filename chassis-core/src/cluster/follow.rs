//! How a cluster follows its registry: what is believed, and when.
use std::{collections::HashSet, sync::Arc, time::Duration};

use super::{Cluster, Known};
use crate::{
    clock::Instant,
    event::Event,
    registry::{Instance, Membership, Registry, RegistryError, Watcher},
};

/// How long calls to an unknown service wait for the name that may have been meant.
const SERVICES_WAIT: Duration = Duration::from_millis(100);
/// A registry that answers with an empty list is believed after this long.
const EMPTY_GRACE: Duration = Duration::from_secs(60);

/// Keeps `cluster` as the registry says, and the last good set where it says nothing.
pub(super) async fn follow(cluster: Arc<Cluster>, registry: Arc<dyn Registry>) {
    let mut failures = 0u32;
    loop {
        let error = match registry.watch(cluster.service()).await {
            Ok(mut watcher) => follow_one(&cluster, &*registry, &mut *watcher, &mut failures).await,
            Err(error) => error,
        };
        failures += 1;
        let (service, error) = (cluster.service().clone(), chain(&error));
        cluster.site.events.emit(Event::RegistryUnreachable { service, error });
        let most = Duration::from_millis(100 << failures.min(8)).min(Duration::from_secs(15));
        tokio::time::sleep(cluster.random().between(most / 2, most)).await;
    }
}

async fn follow_one(
    cluster: &Cluster,
    registry: &dyn Registry,
    watcher: &mut dyn Watcher,
    failures: &mut u32,
) -> RegistryError {
    let mut empty_since: Option<Instant> = None;
    loop {
        let next = match empty_since {
            None => watcher.next().await,
            Some(since) => {
                match tokio::time::timeout_at((since + EMPTY_GRACE).into(), watcher.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        cluster.replace(Known::Service, None, Vec::new(), false);
                        empty_since = None;
                        continue;
                    }
                }
            }
        };
        let membership = match next {
            Ok(membership) => membership,
            Err(error) => return error,
        };
        *failures = 0;
        let kept = cluster.members.get().nodes().len();
        let (known, instances) = match membership {
            Membership::Known(instances) => (Known::Service, cluster.usable(instances)),
            Membership::Unknown => (Known::Unknown, Vec::new()),
            Membership::Deleted => (Known::Deleted, Vec::new()),
        };
        // A registry that knows of nobody any more, or has forgotten the service, may have lost its memory.
        if instances.is_empty() && kept > 0 && known != Known::Deleted {
            if empty_since.is_none() {
                empty_since = Some(Instant::now());
                cluster.site.events.emit(Event::EmptySetHeld { service: cluster.service().clone(), kept });
            }
            continue;
        }
        let returned = empty_since.take().is_some();
        let near = match known {
            Known::Unknown => nearest_of(cluster.service(), registry).await,
            Known::Service | Known::Deleted => None,
        };
        cluster.replace(known, near, instances, returned);
    }
}

/// The service that may have been meant. A registry that can't tell at once is not waited for: calls wait.
async fn nearest_of(name: &str, registry: &dyn Registry) -> Option<Arc<str>> {
    let all = tokio::time::timeout(SERVICES_WAIT, registry.services()).await.ok()?;
    nearest(name, all).map(Into::into)
}

/// The name that differs least, if it is near enough to be a slip.
fn nearest(name: &str, all: Vec<String>) -> Option<String> {
    let far = name.len().max(3) / 3;
    all.into_iter()
        .filter(|other| other != name)
        .map(|other| (crate::matching::edit_distance(name, &other), other))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, other)| other)
}

fn chain(error: &RegistryError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

impl Cluster {
    /// The instances that can be called over this protocol, each once.
    fn usable(&self, mut instances: Vec<Arc<Instance>>) -> Vec<Arc<Instance>> {
        let service = &*self.common.service;
        let mut seen = HashSet::new();
        instances.retain(|instance| {
            if !instance.addresses.contains_key(self.protocol) {
                return false;
            }
            if let Err(error) = instance.check() {
                tracing::warn!(target: "chassis", service, %error, "an instance is ignored");
                return false;
            }
            let first = seen.insert(instance.id.clone());
            if !first {
                let id = &instance.id;
                tracing::warn!(target: "chassis", service, id, "a second instance of the same id is ignored");
            }
            first
        });
        instances
    }
}
