//! The behaviour of the pipeline, on a paused clock with scripted upstreams.
#![allow(clippy::unwrap_used)] // clippy treats helpers of integration tests as library code
mod support;

mod attempts;
mod balance;
mod blocked;
mod body;
mod breaker;
mod completion;
mod concurrency;
mod context;
mod contract;
mod contracts;
mod deadline;
mod fallback;
mod fault;
mod grace;
mod health;
mod inspect;
mod large;
mod membership;
mod message_limits;
mod metrics;
mod names;
mod panic;
mod priority;
mod quota;
mod rate_limit;
mod registries;
mod retry;
mod rings;
mod route;
mod settings;
mod shares;
mod stages;
mod swap;
