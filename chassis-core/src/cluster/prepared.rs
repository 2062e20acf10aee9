//! The pickers that factories built for the nodes of one subset.
use std::{
    ptr,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Candidates, Picker, PickerFactory, Subset};
use crate::{Live, tasks::catch};

/// The pickers of one subset, by the factories that built them. Snapshots in which the subset has the same nodes share
/// it.
pub(super) struct Prepared {
    all: Live<Vec<Built>>,
    /// Held while a picker is built, so that a factory builds one even if many calls need it at once.
    building: Mutex<()>,
    /// Whether a call picked with one of them since the last snapshot.
    is_used: AtomicBool,
}

#[derive(Clone)]
struct Built {
    /// Weak, so that settings that are gone leave nothing behind.
    by: Weak<dyn PickerFactory>,
    picker: Arc<dyn Picker>,
}

/// Draws in proportion to the weights. For subsets without a picker: those that are not kept, and those whose factory
/// panicked.
pub(super) struct Unprepared;

// === impl Prepared ===

impl Prepared {
    pub(super) fn new() -> Self {
        Self::with(Vec::new())
    }

    /// Picks with the picker that `factory` built for `subset`. If there is none, it is built now, or the result is `None`
    /// if that is not `allowed`.
    pub(super) fn pick<R>(
        &self,
        subset: &Subset,
        factory: &Arc<dyn PickerFactory>,
        allowed: bool,
        pick: impl Fn(&dyn Picker) -> R,
    ) -> Option<R> {
        // Most calls only read the flag, because a write would move the cache line between threads.
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        let picked = self.all.with(|all| find(all, factory).map(|built| pick(&*built.picker)));
        match picked {
            None if allowed => Some(pick(&*self.build(subset, factory))),
            picked => picked,
        }
    }

    /// Whether there is a picker by `factory`.
    pub(super) fn has(&self, factory: &Arc<dyn PickerFactory>) -> bool {
        self.all.with(|all| find(all, factory).is_some())
    }

    /// The pickers for `subset` by the same factories, as far as these still exist.
    pub(super) fn rebuilt(&self, subset: &Subset) -> Self {
        let of = |built: &Built| Some(Built::new(&built.by.upgrade()?, subset));
        Self::with(self.all.with(|all| all.iter().filter_map(of).collect()))
    }

    /// Whether a call picked with one of them since this was last asked.
    pub(super) fn take_used(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
    }

    fn with(all: Vec<Built>) -> Self {
        Prepared { all: Live::new(all), building: Mutex::default(), is_used: AtomicBool::new(false) }
    }

    /// The picker that `factory` built for `subset`, which is built now if there is none.
    #[cold]
    pub(super) fn build(&self, subset: &Subset, factory: &Arc<dyn PickerFactory>) -> Arc<dyn Picker> {
        // No code panics while it holds the lock; a poisoned one would still be valid.
        let _building = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(built) = find(&self.all.get(), factory) {
            return built.picker.clone();
        }
        let built = Built::new(factory, subset);
        let picker = built.picker.clone();
        self.all.update(|all| {
            let in_use = all.iter().filter(|built| built.by.strong_count() > 0);
            in_use.chain([&built]).cloned().collect()
        });
        picker
    }
}

fn find<'a>(all: &'a [Built], factory: &Arc<dyn PickerFactory>) -> Option<&'a Built> {
    all.iter().find(|built| ptr::addr_eq(built.by.as_ptr(), Arc::as_ptr(factory)))
}

// === impl Built ===

impl Built {
    /// A factory that panics is not asked again for these nodes: every call would wait for it.
    fn new(factory: &Arc<dyn PickerFactory>, subset: &Subset) -> Self {
        let picker = catch(|| factory.build(subset)).unwrap_or_else(|panicked| {
            tracing::error!(target: "chassis", "a picker could not be built, nodes are drawn by weight: {panicked}");
            Arc::new(Unprepared)
        });
        Built { by: Arc::downgrade(factory), picker }
    }
}

// === impl Unprepared ===

impl Picker for Unprepared {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        candidates.draw()
    }
}
