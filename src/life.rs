//! Starts and stops a service, step by step.
//!
//! Start: before-start hooks → bind all listeners → readiness → register → after-start hooks.
//! Stop: before-stop hooks → not ready → deregister → wait for propagation → close listeners,
//! GOAWAY, wait, abort what is left → close clients → after-stop hooks.
use std::{
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis_core::{
    BoxError, BoxFuture, Event,
    registry::{Instance, Registration, Registry, RegistryError},
    tasks::{Panicked, backoff, caught},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    Chassis, StartError,
    app::Parts,
    container::Container,
    identity,
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
}

/// The registration, held by one task.
struct Registered {
    deregister: oneshot::Sender<oneshot::Sender<()>>,
}

/// The time a stop waits for a hook.
const HOOK: Duration = Duration::from_secs(5);
/// The time a start waits for the registry, and a stop.
const REGISTER: Duration = Duration::from_secs(5);
/// A registry that has not registered by then is asked again.
const REGISTER_TRY: Duration = Duration::from_secs(10);
/// The longest wait before the registry is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(15);
/// An error of the registry that stays the same is logged again after this time.
const REMINDER: Duration = Duration::from_secs(60);
/// A hook of a start is logged again and again while it takes longer than this.
const SLOW_HOOK: Duration = Duration::from_secs(10);
const DEREGISTER: Duration = Duration::from_secs(2);
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
        app.rpc.serving();
        let mut running = Running {
            rest: app.rest,
            rpc: app.rpc,
            advertised: advertised(&app.parts, &addresses),
            addresses,
            registered: None,
            parts: app.parts,
        };
        if let Some(container) = Container::of_process() {
            let registry = running.parts.runtime.registry().name();
            if let Some(advice) = container.advice(&running.addresses, registry) {
                tracing::warn!(target: "chassis", "{advice}");
            }
        }
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

    /// The addresses of the listeners, by name; port 0 is replaced by the port that was bound.
    pub fn addresses(&self) -> &[(String, String)] {
        &self.addresses
    }

    /// The address of one name of `listen`.
    pub fn address(&self, name: &str) -> Option<&str> {
        self.addresses.iter().find(|(n, _)| n == name).map(|(_, address)| address.as_str())
    }

    /// The addresses at which others reach this process, by protocol: those of `listen`, with the host of
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

    /// The shared state of the running service.
    pub fn runtime(&self) -> &chassis_core::Runtime {
        &self.parts.runtime
    }

    /// Stops in order. It always ends: every step has a time limit.
    pub async fn stop(mut self) {
        let shutdown = self.parts.shutdown.get();
        let hooks = std::mem::take(&mut self.parts.hooks.before_stop);
        stop_hooks("before-stop", hooks, &self.parts.runtime).await;
        self.rpc.not_serving();
        if let Some(registered) = self.registered.take() {
            let (done, gone) = oneshot::channel();
            // The task answers after the registry does; if the task is gone, nothing is registered.
            let _ = registered.deregister.send(done);
            if tokio::time::timeout(DEREGISTER, gone).await.is_err() {
                tracing::warn!(target: "chassis", "still in the registry after {DEREGISTER:?}; going on without it");
            }
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
        self.parts.runtime.shutdown(TASKS).await;
        let hooks = std::mem::take(&mut self.parts.hooks.after_stop);
        stop_hooks("after-stop", hooks, &self.parts.runtime).await;
        tracing::info!(target: "chassis", instance = self.parts.instance, "{} has stopped", self.parts.runtime.service());
    }

    /// Registers this process; the first try is awaited, later ones run in the background. An error means that
    /// no registry could make this process known.
    async fn register(&mut self) -> Result<(), RegistryError> {
        let Parts { service, runtime, instance, .. } = &self.parts;
        let mut entry = Instance::new(runtime.service().to_string(), instance.clone());
        entry.version = service.version.clone().unwrap_or_default();
        entry.zone = service.zone.clone().unwrap_or_default();
        entry.labels = service.labels.clone().into();
        for (protocol, address) in &self.advertised {
            entry.addresses.insert(protocol.clone(), address.clone());
        }
        if entry.addresses.is_empty() {
            return Ok(()); // nothing is served, so nothing is registered
        }
        entry.check()?;
        let (deregister, asked) = oneshot::channel();
        let (first, tried) = oneshot::channel();
        let registry = runtime.registry().clone();
        let task = keep_registered(registry, entry, runtime.clone(), first, asked);
        // Not one of the runtime's own tasks: it has to outlive the first of them.
        self.parts.runtime.tasks().spawn(task);
        let _ = tokio::time::timeout(REGISTER, tried).await;
        self.registered = Some(Registered { deregister });
        Ok(())
    }
}

/// Where others reach the protocols of this process, given the addresses of the listeners.
fn advertised(parts: &Parts, addresses: &[(String, String)]) -> Vec<(String, String)> {
    let (mut advertised, is_local) = (parts.advertised.clone(), parts.runtime.registry().is_local());
    for (name, address) in addresses.iter().filter(|(name, _)| matches!(name.as_str(), "grpc" | "http")) {
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

/// Owns the registration: registers, again until it succeeds, and deregisters when asked.
///
/// A registry is code of another crate: its panic is an error, and every try has a time limit.
async fn keep_registered(
    registry: Arc<dyn Registry>,
    entry: Instance,
    runtime: chassis_core::Runtime,
    first: oneshot::Sender<()>,
    mut asked: oneshot::Receiver<oneshot::Sender<()>>,
) {
    let (mut first, mut failures) = (Some(first), 0);
    let mut reported: Option<(String, Instant)> = None;
    let (instance, name) = (entry.id.clone(), registry.name().to_owned());
    let registration: Box<dyn Registration> = loop {
        let register = async { registry.register(entry.clone()).await };
        let mut registering = pin!(caught(tokio::time::timeout(REGISTER_TRY, register)));
        let tried = tokio::select! {
            tried = &mut registering => tried,
            done = &mut asked => {
                // A pending registration may still succeed, and would then stay until its lease ends.
                if let Ok(Ok(Ok(Ok(late)))) = tokio::time::timeout(DEREGISTER / 2, registering).await {
                    deregister(late, &runtime, instance, name).await;
                }
                return drop(done.map(|done| done.send(())));
            }
        };
        let error = match tried {
            Ok(Ok(Ok(registration))) => break registration,
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_)) => format!("it did not register within {REGISTER_TRY:?}"),
            Err(panicked) => panicked.to_string(),
        };
        runtime.metrics().registry_failed();
        failures += 1;
        let now = Instant::now();
        if !reported.as_ref().is_some_and(|(before, at)| *before == error && now < *at + REMINDER) {
            reported = Some((error.clone(), now));
            let service = runtime.service().clone();
            runtime.events().emit_caused(&error.clone(), Event::RegistryUnreachable { service, error });
        }
        first.take().map(|first| first.send(()));
        tokio::select! {
            () = tokio::time::sleep(backoff(failures, LONGEST_WAIT, runtime.random())) => {}
            done = &mut asked => return drop(done.map(|done| done.send(()))),
        }
    };
    let registered = Event::Registered { instance: instance.clone(), registry: name.clone() };
    runtime.events().emit(registered);
    first.take().map(|first| first.send(()));
    if let Ok(done) = asked.await {
        deregister(registration, &runtime, instance, name).await;
        let _ = done.send(());
    }
}

async fn deregister(
    registration: Box<dyn Registration>,
    runtime: &chassis_core::Runtime,
    instance: String,
    registry: String,
) {
    match caught(registration.deregister()).await {
        Ok(Ok(())) => runtime.events().emit(Event::Deregistered { instance, registry }),
        Ok(Err(error)) => {
            tracing::warn!(target: "chassis", %error, "could not be removed from the registry");
        }
        Err(panicked) => report_panic(runtime, "registration", "registration".to_owned(), &panicked),
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

fn report_panic(runtime: &chassis_core::Runtime, kind: &str, task: String, panicked: &Panicked) {
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
