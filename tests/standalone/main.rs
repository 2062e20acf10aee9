//! Tests outside of the workspace's build, which merges the features of all members: a crate made from the
//! README and the pages of `docs/`, and every member checked by itself.
#![allow(clippy::unwrap_used)]
mod made;
mod members;
mod page;
mod pages;
#[path = "../examples/process.rs"]
#[allow(dead_code, reason = "shared with the tests of the examples")]
mod process;
mod readme;
