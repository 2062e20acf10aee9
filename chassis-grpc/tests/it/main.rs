//! Both edges as stubs and services see them.
#![allow(clippy::unwrap_used)]
mod contract;
mod echo;
mod loopback;
mod network;
mod tools;

use chassis_core::{
    BoxFuture, Error, Invocation, Reply, Runtime,
    pipeline::{self, Pipeline},
};

/// A pipeline whose innermost service is `answer`.
fn pipeline_of(
    answer: impl Fn(Invocation) -> BoxFuture<'static, Result<Reply, Error>> + Clone + Send + Sync + 'static,
) -> Pipeline {
    let runtime = Runtime::builder("echo").build().unwrap();
    pipeline::server(&runtime, tower::service_fn(answer))
}
