//! For tests of an adapter against its real server, on loopback: what they wait for, a connection that can be cut, and
//! what every registry and every config center keeps while the server is away.
mod gaps;
mod outages;
mod proxy;

use std::{panic::Location, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::time::{Instant, timeout};

pub use self::{
    gaps::{config_gaps, gaps},
    outages::{begun_without_it, change_is_seen, frozen_beyond_its_lease},
    proxy::Proxy,
};
use crate::registry::{Instance, Membership, Registration, Registry, Watcher};

/// A server that a test has started for itself.
#[async_trait]
pub trait Server: Send {
    /// Its address, also after a restart.
    fn address(&self) -> &str;

    /// A registry on the server, reached at `address`: its own, or that of a [`Proxy`]. An entry that is not renewed
    /// lives for `lease`; `None`: the default.
    fn registry(&self, address: &str, lease: Option<Duration>) -> Arc<dyn Registry>;

    /// Ends it at once.
    async fn kill(&mut self);

    /// Starts it again, and waits until it serves.
    async fn run(&mut self);

    /// Stops it from doing anything, or lets it go on.
    async fn freeze(&mut self, is_frozen: bool);

    /// Makes it forget past changes, if it can.
    async fn compact(&mut self) {}

    /// Does it list this instance of `stock` as one to be called, asked by other means than the registry?
    async fn lists(&mut self, id: &str) -> bool;
}

/// The limit of each wait: only a failing test waits for it.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The time after which a server that is back is used again.
pub const SOON: Duration = Duration::from_secs(2);

/// An instance of the service `stock`.
pub fn stock(id: &str) -> Instance {
    Instance::new("stock", id).with_address("main", "127.0.0.1:50051")
}

/// The ids of the instances, in the order of the answer.
pub fn ids_of(answer: &Membership) -> Vec<&str> {
    match answer {
        Membership::Known(all) => all.iter().map(|instance| instance.id.as_str()).collect(),
        Membership::Unknown | Membership::Deleted => Vec::new(),
    }
}

/// Waits until the watcher returns these ids. Errors and other answers before that are skipped.
///
/// # Panics
/// After [`PATIENCE`], with the last answer.
#[track_caller]
pub fn until<'a>(watcher: &'a mut Box<dyn Watcher>, ids: &'a [&str]) -> impl Future<Output = ()> + 'a {
    let caller = Location::caller();
    async move {
        let mut last = None;
        let found = timeout(PATIENCE, async {
            loop {
                let answer = watcher.next().await;
                if answer.as_ref().is_ok_and(|answer| ids_of(answer) == ids) {
                    return;
                }
                last = Some(answer);
            }
        });
        if found.await.is_err() {
            panic!("{caller}: expected {ids:?}, last answer {last:?}");
        }
    }
}

/// Waits until the watcher returns an instance of this weight.
///
/// # Panics
/// After [`PATIENCE`].
pub async fn until_weight(watcher: &mut Box<dyn Watcher>, weight: u32) {
    let found = timeout(PATIENCE, async {
        loop {
            if let Ok(Membership::Known(all)) = watcher.next().await
                && all.iter().any(|instance| instance.weight == weight)
            {
                return;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("no instance of weight {weight}"));
}

/// Registers with a server that is back.
///
/// # Panics
/// If that does not succeed within [`SOON`].
pub async fn register_soon(registry: &dyn Registry, instance: Instance) -> Box<dyn Registration> {
    let back = Instant::now();
    loop {
        match registry.register(instance.clone()).await {
            Ok(registration) => return registration,
            Err(error) => assert!(back.elapsed() < SOON, "{error}"),
        }
        tokio::task::yield_now().await;
    }
}

/// The registry of a server in a test whose server is up.
async fn registered(registry: &dyn Registry, id: &str) -> Box<dyn Registration> {
    let registered = registry.register(stock(id)).await;
    registered.unwrap_or_else(|error| panic!("`{id}` is not registered: {error}"))
}

async fn watched(registry: &dyn Registry) -> Box<dyn Watcher> {
    registry.watch("stock").await.unwrap_or_else(|error| panic!("`stock` is not watched: {error}"))
}

async fn deregistered(registration: Box<dyn Registration>) {
    let ended = registration.deregister().await;
    ended.unwrap_or_else(|error| panic!("an instance is not deregistered: {error}"));
}
