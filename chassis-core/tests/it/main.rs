//! What the pipeline promises, on a paused clock over scripted upstreams.
mod support;

mod balance;
mod body;
mod breaker;
mod completion;
mod concurrency;
mod context;
mod contract;
mod deadline;
mod fallback;
mod fault;
mod inspect;
mod membership;
mod metrics;
mod panic;
mod rate_limit;
mod retry;
mod route;
mod stages;
mod swap;
