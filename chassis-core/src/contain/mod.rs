//! Keeps registries, config sources, contracts and listeners that block their thread away from the threads of calls.
//!
//! A plugin is code of other crates. If it sleeps, loops or uses a synchronous client in an async function, it
//! stops every task of its thread, and on a runtime of one thread the whole process. So threads of its own poll
//! its futures, and a poll that takes too long is reported by name.
//!
//! A plugin that declares that it never blocks is polled in place. So is every plugin on a paused clock, which
//! would advance while other threads work.
mod threads;

use std::{
    any::Any,
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;

use self::threads::{Offloaded, Threads, Watch};
use crate::{
    clock,
    event::{Event, Events},
    plugin::{
        config_source::{ConfigSource, ConfigWatcher, SourceError, Text},
        contracts::{Contract, ContractEntry, ContractOwner, Contracts, ContractsError, Existing},
        quota::{Quota, QuotaDecision, QuotaRequest},
        registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    },
    tasks::{Panicked, catch, caught},
};

/// A poll of a plugin that takes longer than this is reported.
pub const BLOCKED_AFTER: Duration = Duration::from_secs(5);

/// Runs `registry` on threads of its own unless it [never blocks](Registry::never_blocks). A poll that takes
/// longer than `after` emits an event.
///
/// A [`RuntimeBuilder`](crate::RuntimeBuilder) does this with its registry.
pub fn registry(registry: Arc<dyn Registry>, events: &Events, after: Duration) -> Arc<dyn Registry> {
    match registry.never_blocks() {
        true => registry,
        false => {
            let plugin = format!("registry `{}`", registry.name());
            Arc::new(Contained { inner: registry, plugin_threads: PluginThreads::new(plugin, events, after) })
        }
    }
}

/// Runs `source` on threads of its own unless it [never blocks](ConfigSource::never_blocks). A poll that takes
/// longer than `after` emits an event.
pub fn config_source(
    source: Arc<dyn ConfigSource>,
    events: &Events,
    after: Duration,
) -> Arc<dyn ConfigSource> {
    match source.never_blocks() {
        true => source,
        false => {
            let plugin = format!("config source `{}`", source.name());
            Arc::new(Contained { inner: source, plugin_threads: PluginThreads::new(plugin, events, after) })
        }
    }
}

/// Runs `contracts` on threads of its own unless it [never blocks](Contracts::never_blocks). A poll that takes longer than
/// `after` emits an event.
pub fn contracts(contracts: Arc<dyn Contracts>, events: &Events, after: Duration) -> Arc<dyn Contracts> {
    match contracts.never_blocks() {
        true => contracts,
        false => {
            let plugin = format!("contracts `{}`", contracts.name());
            Arc::new(Contained {
                inner: contracts,
                plugin_threads: PluginThreads::new(plugin, events, after),
            })
        }
    }
}

/// Runs `quota` on threads of its own unless it [never blocks](Quota::never_blocks). A poll that takes longer than `after`
/// emits an event.
pub fn quota(quota: Arc<dyn Quota>, events: &Events, after: Duration) -> Arc<dyn Quota> {
    match quota.never_blocks() {
        true => quota,
        false => {
            let name = catch(|| quota.name()).unwrap_or_else(|panicked| panicked.to_string());
            let plugin = format!("quota `{name}`");
            Arc::new(Contained { inner: quota, plugin_threads: PluginThreads::new(plugin, events, after) })
        }
    }
}

/// Threads for synchronous functions of a program, which may block: see [`run`](FunctionThreads::run). Clones share them.
#[derive(Clone)]
pub struct FunctionThreads(PluginThreads);

struct Contained<P: ?Sized> {
    inner: Arc<P>,
    plugin_threads: PluginThreads,
}

/// A registration of a plugin. It stays if the caller of an update drops the future, or if the update panics: a stop has to
/// take the entry down.
struct Kept {
    inner: Arc<AsyncMutex<Option<Box<dyn Registration>>>>,
    plugin_threads: PluginThreads,
}

/// A watcher of a plugin.
struct Part<W: Send + 'static> {
    /// `None` while it is in use, and after a panic. The lock is never contended: it makes parts `Sync` that
    /// are not.
    inner: Mutex<Option<W>>,
    plugin_threads: PluginThreads,
}

/// A watcher, and its pending call, which stays if the caller drops the future.
struct Asked<W: Send + 'static, T: Send + 'static> {
    part: Part<W>,
    under_way: Mutex<Option<Offloaded<(W, T)>>>,
}

/// The threads that poll a plugin, and the plugin's name.
#[derive(Clone)]
pub(crate) struct PluginThreads {
    plugin: Arc<str>,
    threads: Threads,
    events: Events,
    after: Duration,
}

// === impl PluginThreads ===

impl PluginThreads {
    pub(crate) fn new(plugin: String, events: &Events, after: Duration) -> Self {
        PluginThreads { plugin: plugin.into(), threads: Threads::new(), events: events.clone(), after }
    }

    fn offload<T: Send + 'static>(
        &self,
        what: String,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Offloaded<T> {
        let (events, plugin) = (self.events.clone(), self.plugin.clone());
        let report = Box::new(move |lasts: Duration| {
            let (plugin, call) = (plugin.to_string(), what.clone());
            events.emit(Event::PluginBlocked { plugin, call, lasts });
        });
        self.threads.offload(Watch { after: self.after, report }, future)
    }

    /// Has the plugin's threads poll `future`. Its panic is resumed here.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        what: &str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> T {
        match clock::is_paused() {
            true => future.await,
            false => self.offload(what.to_owned(), future).await.unwrap_or_else(|panic| resume_unwind(panic)),
        }
    }

    fn part<W: Send + 'static>(&self, inner: W) -> Part<W> {
        Part { inner: Mutex::new(Some(inner)), plugin_threads: self.clone() }
    }

    fn asked<W: Send + 'static, T: Send + 'static>(&self, watcher: W) -> Asked<W, T> {
        Asked { part: self.part(watcher), under_way: Mutex::new(None) }
    }
}

// === impl FunctionThreads ===

impl FunctionThreads {
    /// Threads for the functions of `name`, which events show. A function that takes longer than `after` emits one.
    pub fn new(name: impl Into<String>, events: &Events, after: Duration) -> Self {
        FunctionThreads(PluginThreads::new(name.into(), events, after))
    }

    /// Calls `function` on one of the threads, or in place on a paused clock. `what` is shown if it blocks.
    ///
    /// # Errors
    /// The function panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        what: &str,
        function: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Panicked> {
        caught(self.0.run(what, async move { function() })).await
    }
}

// === impl Part ===

impl<W: Send + 'static> Part<W> {
    fn inner(&mut self) -> &mut Option<W> {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropping a part may block as well.
impl<W: Send + 'static> Drop for Part<W> {
    fn drop(&mut self) {
        let Some(inner) = self.inner().take() else { return };
        match clock::is_paused() {
            true => drop(inner),
            false => self.plugin_threads.threads.drop_later(inner),
        }
    }
}

// === impl Kept ===

/// Dropping a registration may block as well.
impl Drop for Kept {
    fn drop(&mut self) {
        let inner = std::mem::take(&mut self.inner);
        let is_over = inner.try_lock().is_ok_and(|registration| registration.is_none());
        if !is_over && !clock::is_paused() {
            self.plugin_threads.threads.drop_later(inner);
        }
    }
}

// === impl Asked ===

impl<W: Send + 'static, T: Send + 'static> Asked<W, T> {
    /// The answer of the pending call, or of a new one by `ask`. `None` after a panic.
    async fn next<Fut>(&mut self, ask: impl FnOnce(W) -> Fut) -> Option<T>
    where
        Fut: Future<Output = (W, T)> + Send + 'static,
    {
        let under_way = self.under_way.get_mut().unwrap_or_else(PoisonError::into_inner);
        if under_way.is_none() {
            let question = ask(self.part.inner().take()?);
            *under_way = Some(self.part.plugin_threads.offload("next".to_owned(), question));
        }
        let answer: Result<_, Box<dyn Any + Send>> = under_way.as_mut()?.await;
        *under_way = None;
        let (watcher, said) = answer.unwrap_or_else(|panic| resume_unwind(panic));
        *self.part.inner() = Some(watcher);
        Some(said)
    }

    /// The watcher, if it is polled in place.
    fn in_place(&mut self) -> Option<&mut W> {
        let is_asked = self.under_way.get_mut().unwrap_or_else(PoisonError::into_inner).is_some();
        if !is_asked && clock::is_paused() { self.part.inner().as_mut() } else { None }
    }
}

#[async_trait]
impl Registry for Contained<dyn Registry> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn listed_by(&self, service: &str, id: &str) -> Option<String> {
        self.inner.listed_by(service, id)
    }

    fn contracts(&self) -> Option<Arc<dyn Contracts>> {
        self.inner.contracts()
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        let registry = self.inner.clone();
        let registering = async move { registry.register(instance).await };
        let registration = self.plugin_threads.run("register", registering).await?;
        let inner = Arc::new(AsyncMutex::new(Some(registration)));
        Ok(Box::new(Kept { inner, plugin_threads: self.plugin_threads.clone() }))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let (registry, service) = (self.inner.clone(), service.to_owned());
        let watcher = self.plugin_threads.run("watch", async move { registry.watch(&service).await }).await?;
        Ok(Box::new(self.plugin_threads.asked(watcher)))
    }

    async fn services(&self) -> Vec<String> {
        let registry = self.inner.clone();
        self.plugin_threads.run("services", async move { registry.services().await }).await
    }

    fn lists_services(&self) -> bool {
        self.inner.lists_services()
    }

    fn looked_up_in(&self, service: &str) -> &str {
        self.inner.looked_up_in(service)
    }

    /// The wrapper itself does not block.
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Registration for Kept {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        let updating = async move {
            match inner.lock().await.as_mut() {
                Some(registration) => registration.update(instance).await,
                None => Err(RegistryError::new("it was deregistered")),
            }
        };
        self.plugin_threads.run("update", updating).await
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let inner = self.inner.clone();
        let ending = async move {
            match inner.lock().await.take() {
                Some(registration) => registration.deregister().await,
                None => Ok(()),
            }
        };
        self.plugin_threads.run("deregister", ending).await
    }
}

#[async_trait]
impl Watcher for Asked<Box<dyn Watcher>, Result<Membership, RegistryError>> {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        if let Some(watcher) = self.in_place() {
            return watcher.next().await;
        }
        let ask = |mut watcher: Box<dyn Watcher>| async move {
            let said = watcher.next().await;
            (watcher, said)
        };
        Asked::next(self, ask).await.unwrap_or_else(|| Err(RegistryError::new("it has panicked before")))
    }
}

#[async_trait]
impl ConfigSource for Contained<dyn ConfigSource> {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let source = self.inner.clone();
        let watcher = self.plugin_threads.run("watch", async move { source.watch().await }).await?;
        Ok(Box::new(self.plugin_threads.asked(watcher)))
    }

    /// The wrapper itself does not block.
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl ConfigWatcher for Asked<Box<dyn ConfigWatcher>, Result<Text, SourceError>> {
    async fn next(&mut self) -> Result<Text, SourceError> {
        if let Some(watcher) = self.in_place() {
            return watcher.next().await;
        }
        let ask = |mut watcher: Box<dyn ConfigWatcher>| async move {
            let said = watcher.next().await;
            (watcher, said)
        };
        Asked::next(self, ask).await.unwrap_or_else(|| Err(SourceError::new("it has panicked before")))
    }
}

#[async_trait]
impl Contracts for Contained<dyn Contracts> {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError> {
        let (inner, of, contracts) = (self.inner.clone(), of.clone(), contracts.to_vec());
        let publishing = async move { inner.publish(&of, &contracts, existing).await };
        self.plugin_threads.run("publish", publishing).await
    }

    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError> {
        let (inner, service, environment) = (self.inner.clone(), service.to_owned(), environment.to_owned());
        let asking = async move { inner.versions(&service, &environment).await };
        self.plugin_threads.run("versions", asking).await
    }

    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError> {
        let (inner, of) = (self.inner.clone(), of.clone());
        self.plugin_threads.run("list", async move { inner.list(&of).await }).await
    }

    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError> {
        let (inner, of, name) = (self.inner.clone(), of.clone(), name.to_owned());
        self.plugin_threads.run("fetch", async move { inner.fetch(&of, &name).await }).await
    }

    /// The wrapper itself does not block.
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Quota for Contained<dyn Quota> {
    fn name(&self) -> String {
        self.inner.name()
    }

    async fn ask(&self, request: &QuotaRequest) -> Result<QuotaDecision, RegistryError> {
        let (inner, request) = (self.inner.clone(), request.clone());
        self.plugin_threads.run("ask", async move { inner.ask(&request).await }).await
    }

    /// The wrapper itself does not block.
    fn never_blocks(&self) -> bool {
        true
    }
}
