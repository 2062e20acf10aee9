//! State by key, shared between versions of the settings.
use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Cells of state; the same key always returns the same cell.
#[derive(Default)]
pub(crate) struct States(Mutex<HashMap<String, Arc<dyn Any + Send + Sync>, foldhash::fast::RandomState>>);

// === impl States ===

impl States {
    /// The cell of `key`, or a new one if there is none of this type.
    pub(crate) fn cell<T: Send + Sync + 'static>(&self, key: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = cells.get(key).and_then(|cell| cell.clone().downcast().ok()) {
            return cell;
        }
        let cell = Arc::new(make());
        cells.insert(key.to_owned(), cell.clone());
        cell
    }

    /// Drops cells that no policy holds any more.
    pub(crate) fn sweep(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, cell| Arc::strong_count(cell) > 1);
    }

    /// The number of cells.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
