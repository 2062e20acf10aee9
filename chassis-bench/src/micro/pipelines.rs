//! Whole pipelines over a leaf that answers at once, with and without user stages.
use std::sync::Arc;

use chassis::{
    Invocation, Runtime, Stage,
    pipeline::{self, Pipeline},
    registries::MemoryRegistry,
    registry::Instance,
};
use chassis_core::{Next, Stages};

use super::leaf::{AtOnce, calls};
use crate::layers::{
    case::{Case, Local},
    settings::settings,
    whole::{ENDPOINTS, runtime},
};

/// A pipeline, and the values that must live as long.
struct Piped {
    pipeline: Pipeline,
    _runtime: Runtime,
}

/// A client pipeline with the settings `yaml`, to three endpoints.
pub async fn client(yaml: &str) -> Box<dyn Case> {
    client_with(yaml, Stages::default()).await
}

/// With an async function at the outermost stage.
pub async fn client_with_fn(yaml: &str) -> Box<dyn Case> {
    let mut stages = Stages::default();
    stages.add_fn(
        Stage::Call,
        "mine",
        None,
        |call: Invocation, next: Next| async move { next.run(call).await },
    );
    client_with(yaml, stages).await
}

/// With a tower layer there.
pub async fn client_with_layer(yaml: &str) -> Box<dyn Case> {
    let mut stages = Stages::default();
    stages.add_layer(Stage::Call, "mine", None, tower_layer::Identity::new());
    client_with(yaml, stages).await
}

async fn client_with(yaml: &str, stages: Stages) -> Box<dyn Case> {
    let (pipeline, runtime) = piped(yaml, stages);
    Box::new(Piped { pipeline, _runtime: runtime })
}

/// A client pipeline with the settings `yaml`, and its runtime.
pub async fn client_pipeline(yaml: &'static str) -> (Pipeline, Runtime) {
    piped(yaml, Stages::default())
}

fn piped(yaml: &str, stages: Stages) -> (Pipeline, Runtime) {
    let registry = registry(ENDPOINTS);
    let runtime = runtime("caller", |builder| builder.registry(Arc::new(registry)).stages(stages));
    runtime.apply(&settings(yaml), 1, "bench").expect("our settings can be applied");
    (pipeline::client(&runtime, "echo", &Arc::new(AtOnce::new())), runtime)
}

/// A server pipeline.
pub async fn server(yaml: &str) -> Box<dyn Case> {
    let runtime = runtime("echo", |builder| builder);
    runtime.apply(&settings(yaml), 1, "bench").expect("our settings can be applied");
    Box::new(Piped { pipeline: pipeline::server(&runtime, AtOnce::new()), _runtime: runtime })
}

/// A registry with this many instances of the echo service.
pub fn registry(endpoints: usize) -> MemoryRegistry {
    let registry = MemoryRegistry::new();
    let instance = |number| {
        Instance::new("echo", format!("echo-{number}"))
            .with_address("grpc", format!("memory:echo-{number}"))
            .with_label("track", "stable")
    };
    registry.set("echo", chassis::registry::Membership::known((0..endpoints).map(instance)));
    registry
}

impl Case for Piped {
    fn run(&self, times: usize, callers: usize) -> Local<'_> {
        calls(times, callers, || {
            let pipeline = self.pipeline.clone();
            move |call| pipeline.run(call)
        })
    }
}
