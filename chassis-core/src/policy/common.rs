//! What all policies of a process have in common, and layers take from there: layers are cloned for each
//! thread and each further attempt, and what hangs on the policy costs that nothing.
use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
        },
    },
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::{Live, random::Random, units::Ratio};

/// Randomness, this service's name on the wire, which calls begin a trace, and what is carried on.
#[derive(Debug)]
pub struct Common {
    /// For everything that is drawn.
    pub random: Random,
    /// What this service calls itself on the wire: `orders;track=stable`.
    pub caller: Option<HeaderValue>,
    /// The share of calls without a trace that begin one.
    pub sample: Sample,
    /// Headers that are carried on along a chain of hops.
    pub carried: Carried,
}

/// A share that can be set while calls look at it.
#[derive(Debug)]
pub struct Sample(AtomicU64);

/// Names of headers, usually none, that can be set while calls look at them.
#[derive(Debug)]
pub struct Carried {
    any: AtomicBool,
    names: Live<Vec<HeaderName>>,
}

// === impl Common ===

impl Common {
    /// Draws from `random`; nobody by name, and no traces.
    pub fn new(random: Random) -> Self {
        Common { random, caller: None, sample: Sample::default(), carried: Carried::default() }
    }

    /// Does a call without a trace begin one?
    pub(crate) fn begins_trace(&self) -> bool {
        let share = self.sample.get();
        share > 0.0 && self.random.unit() < share
    }
}

impl Default for Common {
    fn default() -> Self {
        Common::new(Random::from_os())
    }
}

/// `name` as a value that lasts as long as the process, once for each name: calls carry several copies of
/// it, whose references would be counted in one place by all threads.
pub(crate) fn lasting(name: String) -> Option<HeaderValue> {
    static NAMES: Mutex<Option<HashSet<&'static str>>> = Mutex::new(None);
    HeaderValue::try_from(&name).ok()?;
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let names = names.get_or_insert_default();
    let name = names.get(&*name).copied().unwrap_or_else(|| {
        let name: &'static str = name.leak();
        names.insert(name);
        name
    });
    HeaderValue::from_maybe_shared(Bytes::from_static(name.as_bytes())).ok()
}

// === impl Sample ===

impl Sample {
    /// From now on.
    pub fn set(&self, share: Ratio) {
        self.0.store(share.get().to_bits(), Relaxed);
    }

    /// As it is now.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Relaxed))
    }
}

/// None.
impl Default for Sample {
    fn default() -> Self {
        Sample(AtomicU64::new(0f64.to_bits()))
    }
}

// === impl Carried ===

impl Carried {
    /// From now on.
    pub fn set(&self, names: Vec<HeaderName>) {
        let any = !names.is_empty();
        self.names.set(names);
        self.any.store(any, Release);
    }

    /// Are there any?
    pub fn any(&self) -> bool {
        self.any.load(Acquire)
    }

    /// Calls `look` with each.
    pub fn each(&self, look: impl FnMut(&HeaderName)) {
        if self.any() {
            self.names.with(|names| names.iter().for_each(look));
        }
    }
}

/// None.
impl Default for Carried {
    fn default() -> Self {
        Carried { any: AtomicBool::new(false), names: Live::new(Vec::new()) }
    }
}
