//! Keeps registries and sources of settings that block their thread from those of calls.
//!
//! A plugin is code that others wrote. One that sleeps, loops or uses a synchronous client in an async function would
//! stop every task of its thread, and on a runtime of one thread the process. So its futures are polled by
//! threads of its own, and a poll that lasts for too long is reported by name.
//!
//! A plugin that says that it never blocks is polled in place. So is every one on a clock that stands still: time
//! would move on while other threads work.
mod threads;

use std::{
    any::Any,
    panic::resume_unwind,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;

use self::threads::{Offloaded, Threads, Watch};
use crate::{
    clock,
    event::{Event, Events},
    plugin::{
        config_source::{ConfigSource, ConfigWatcher, SourceError, Text},
        registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
    },
};

/// A poll of a plugin that lasts for longer than this is reported.
pub const BLOCKED_AFTER: Duration = Duration::from_secs(5);

/// `registry`, on threads of its own unless it says that it [never blocks](Registry::never_blocks). A poll that lasts
/// for longer than `after` is an event.
///
/// A [`RuntimeBuilder`](crate::RuntimeBuilder) does this with the registry that it is given.
pub fn registry(registry: Arc<dyn Registry>, events: &Events, after: Duration) -> Arc<dyn Registry> {
    match registry.never_blocks() {
        true => registry,
        false => {
            let plugin = format!("registry `{}`", registry.name());
            Arc::new(Contained { inner: registry, aside: Aside::new(plugin, events, after) })
        }
    }
}

/// `source`, on threads of its own unless it says that it [never blocks](ConfigSource::never_blocks). A poll that
/// lasts for longer than `after` is an event.
pub fn config_source(
    source: Arc<dyn ConfigSource>,
    events: &Events,
    after: Duration,
) -> Arc<dyn ConfigSource> {
    match source.never_blocks() {
        true => source,
        false => {
            let plugin = format!("config source `{}`", source.name());
            Arc::new(Contained { inner: source, aside: Aside::new(plugin, events, after) })
        }
    }
}

struct Contained<P: ?Sized> {
    inner: Arc<P>,
    aside: Aside,
}

/// What a plugin handed out: a watcher, or a registration.
struct Part<W: Send + 'static> {
    /// `None` while it is asked, and once it has panicked. The lock is never contended: it lets parts be shared that
    /// can't be.
    inner: Mutex<Option<W>>,
    aside: Aside,
}

/// A watcher, and the question to it that is under way: that stays where the caller drops its own.
struct Asked<W: Send + 'static, T: Send + 'static> {
    part: Part<W>,
    under_way: Mutex<Option<Offloaded<(W, T)>>>,
}

/// Where and under which name a plugin is polled.
#[derive(Clone)]
struct Aside {
    plugin: Arc<str>,
    threads: Threads,
    events: Events,
    after: Duration,
}

// === impl Aside ===

impl Aside {
    fn new(plugin: String, events: &Events, after: Duration) -> Self {
        Aside { plugin: plugin.into(), threads: Threads::new(), events: events.clone(), after }
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

    /// Has `future` polled aside. Its panic comes out here.
    async fn run<T: Send + 'static>(
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
        Part { inner: Mutex::new(Some(inner)), aside: self.clone() }
    }

    fn asked<W: Send + 'static, T: Send + 'static>(&self, watcher: W) -> Asked<W, T> {
        Asked { part: self.part(watcher), under_way: Mutex::new(None) }
    }
}

// === impl Part ===

impl<W: Send + 'static> Part<W> {
    fn inner(&mut self) -> &mut Option<W> {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is dropped may block as well.
impl<W: Send + 'static> Drop for Part<W> {
    fn drop(&mut self) {
        let Some(inner) = self.inner().take() else { return };
        match clock::is_paused() {
            true => drop(inner),
            false => self.aside.threads.drop_later(inner),
        }
    }
}

// === impl Asked ===

impl<W: Send + 'static, T: Send + 'static> Asked<W, T> {
    /// The answer of the question that is under way, or of the one that `ask` makes. `None`: it has panicked before.
    async fn next<Fut>(&mut self, ask: impl FnOnce(W) -> Fut) -> Option<T>
    where
        Fut: Future<Output = (W, T)> + Send + 'static,
    {
        let under_way = self.under_way.get_mut().unwrap_or_else(PoisonError::into_inner);
        if under_way.is_none() {
            let question = ask(self.part.inner().take()?);
            *under_way = Some(self.part.aside.offload("next".to_owned(), question));
        }
        let answer: Result<_, Box<dyn Any + Send>> = under_way.as_mut()?.await;
        *under_way = None;
        let (watcher, said) = answer.unwrap_or_else(|panic| resume_unwind(panic));
        *self.part.inner() = Some(watcher);
        Some(said)
    }

    /// The watcher, where it is to be asked in place.
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

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        let registry = self.inner.clone();
        let registering = async move { registry.register(instance).await };
        let registration = self.aside.run("register", registering).await?;
        Ok(Box::new(self.aside.part(registration)))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let (registry, service) = (self.inner.clone(), service.to_owned());
        let watcher = self.aside.run("watch", async move { registry.watch(&service).await }).await?;
        Ok(Box::new(self.aside.asked(watcher)))
    }

    async fn services(&self) -> Vec<String> {
        let registry = self.inner.clone();
        self.aside.run("services", async move { registry.services().await }).await
    }

    /// Not where it is polled.
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Registration for Part<Box<dyn Registration>> {
    async fn deregister(mut self: Box<Self>) -> Result<(), RegistryError> {
        let Some(registration) = self.inner().take() else { return Ok(()) };
        self.aside.run("deregister", async move { registration.deregister().await }).await
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
        let watcher = self.aside.run("watch", async move { source.watch().await }).await?;
        Ok(Box::new(self.aside.asked(watcher)))
    }

    /// Not where it is polled.
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
