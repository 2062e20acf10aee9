//! What only shows outside of the workspace's build, where the features of all members are one: a crate made from
//! the README and the pages of `docs/`, and every member checked alone.
#![allow(clippy::unwrap_used)]
mod made;
mod members;
mod page;
mod pages;
#[path = "../examples/process.rs"]
#[allow(dead_code, reason = "shared with the tests of the examples")]
mod process;
mod readme;
