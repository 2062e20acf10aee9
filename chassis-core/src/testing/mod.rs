//! Tools for tests: a scripted upstream that counts, a scripted registry, calls to send, the contract suites of
//! the ports, and suites for adapters with their real servers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use chassis_core::{pipeline, Runtime, testing::{Answer, CallBuilder, ScriptedRegistry, Upstream, run}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let registry = ScriptedRegistry::new();
//! registry.put("stock", ["a", "b"]);
//! let upstream = Upstream::new(|arrival| match &*arrival.address {
//!     "memory:a" => Answer::status(503),
//!     _ => Answer::ok("three left"),
//! });
//! let runtime = Runtime::builder("orders").registry(Arc::new(registry)).build().unwrap();
//! let stock = pipeline::client(&runtime, "stock", &Arc::new(upstream.clone()));
//!
//! let answer = run(&stock, CallBuilder::get("stock", "Count").build()).await.unwrap();
//! assert_eq!(answer.text(), "three left"); // of whichever was picked first
//! assert_eq!(upstream.calls("memory:b"), 1);
//! # }
//! ```
mod call;
pub mod contract;
mod feed;
pub mod layers;
mod policy;
mod protocol;
mod registry;
pub mod server;
mod upstream;

pub use self::{
    call::{Answered, CallBuilder, read, run},
    feed::{Feed, feed},
    policy::{is_guarded, mechanisms, share_state},
    protocol::{REASON, RETRY_AFTER, STATUS, TEST, TestProtocol},
    registry::ScriptedRegistry,
    upstream::{Answer, Arrival, Upstream, UpstreamLeaf},
};
