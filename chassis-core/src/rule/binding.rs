//! Binds the rules of one operation to their states.
use std::sync::Arc;

use super::Environment;
use crate::{site::Site, types::Side};

/// The operation whose rules are being made, and the states that they may keep.
pub(crate) struct Binding<'a> {
    pub(crate) side: Side,
    pub(crate) service: &'a Arc<str>,
    pub(crate) operation: &'a Arc<str>,
    pub(crate) environment: &'a Environment,
    /// Keys are written into one text: thousands of operations are compiled at a time.
    key: String,
    /// The key up to here is that of the service.
    base: usize,
}

/// Whose a state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// All operations of the service share it.
    Service,
    /// The operation has its own.
    Operation,
}

/// The longest name of a state, `/attempts`, and some more.
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

    /// The state of this name. Whatever asks for it by the same name gets the same one, in later versions too.
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

    /// A new place to report from: figures, events, and at most one event a second.
    pub(crate) fn site(&self) -> Arc<Site> {
        self.environment.site()
    }
}
