//! The process that the surface shows, as its owner describes it.

/// The state of a process that its runtime does not have.
pub trait Process: Send + Sync + 'static {
    /// The id of the instance.
    fn instance(&self) -> &str;

    /// The version of the program, if it is known.
    fn version(&self) -> Option<&str>;

    /// Where the process is between its start and its end.
    fn phase(&self) -> Phase;

    /// Whether it wants calls: it was not taken out of service, and its critical health checks pass.
    fn is_in_service(&self) -> bool;

    /// Whether it has wanted calls once, at the end of its start or later.
    fn has_started(&self) -> bool;

    /// The addresses that it listens at.
    fn listeners(&self) -> Vec<Listening>;
}

/// Where a process is between its start and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its listeners are not bound yet.
    Starting,
    /// It listens.
    Serving,
    /// Its stop has begun.
    Stopping,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listening {
    /// Its name in `listen`.
    pub name: String,
    /// Its address.
    pub address: String,
    /// Where others reach it; `None` if it is not registered.
    pub advertised: Option<String>,
}

// === impl Phase ===

impl Phase {
    /// `starting`, `serving` or `stopping`.
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Stopping => "stopping",
        }
    }
}
