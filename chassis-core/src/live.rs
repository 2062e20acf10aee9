//! A value that can be replaced while it is in use.
use std::sync::Arc;

use arc_swap::ArcSwap;

/// The newest accepted value of `T`; clones share it.
///
/// Use one `Live` for values that belong together: two would differ for a moment during a change.
///
/// ```
/// use chassis_core::Live;
///
/// let limit = Live::new(10);
/// let seen = limit.get();
/// limit.set(20);
/// assert_eq!((*seen, *limit.get()), (10, 20)); // a value that was taken stays as it is
/// ```
pub struct Live<T>(Arc<ArcSwap<T>>);

impl<T> Live<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Live(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// Starts with a shared value.
    pub fn shared(value: Arc<T>) -> Self {
        Live(Arc::new(ArcSwap::new(value)))
    }

    /// Replaces the value as a whole; holders of the old one keep it.
    pub fn set(&self, value: T) {
        self.set_shared(Arc::new(value));
    }

    /// The same with a shared value.
    pub(crate) fn set_shared(&self, value: Arc<T>) {
        self.0.store(value);
    }

    /// Replaces the value by the result of `change`; repeats that if another thread was faster.
    pub(crate) fn update(&self, mut change: impl FnMut(&T) -> T) {
        self.0.rcu(|value| change(value));
    }

    /// The current value. Take it once per call: two takes may straddle a swap.
    pub fn get(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// Passes the current value to `look`, without counting a reference.
    pub fn with<R>(&self, look: impl FnOnce(&Arc<T>) -> R) -> R {
        look(&self.0.load())
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Live(self.0.clone())
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Live").field(&*self.0.load()).finish()
    }
}
