//! Binds the rules of one operation to their states.
use std::sync::Arc;

use super::Environment;
use crate::{reporter::Reporter, types::Side};

/// The operation whose rules are compiled, and its states.
pub(crate) struct Binding<'a> {
    pub(crate) side: Side,
    pub(crate) service: &'a Arc<str>,
    pub(crate) operation: &'a Arc<str>,
    pub(crate) environment: &'a Environment,
    /// One string for all keys, because thousands of operations are compiled at a time.
    key: String,
    /// The length of the service's part of the key.
    base: usize,
}

/// The owner of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// All operations of the service share it.
    Service,
    /// The operation has its own.
    Operation,
}

/// The room for the longest name of a state, `/attempts`, and some more.
const NAME: usize = 16;

// === impl Binding ===

impl<'a> Binding<'a> {
    pub(crate) fn new(
        side: Side,
        service: &'a Arc<str>,
        operation: &'a Arc<str>,
        environment: &'a Environment,
    ) -> Self {
        let name = side.name();
        let mut key = String::with_capacity(name.len() + service.len() + operation.len() + 2 + NAME);
        key.extend([name, "/", service, "/"]);
        let base = key.len();
        Binding { side, service, operation, environment, key, base }
    }

    /// The state of this name. The same name always returns the same state, in later versions too.
    pub(crate) fn state<T: Send + Sync + 'static>(
        &mut self,
        of: Of,
        name: &str,
        make: impl FnOnce() -> T,
    ) -> Arc<T> {
        self.key.truncate(self.base);
        self.key.extend([if of == Of::Operation { self.operation } else { "" }, "/", name]);
        self.environment.states.cell(&self.key, make)
    }

    /// A new reporter: metrics, events, and at most one event a second.
    pub(crate) fn reporter(&self) -> Arc<Reporter> {
        self.environment.reporter()
    }
}
