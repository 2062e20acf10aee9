//! HTTP/2 for clients and servers: frames, keep-alive, the read budget, bounds on floods and headers, bodies.
//!
//! `client` maintains the connections of an endpoint, `server` serves an accepted one.
mod client;
mod flood;
mod frames;
mod halves;
pub(crate) mod headers;
mod keep_alive;
mod read_budget;
mod server;
mod unsent;

pub use self::client::H2Leaf;
pub(crate) use self::client::goaway;
pub(crate) use self::{
    flood::Abuse,
    frames::{HeaderLimit, Unfinished},
    halves::{Broken, Inbound, Paced, length},
    keep_alive::KeepAlive,
    read_budget::ReadBudget,
    server::{FrameMonitor, Http2, Streams, Windows, refusal},
    unsent::{Shares, Unsent},
};
