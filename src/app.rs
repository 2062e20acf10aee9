//! A service with its clients and servers, before it runs.
use std::sync::Arc;

use chassis_core::{Live, LiveSection, Runtime, Side, health::Health, pipeline, quota::Quota};

use crate::{
    ConfigHandle, ContractsHandle, StartError,
    builder::ChassisBuilder,
    crash_guard::Watched,
    document::{ServiceSection, ShutdownSection},
    life::{Hooks, Running},
    presence::Presence,
    published::Publisher,
    rest::Rest,
    rollout::Rollout,
    rpc::Rpc,
};

/// A service: its clients by name, its servers, and its life.
///
/// See the crate's front page for a whole one.
pub struct Chassis {
    pub(crate) parts: Parts,
    pub(crate) rest: Rest,
    pub(crate) rpc: Rpc,
}

/// The parts of a service that do not depend on the protocols of the build.
pub(crate) struct Parts {
    pub(crate) instance: String,
    pub(crate) presence: Presence,
    pub(crate) runtime: Runtime,
    pub(crate) config: ConfigHandle,
    pub(crate) crash_guard: Option<Watched>,
    pub(crate) rollout: Arc<Rollout>,
    pub(crate) service: ServiceSection,
    pub(crate) shutdown: Live<ShutdownSection>,
    pub(crate) hooks: Hooks,
    /// Addresses of the program's own protocols.
    pub(crate) advertised: Vec<(String, String)>,
    pub(crate) contracts: ContractsHandle,
    /// The contracts to publish, and their port.
    pub(crate) publisher: Option<Publisher>,
    pub(crate) quota: Option<Arc<dyn Quota>>,
    /// The names of the sections, for messages.
    pub(crate) sections: Arc<[String]>,
}

// === impl Parts ===

impl Parts {
    pub(crate) fn section<T: Send + Sync + 'static>(&self, name: &str) -> Result<LiveSection<T>, StartError> {
        self.runtime.section(name).ok_or_else(|| {
            let of = std::any::type_name::<T>();
            let known = self.sections.join(", ");
            StartError::Settings(format!(
                "no section `{name}` of the type `{of}` was registered with the builder; there are: {known}"
            ))
        })
    }
}

// === impl Chassis ===

impl Chassis {
    /// Begins to build the service of this name.
    pub fn builder(name: &str) -> ChassisBuilder {
        ChassisBuilder::new(name)
    }

    /// A pipeline to `service` over a transport of your own: see [`protocol`](crate::protocol).
    pub fn client<T: crate::protocol::Transport>(
        &self,
        service: &str,
        transport: &Arc<T>,
    ) -> pipeline::Pipeline {
        pipeline::client(&self.parts.runtime, service, transport)
    }

    /// Registers an `address` at which this process serves a protocol of its own, with a server that the
    /// program runs. Other processes find it in the registry like the other addresses.
    pub fn advertise(mut self, protocol: &str, address: &str) -> Self {
        self.parts.advertised.push((protocol.to_owned(), address.to_owned()));
        self
    }

    /// The live value of the section `name` of the settings, which [`section`](ChassisBuilder::section)
    /// registered.
    ///
    /// ```
    /// use chassis::{Chassis, Section};
    ///
    /// #[derive(Default, serde::Deserialize)]
    /// #[serde(default, deny_unknown_fields)]
    /// struct Shop {
    ///     /// Percent taken off every price. Default 0.
    ///     discount: u8,
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> chassis::Result {
    /// let app = Chassis::builder("shop")
    ///     .settings(serde_json::json!({ "registry": { "kind": "memory" }, "shop": { "discount": 20 } }))
    ///     .section(Section::<Shop>::new("shop"))
    ///     .build()
    ///     .await?;
    /// let shop = app.settings::<Shop>("shop")?; // hand it to handlers: it is cheap to clone
    /// assert_eq!(shop.get().discount, 20);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`StartError::Settings`] if no section of this name and type was registered.
    pub fn settings<T: Send + Sync + 'static>(&self, name: &str) -> Result<LiveSection<T>, StartError> {
        self.parts.section(name)
    }

    /// The settings: where each is from, past versions, rollback, dry runs.
    pub fn config(&self) -> ConfigHandle {
        self.parts.config.clone()
    }

    /// The contracts of services: descriptors and OpenAPI texts that they have published.
    pub fn contracts(&self) -> ContractsHandle {
        self.parts.contracts.clone()
    }

    /// The shared state of the running service, and its inspection.
    pub fn runtime(&self) -> &Runtime {
        &self.parts.runtime
    }

    /// Takes this process out of service, or puts it back, while it runs; see [`Presence`].
    pub fn presence(&self) -> &Presence {
        &self.parts.presence
    }

    /// The health checks of the program, which decide whether this process is ready for calls. See
    /// [`health_check`](ChassisBuilder::health_check) for those that exist from the start on.
    pub fn health(&self) -> &Health {
        self.parts.runtime.health()
    }

    /// The id of this process in its registry.
    pub fn instance(&self) -> &str {
        &self.parts.instance
    }

    /// The layers that calls pass, outermost first: calls to `service`, and incoming calls.
    pub fn chains(&self, service: &str) -> [String; 2] {
        [Side::Client, Side::Server].map(|side| pipeline::chain(&self.parts.runtime, side, service))
    }

    /// Starts, and returns when every listener is bound and the service is registered.
    ///
    /// # Errors
    /// A hook failed, or a listener could not be bound. Parts that had started are stopped.
    pub async fn start(self) -> Result<Running, StartError> {
        Running::start(self).await
    }

    /// Starts, serves until SIGTERM or SIGINT, and stops in order. A second signal exits at once.
    pub async fn run(self) -> Result<(), StartError> {
        let mut signals = crate::life::Signals::new()?;
        let running = tokio::select! {
            started = self.start() => started?,
            _ = signals.next() => return Ok(()),
        };
        signals.next().await;
        tokio::select! {
            () = running.stop() => Ok(()),
            number = signals.next() => std::process::exit(128 + number),
        }
    }
}
