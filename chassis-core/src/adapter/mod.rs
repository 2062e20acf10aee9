//! Pieces for adapters: what a registry and a config center on a server need, whichever server it is.
//!
//! - [`Pace`]: the pauses before a server that fails is asked again;
//! - [`Throttle`]: the pauses between the requests of a follower under constant change;
//! - [`Followers`]: one follower for each service, shared by all watchers of the process;
//! - [`Owned`]: one task that owns the entry of an instance, from its registration until it is taken down;
//! - [`TextFeed`], [`sections`]: the texts of a config center;
//! - [`FixedAddresses`]: where the server is, for the client that reaches it;
//! - [`SecretSource`]: a password or a token from a file or the environment.
//!
//! A program needs none of it, unless it brings an adapter of its own.
mod fixed;
mod followers;
mod owned;
mod pace;
mod secret;
mod texts;
mod throttle;

pub use self::{
    fixed::FixedAddresses,
    followers::{Feed, Followers},
    owned::{Entry, Owned, Updates},
    pace::Pace,
    secret::SecretSource,
    texts::{SectionText, TextFeed, format_of, sections, watch_texts},
    throttle::Throttle,
};
