//! The call that an error gives back, because none of it was sent.
use super::Invocation;
use crate::types::Error;

// === impl Error ===

impl Error {
    /// The same, giving the untouched call back, so that it can go to another endpoint.
    pub fn returning(self, call: Invocation) -> Self {
        self.with_call(call.0)
    }

    /// Takes the untouched call back, if the transport gave it back.
    pub fn take_unsent(&mut self) -> Option<Invocation> {
        self.take_call().map(Invocation)
    }
}
