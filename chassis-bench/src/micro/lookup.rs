//! The lookup of a call's policy by service and operation.
use std::{hint::black_box, sync::Arc};

use chassis::{
    Runtime,
    settings::{OperationSettings, ServiceSettings, Settings},
    units::{PositiveSpan, Switch},
};

use crate::layers::{
    case::{Case, Local},
    whole::runtime,
};

/// A runtime with settings for many operations of one service.
struct Named {
    runtime: Runtime,
    service: Arc<str>,
    operations: Vec<String>,
}

/// Settings for `operations` operations of one service, each with a timeout of its own.
pub fn named(operations: usize, millis: u64) -> Settings {
    let mut echo = ServiceSettings::default();
    for number in 0..operations {
        let timeout = Some(Switch::On(PositiveSpan::from_millis(millis + number as u64)));
        echo.operations.insert(operation(number), OperationSettings { timeout, ..Default::default() });
    }
    let mut settings = Settings::default();
    settings.outbound.services.insert("echo".into(), echo);
    settings
}

fn operation(number: usize) -> String {
    format!("bench.v1.Echo/Operation{number:05}")
}

/// Looks up each of `operations` operations in turn.
pub async fn among(operations: usize) -> Box<dyn Case> {
    let runtime = runtime("caller", |builder| builder);
    runtime.apply(&named(operations, 100), 1, "bench").expect("our settings can be applied");
    let operations = (0..operations).map(operation).collect();
    Box::new(Named { runtime, service: "echo".into(), operations })
}

impl Case for Named {
    fn run(&self, times: usize, _: usize) -> Local<'_> {
        Box::pin(async move {
            let stride = 7_919; // a prime: neighbouring operations are not looked up one after the other
            for number in 0..times {
                let operation = &self.operations[number * stride % self.operations.len()];
                let policy = self.runtime.policies().with(|all| all.outbound(&self.service, operation));
                black_box(policy.timeout());
            }
        })
    }
}
