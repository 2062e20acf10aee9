//! How a service starts and stops, step by step.
//!
//! Start: before-start hooks → bind all listeners → readiness → register → after-start hooks.
//! Stop: before-stop hooks → not ready → deregister → wait until others have heard → close listeners,
//! GOAWAY, wait, cut what is left → close clients → after-stop hooks.
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chassis_core::{
    BoxError, BoxFuture,
    event::Event,
    registry::{Instance, Registration, Registry},
};
#[cfg(feature = "http")]
use chassis_http::server::Server;
use tokio::sync::oneshot;

#[cfg(feature = "http")]
use crate::app::Transports;
use crate::{Chassis, StartError, app::Parts, container::Container, identity};

/// A hook of the user's. The lock is never contended: it lets services be shared whose hooks can't be.
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
    #[cfg(feature = "http")]
    server: Server,
    #[cfg(feature = "http")]
    transports: Transports,
    #[cfg(feature = "grpc")]
    health: chassis_grpc::Health,
    addresses: Vec<(String, String)>,
    advertised: Vec<(String, String)>,
    registered: Option<Registered>,
}

/// The entry in the registry, held by one task.
struct Registered {
    deregister: oneshot::Sender<oneshot::Sender<()>>,
}

/// Hooks of a stop are not waited for longer.
const HOOK: Duration = Duration::from_secs(5);
/// Nor is the registry, at the start and at the end.
const REGISTER: Duration = Duration::from_secs(5);
const DEREGISTER: Duration = Duration::from_secs(2);
/// Nor are background tasks.
const TASKS: Duration = Duration::from_secs(1);
/// How long it takes in Kubernetes until endpoints have been taken out everywhere.
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
            hook.run().await.map_err(|error| StartError::Hook("before-start", error))?;
        }
        #[cfg(feature = "http")]
        let (server, addresses) = listen(&mut app).await?;
        #[cfg(not(feature = "http"))]
        let addresses = Vec::new();
        #[cfg(feature = "grpc")]
        app.health.serving();
        let mut running = Running {
            #[cfg(feature = "http")]
            server,
            #[cfg(feature = "http")]
            transports: app.transports,
            #[cfg(feature = "grpc")]
            health: app.health,
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
        running.register().await;
        for hook in std::mem::take(&mut running.parts.hooks.after_start) {
            if let Err(error) = hook.run().await {
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

    /// Where is listened, by name; port 0 has become the one that was free.
    pub fn addresses(&self) -> &[(String, String)] {
        &self.addresses
    }

    /// The address of one name of `listen`.
    pub fn address(&self, name: &str) -> Option<&str> {
        self.addresses.iter().find(|(n, _)| n == name).map(|(_, address)| address.as_str())
    }

    /// Where others are told that this process is reached, by protocol: `listen`, with the host that
    /// `service.advertise` names, and what [`Chassis::advertise`] added.
    pub fn advertised(&self) -> &[(String, String)] {
        &self.advertised
    }

    /// A channel to `service`, for any stub that tonic generates.
    #[cfg(feature = "grpc")]
    pub fn grpc(&self, service: &str) -> chassis_grpc::Channel {
        self.transports.channel(&self.parts.runtime, service)
    }

    /// A client of the REST service `service`.
    #[cfg(feature = "http")]
    pub fn http(&self, service: &str) -> chassis_http::HttpClient {
        self.transports.client(&self.parts.runtime, service)
    }

    /// What the running service shares.
    pub fn runtime(&self) -> &chassis_core::Runtime {
        &self.parts.runtime
    }

    /// Stops in order. It always ends: every step is bounded.
    pub async fn stop(mut self) {
        let shutdown = self.parts.shutdown.get();
        stop_hooks("before-stop", std::mem::take(&mut self.parts.hooks.before_stop)).await;
        #[cfg(feature = "grpc")]
        self.health.not_serving();
        if let Some(registered) = self.registered.take() {
            let (done, gone) = oneshot::channel();
            // The task answers when the registry has; a task that is gone has nothing to take down.
            let _ = registered.deregister.send(done);
            let _ = tokio::time::timeout(DEREGISTER, gone).await;
        }
        let in_kubernetes = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let delay = shutdown.delay.map(|span| span.0);
        tokio::time::sleep(delay.unwrap_or(if in_kubernetes { PROPAGATION } else { Duration::ZERO })).await;
        // Ends the streams of those who watch the health or have reflection open; they would hold up the drain.
        #[cfg(feature = "grpc")]
        self.health.close();
        #[cfg(feature = "http")]
        match self.server.drain(shutdown.deadline.0).await {
            0 => {}
            cut => {
                tracing::warn!(target: "chassis", cut, "calls were still under way at the deadline, and were cut")
            }
        }
        self.parts.runtime.shutdown(TASKS).await;
        stop_hooks("after-stop", std::mem::take(&mut self.parts.hooks.after_stop)).await;
        tracing::info!(target: "chassis", instance = self.parts.instance, "{} has stopped", self.parts.runtime.service());
    }

    /// Puts this process into the registry; the first try is waited for, later ones go on behind.
    async fn register(&mut self) {
        let Parts { service, runtime, instance, .. } = &self.parts;
        let mut entry = Instance::new(runtime.service().to_string(), instance.clone());
        entry.version = service.version.clone().unwrap_or_default();
        entry.zone = service.zone.clone().unwrap_or_default();
        entry.labels = service.labels.clone().into();
        for (protocol, address) in &self.advertised {
            entry.addresses.insert(protocol.clone(), address.clone());
        }
        if entry.addresses.is_empty() {
            return; // nothing is served: nobody is to come
        }
        let (deregister, asked) = oneshot::channel();
        let (first, tried) = oneshot::channel();
        let registry = runtime.registry().clone();
        let task = keep_registered(registry, entry, runtime.clone(), first, asked);
        // Apart from the runtime's own tasks: it has to outlive the first of them.
        self.parts.runtime.tasks().spawn(task);
        let _ = tokio::time::timeout(REGISTER, tried).await;
        self.registered = Some(Registered { deregister });
    }
}

/// Where others reach the protocols of this process, given the addresses that are listened at.
fn advertised(parts: &Parts, addresses: &[(String, String)]) -> Vec<(String, String)> {
    let mut advertised = parts.advertised.clone();
    for (name, address) in addresses.iter().filter(|(name, _)| matches!(name.as_str(), "grpc" | "http")) {
        let address = identity::advertised(address, parts.service.advertise.as_deref(), parts.is_local);
        advertised.retain(|(protocol, _)| protocol != name);
        advertised.push((name.clone(), address));
    }
    advertised
}

/// Dropped without a stop: nothing goes on behind the owner's back.
impl Drop for Running {
    fn drop(&mut self) {
        self.parts.runtime.tasks().cancel();
    }
}

/// Owns the entry in the registry: puts it up, again until it is, and takes it down when asked.
async fn keep_registered(
    registry: Arc<dyn Registry>,
    entry: Instance,
    runtime: chassis_core::Runtime,
    first: oneshot::Sender<()>,
    mut asked: oneshot::Receiver<oneshot::Sender<()>>,
) {
    let mut first = Some(first);
    let mut pause = Duration::from_millis(100);
    let (instance, name) = (entry.id.clone(), registry.name().to_owned());
    let registration: Box<dyn Registration> = loop {
        match registry.register(entry.clone()).await {
            Ok(registration) => break registration,
            Err(error) => {
                let service = runtime.service().clone();
                runtime.events().emit(Event::RegistryUnreachable { service, error: error.to_string() });
            }
        }
        first.take().map(|first| first.send(()));
        tokio::select! {
            () = tokio::time::sleep(runtime.random().between(pause / 2, pause)) => pause = (pause * 2).min(Duration::from_secs(15)),
            done = &mut asked => return drop(done.map(|done| done.send(()))),
        }
    };
    runtime.events().emit(Event::Registered { instance: instance.clone(), registry: name.clone() });
    first.take().map(|first| first.send(()));
    if let Ok(done) = asked.await {
        match registration.deregister().await {
            Ok(()) => runtime.events().emit(Event::Deregistered { instance, registry: name }),
            Err(error) => tracing::warn!(target: "chassis", %error, "could not be taken out of the registry"),
        }
        let _ = done.send(());
    }
}

/// Binds every port before anything is served, so that a start fails whole.
#[cfg(feature = "http")]
async fn listen(app: &mut Chassis) -> Result<(Server, Vec<(String, String)>), StartError> {
    use std::collections::BTreeMap;

    use chassis_http::server::Mux;

    let planned = app.plan()?;
    // Names of one address share its port: gRPC and REST are told apart by their content-type.
    let mut shared: BTreeMap<String, (Vec<String>, Mux, Vec<String>)> = BTreeMap::new();
    for (name, address, plan) in planned {
        let address_key = if address.ends_with(":0") { format!("{address}#{name}") } else { address };
        let (names, mux, about) = shared.entry(address_key).or_default();
        if (mux.grpc.is_some() && plan.mux.grpc.is_some()) || (mux.http.is_some() && plan.mux.http.is_some())
        {
            let message =
                format!("listen.{name}: `listen.{}` serves the same protocol at this address", names[0]);
            return Err(StartError::Settings(message));
        }
        names.push(name);
        mux.grpc = mux.grpc.take().or(plan.mux.grpc);
        mux.http = mux.http.take().or(plan.mux.http);
        about.extend(plan.about);
    }
    let runtime = &app.parts.runtime;
    let server = Server::new(app.server_config(), runtime.tasks(), runtime.random().clone());
    let server = server.metrics(runtime.metrics().clone());
    let mut bound = Vec::new();
    for (key, (names, mux, about)) in shared {
        let address = key.split('#').next().unwrap_or(&key).to_owned();
        let name = names[0].clone();
        let listener = app.parts.network.bind(&address).await;
        let listener = listener.map_err(|source| StartError::Listen { name, address, source })?;
        bound.push((names, mux, about, listener));
    }
    let mut addresses = Vec::new();
    for (names, mux, about, listener) in bound {
        let address = listener.address();
        tracing::info!(target: "chassis", "listening at {address} for {}: {}", names.join(" and "), about.join(", "));
        addresses.extend(names.iter().map(|name| (name.clone(), address.clone())));
        server.serve(&names[0], listener, mux, app.acceptor.clone());
    }
    let [out, inward] = app.chains("*");
    tracing::info!(target: "chassis", "calls that come in: {inward}");
    tracing::info!(target: "chassis", "calls that go out: {out}");
    for cluster in app.parts.runtime.clusters() {
        let [own, _] = app.chains(cluster.service());
        if own != out {
            tracing::info!(target: "chassis", "calls to {}: {own}", cluster.service());
        }
    }
    Ok((server, addresses))
}

async fn stop_hooks(which: &'static str, hooks: Vec<Hook>) {
    for hook in hooks {
        match tokio::time::timeout(HOOK, hook.run()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(target: "chassis", %error, "a {which} hook failed"),
            Err(_) => tracing::warn!(target: "chassis", "a {which} hook took longer than {HOOK:?}"),
        }
    }
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

    /// The number of the next one.
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
