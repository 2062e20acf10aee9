//! Runs the examples as a user does, and compares them with the README.
#![allow(clippy::unwrap_used)]
mod gallery;
mod process;
mod quickstart;
mod readme;
mod shop;
