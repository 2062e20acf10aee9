//! Starts and stops a service, step by step.
//!
//! Start: admin surface → before-start hooks → bind all listeners → readiness → register → after-start hooks.
//! Stop: before-stop hooks → not ready → deregister → wait for propagation → close listeners,
//! GOAWAY, wait, abort what is left → close the admin surface → close clients → after-stop hooks.
//!
//! The admin surface is the first and the last: probes are answered during the whole life, and a start that hangs can be
//! looked at.
use std::{
    pin::pin,
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use chassis_core::{
    BoxError, BoxFuture, Event,
    registry::{Instance, RegistryError},
    tasks::{Panicked, caught},
};
use tokio::time::Instant;

use crate::{
    Chassis, StartError,
    admin::Surface,
    app::Parts,
    container::Container,
    crash_guard::Watched,
    identity,
    presence::{Presence, Registered},
    rest::{self, Rest},
    rpc::Rpc,
};

/// A hook of the program. The lock is never contended: it makes services `Sync` whose hooks are not.
pub(crate) struct Hook(Mutex<Box<dyn FnOnce() -> HookFuture + Send>>);

type HookFuture = BoxFuture<'static, Result<(), BoxError>>;

#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) before_start: Vec<Hook>,
    pub(crate) after_start: Vec<Hook>,
    pub(crate) before_stop: Vec<Hook>,
    pub(crate) after_stop: Vec<Hook>,
}

/// A service that runs.
pub struct Running {
    parts: Parts,
    pub(crate) rest: Rest,
    pub(crate) rpc: Rpc,
    addresses: Vec<(String, String)>,
    advertised: Vec<(String, String)>,
    registered: Option<Registered>,
    surface: Surface,
}

/// The time a stop waits for a hook.
const HOOK: Duration = Duration::from_secs(5);
/// A hook of a start is logged again and again while it takes longer than this.
const SLOW_HOOK: Duration = Duration::from_secs(10);
/// The time a stop waits for answers of the admin surface.
const ADMIN: Duration = Duration::from_secs(1);
/// The time a stop waits for background tasks.
const TASKS: Duration = Duration::from_secs(1);
/// The time Kubernetes needs until endpoints have been removed everywhere.
const PROPAGATION: Duration = Duration::from_secs(5);

// === impl Hook ===

impl Hook {
    pub(crate) fn new<Fut>(hook: impl FnOnce() -> Fut + Send + 'static) -> Self
    where
        Fut: Future<Output = Result<(), BoxError>> + Send + 'static,
    {
        Hook(Mutex::new(Box::new(|| Box::pin(hook()))))
    }

    fn run(self) -> BoxFuture<'static, Result<(), BoxError>> {
        (self.0.into_inner().unwrap_or_else(PoisonError::into_inner))()
    }
}

// === impl Running ===

impl Running {
    pub(crate) async fn start(mut app: Chassis) -> Result<Self, StartError> {
        let surface = match Surface::open(&app).await {
            Ok(surface) => surface,
            Err(error) => {
                app.parts.runtime.shutdown(TASKS).await;
                return Err(error);
            }
        };
        for hook in std::mem::take(&mut app.parts.hooks.before_start) {
            if let Err(error) = start_hook("before-start", hook, &app.parts.runtime).await {
                app.parts.runtime.shutdown(TASKS).await;
                return Err(StartError::Hook("before-start", error));
            }
        }
        let addresses = match rest::listen(&mut app).await {
            Ok(addresses) => addresses,
            Err(error) => {
                // No task may log anything after the error.
                app.parts.runtime.shutdown(TASKS).await;
                return Err(error);
            }
        };
        if let Some(container) = Container::of_process() {
            let registry = app.parts.runtime.registry().name();
            if let Some(advice) = container.advice(&addresses, registry) {
                tracing::warn!(target: "chassis", "{advice}");
            }
        }
        let advertised = advertised(&app.parts, &addresses);
        let addresses = [addresses, surface.addresses()].concat();
        surface.serves(&addresses, &advertised);
        app.parts.presence.serving();
        let mut running = Running {
            rest: app.rest,
            rpc: app.rpc,
            advertised,
            addresses,
            registered: None,
            parts: app.parts,
            surface,
        };
        if let Err(error) = running.register().await {
            running.stop().await;
            return Err(StartError::Settings(format!("the advertised address cannot be reached: {error}")));
        }
        for hook in std::mem::take(&mut running.parts.hooks.after_start) {
            if let Err(error) = start_hook("after-start", hook, &running.parts.runtime).await {
                running.stop().await;
                return Err(StartError::Hook("after-start", error));
            }
        }
        let (instance, service) = (&running.parts.instance, running.parts.runtime.service());
        let reached = running.advertised.iter().map(|(protocol, address)| format!("{protocol} at {address}"));
        match reached.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => tracing::info!(target: "chassis", instance, "{service} is up"),
            reached => tracing::info!(target: "chassis", instance, "{service} is up, reached by {reached}"),
        }
        Ok(running)
    }

    /// The addresses of the listeners, by name, those of the admin surface last; port 0 is replaced by the port that was
    /// bound.
    pub fn addresses(&self) -> &[(String, String)] {
        &self.addresses
    }

    /// The address of one name of `listen`.
    pub fn address(&self, name: &str) -> Option<&str> {
        self.addresses.iter().find(|(n, _)| n == name).map(|(_, address)| address.as_str())
    }

    /// The addresses at which others reach this process, by listener: those of `listen`, with the host of
    /// `service.advertise`, and those that [`Chassis::advertise`] added.
    pub fn advertised(&self) -> &[(String, String)] {
        &self.advertised
    }

    /// The live value of the section `name` of the settings: see [`Chassis::settings`].
    ///
    /// # Errors
    /// [`StartError::Settings`] if no section of this name and type was registered.
    pub fn settings<T: Send + Sync + 'static>(
        &self,
        name: &str,
    ) -> Result<chassis_core::LiveSection<T>, StartError> {
        self.parts.section(name)
    }

    /// The settings: where each is from, past versions, rollback, dry runs.
    pub fn config(&self) -> crate::ConfigHandle {
        self.parts.config.clone()
    }

    /// The contracts of services: descriptors and OpenAPI texts that they have published.
    pub fn contracts(&self) -> crate::ContractsHandle {
        self.parts.contracts.clone()
    }

    /// Takes this process out of service, or puts it back, while it runs; see [`Presence`].
    pub fn presence(&self) -> &Presence {
        &self.parts.presence
    }

    /// The health checks of the program, which decide whether this process is ready for calls.
    pub fn health(&self) -> &chassis_core::health::Health {
        self.parts.runtime.health()
    }

    /// Makes other services send no new calls here until [`put_back_in_service`](Self::put_back_in_service): see
    /// [`Presence::take_out_of_service`].
    ///
    /// # Errors
    /// The registry has not accepted the change within 5 s. It is tried again in the background.
    pub async fn take_out_of_service(&self) -> Result<(), RegistryError> {
        self.parts.presence.take_out_of_service().await
    }

    /// Takes calls again: see [`Presence::put_back_in_service`].
    ///
    /// # Errors
    /// As for [`take_out_of_service`](Self::take_out_of_service).
    pub async fn put_back_in_service(&self) -> Result<(), RegistryError> {
        self.parts.presence.put_back_in_service().await
    }

    /// The shared state of the running service.
    pub fn runtime(&self) -> &chassis_core::Runtime {
        &self.parts.runtime
    }

    /// Stops in order. It always ends: every step has a time limit.
    pub async fn stop(mut self) {
        let shutdown = self.parts.shutdown.get();
        if let Some(Watched(guard)) = &self.parts.crash_guard {
            guard.stopped(); // whatever ends the process from now on, it was told to end
        }
        let hooks = std::mem::take(&mut self.parts.hooks.before_stop);
        stop_hooks("before-stop", hooks, &self.parts.runtime).await;
        self.parts.presence.stopping();
        if let Some(registered) = self.registered.take() {
            registered.deregister().await;
        }
        let in_kubernetes = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let delay = shutdown.delay.map(|span| span.0);
        tokio::time::sleep(delay.unwrap_or(if in_kubernetes { PROPAGATION } else { Duration::ZERO })).await;
        // Ends streams of health watchers and of reflection, which would delay the drain.
        self.rpc.close();
        match self.rest.drain(shutdown.deadline.0).await {
            0 => {}
            cut => {
                tracing::warn!(target: "chassis", cut, "calls were still under way at the deadline, and were cut")
            }
        }
        self.surface.close(ADMIN).await;
        self.parts.runtime.shutdown(TASKS).await;
        let hooks = std::mem::take(&mut self.parts.hooks.after_stop);
        stop_hooks("after-stop", hooks, &self.parts.runtime).await;
        tracing::info!(target: "chassis", instance = self.parts.instance, "{} has stopped", self.parts.runtime.service());
    }

    /// Registers this process; the first try is awaited, later ones run in the background. An error means that
    /// no registry could make this process known.
    async fn register(&mut self) -> Result<(), RegistryError> {
        let Parts { service, runtime, instance, presence, .. } = &self.parts;
        let mut entry = Instance::new(runtime.service().to_string(), instance.clone())
            .with_version(service.version.as_deref().unwrap_or_default())
            .with_zone(service.zone.as_deref().unwrap_or_default())
            .with_region(service.region.as_deref().unwrap_or_default())
            .with_hostname(service.hostname.as_deref().unwrap_or_default())
            .with_app(service.app.as_deref().unwrap_or_default())
            .with_environment(service.environment.as_deref().unwrap_or_default())
            .with_priority(service.priority)
            .with_started_at(SystemTime::now());
        entry.labels = service.labels.clone().into();
        for (listener, address) in &self.advertised {
            entry.addresses.insert(listener.clone(), address.clone());
        }
        if entry.addresses.is_empty() {
            return Ok(()); // nothing is served, so nothing is registered
        }
        entry.check()?;
        self.parts.rollout.advertised(&entry);
        self.registered = Some(presence.register(entry, runtime, self.parts.quota.clone()).await);
        if let Some(publisher) = self.parts.publisher.take() {
            self.parts.runtime.tasks().spawn(publisher.run());
        }
        Ok(())
    }
}

/// Where others reach the listeners of this process, given the addresses of the listeners.
fn advertised(parts: &Parts, addresses: &[(String, String)]) -> Vec<(String, String)> {
    let (mut advertised, is_local) = (parts.advertised.clone(), parts.runtime.registry().is_local());
    for (name, address) in addresses {
        let address = identity::advertised(address, parts.service.advertise.as_deref(), is_local);
        advertised.retain(|(protocol, _)| protocol != name);
        advertised.push((name.clone(), address));
    }
    advertised
}

/// Without a stop, dropping it aborts everything.
impl Drop for Running {
    fn drop(&mut self) {
        self.parts.runtime.tasks().cancel();
    }
}

/// Runs a hook of a start without a time limit; logs that it takes long.
async fn start_hook(
    which: &'static str,
    hook: Hook,
    runtime: &chassis_core::Runtime,
) -> Result<(), BoxError> {
    let began = Instant::now();
    let mut running = pin!(caught(async { hook.run().await }));
    loop {
        tokio::select! {
            ended = &mut running => {
                return ended.unwrap_or_else(|panicked| {
                    report_panic(runtime, "hook", format!("the {which} hook"), &panicked);
                    Err(panicked.into())
                });
            }
            () = tokio::time::sleep(SLOW_HOOK) => {
                tracing::warn!(target: "chassis", "a {which} hook still runs after {:?}", began.elapsed());
            }
        }
    }
}

/// Runs each hook in a task of its own: one that blocks its thread does not delay the stop if there are other
/// threads.
async fn stop_hooks(which: &'static str, hooks: Vec<Hook>, runtime: &chassis_core::Runtime) {
    for hook in hooks {
        let mut running = tokio::spawn(caught(async move { hook.run().await }));
        match tokio::time::timeout(HOOK, &mut running).await {
            Ok(Ok(Ok(Ok(())))) => {}
            Ok(Ok(Ok(Err(error)))) => tracing::warn!(target: "chassis", %error, "a {which} hook failed"),
            Ok(Ok(Err(panicked))) => report_panic(runtime, "hook", format!("the {which} hook"), &panicked),
            Ok(Err(_)) => {} // the runtime ends, and the hook with it
            Err(_) => {
                running.abort();
                tracing::warn!(target: "chassis", "a {which} hook took longer than {HOOK:?}");
            }
        }
    }
}

pub(crate) fn report_panic(runtime: &chassis_core::Runtime, kind: &str, task: String, panicked: &Panicked) {
    runtime.metrics().task_panicked(kind);
    runtime.events().emit(Event::TaskPanicked { task, message: panicked.to_string() });
}

/// SIGTERM and SIGINT.
pub(crate) struct Signals {
    #[cfg(unix)]
    term: tokio::signal::unix::Signal,
    #[cfg(unix)]
    int: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn new() -> Result<Self, StartError> {
        #[cfg(unix)]
        {
            use tokio::signal::unix::{SignalKind, signal};
            let of =
                |kind| signal(kind).map_err(|error| StartError::Setup("signals".to_owned(), Box::new(error)));
            Ok(Signals { term: of(SignalKind::terminate())?, int: of(SignalKind::interrupt())? })
        }
        #[cfg(not(unix))]
        Ok(Signals {})
    }

    /// The number of the next signal.
    pub(crate) async fn next(&mut self) -> i32 {
        #[cfg(unix)]
        {
            tokio::select! { _ = self.term.recv() => 15, _ = self.int.recv() => 2 }
        }
        #[cfg(not(unix))]
        {
            let _ = tokio::signal::ctrl_c().await;
            2
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_can_be_shared() {
        fn shared<T: Send + Sync>() {}
        shared::<Chassis>();
        shared::<Running>();
    }
}
