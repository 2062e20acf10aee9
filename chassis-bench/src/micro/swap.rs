//! Applying new settings: from types to policies, and from text to types.
use std::{cell::Cell, fmt::Write};

use chassis::{Runtime, settings::Settings};

use super::lookup::named;
use crate::layers::{
    case::{Case, Local},
    settings::settings,
    whole::runtime,
};

/// Two versions of settings, applied in turn.
struct Swapped {
    runtime: Runtime,
    versions: [Settings; 2],
    number: Cell<u64>,
}

/// A document that is parsed repeatedly.
struct Read(String);

/// Compiles and applies settings for `operations` operations.
pub async fn apply(operations: usize) -> Box<dyn Case> {
    let versions = [named(operations, 100), named(operations, 200)];
    Box::new(Swapped { runtime: runtime("caller", |builder| builder), versions, number: Cell::new(1) })
}

/// Parses and checks a document with `operations` operations.
pub async fn read(operations: usize) -> Box<dyn Case> {
    let mut text = String::from("outbound:\n  services:\n    echo:\n      operations:\n");
    for number in 0..operations {
        let millis = 100 + number;
        let _ = writeln!(text, "        bench.v1.Echo/Operation{number:05}: {{ timeout: {millis}ms }}");
    }
    Box::new(Read(text))
}

impl Case for Swapped {
    fn run(&self, times: usize, _: usize) -> Local<'_> {
        Box::pin(async move {
            for _ in 0..times {
                let number = self.number.replace(self.number.get() + 1);
                let settings = &self.versions[number as usize % 2];
                self.runtime.apply(settings, number, "bench").expect("our settings can be applied");
            }
        })
    }
}

impl Case for Read {
    fn run(&self, times: usize, _: usize) -> Local<'_> {
        Box::pin(async move {
            for _ in 0..times {
                assert_eq!(settings(&self.0).outbound.services.len(), 1);
            }
        })
    }
}
