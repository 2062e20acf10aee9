//! The client's and the server's side of a call.

/// The side of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Outgoing calls.
    Client,
    /// Incoming calls.
    Server,
}

// === impl Side ===

impl Side {
    /// `client` or `server`.
    pub fn name(self) -> &'static str {
        match self {
            Side::Client => "client",
            Side::Server => "server",
        }
    }
}
