//! The values that core keeps for each thread, in one place.
//!
//! All but one are plain cells without a destructor, so that an access is one load or store; [`PANIC_PLACE`] owns
//! memory and stands apart for that reason. Each flag is set by a function for the code that it runs on its thread,
//! and means nothing after that. Nothing here is kept across an `await`.
use std::cell::{Cell, RefCell};

/// The cells of one thread.
pub(crate) struct Thread {
    /// The stripe of this thread ([`striped`](crate::striped)), which it keeps; `usize::MAX` before it is assigned.
    pub(crate) stripe: Cell<usize>,
    /// Whether calls that are dropped now ended by a panic.
    pub(crate) drops_by_panic: Cell<bool>,
    /// Whether more than half of the time of the last dropped call had passed.
    pub(crate) had_waited: Cell<bool>,
    /// Whether chassis catches a panic of this thread. Set only if such panics are quiet.
    pub(crate) catches_panics: Cell<bool>,
}

thread_local! {
    /// The cells of this thread.
    pub(crate) static THREAD: Thread = const {
        Thread {
            stripe: Cell::new(usize::MAX),
            drops_by_panic: Cell::new(false),
            had_waited: Cell::new(false),
            catches_panics: Cell::new(false),
        }
    };

    /// The place of this thread's last panic.
    pub(crate) static PANIC_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}
