//! The examples, run as anybody would run them, and what the README shows of them.
#![allow(clippy::unwrap_used)]
mod gallery;
mod process;
mod quickstart;
mod readme;
mod shop;
