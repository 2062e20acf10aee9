//! Values that all policies of a process share. Layers read them from the policy, because layers are cloned for
//! each thread and each further attempt, which costs nothing for values in the policy.
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use http::{HeaderName, HeaderValue};

use crate::{Live, random::Random, striped::Striped, types::units::Ratio};

/// Randomness, this service's name on the wire, which calls begin a trace, and the headers to carry on.
#[derive(Debug)]
pub(crate) struct Common {
    /// The source of all randomness.
    pub random: Random,
    /// The name of this service on the wire, with its labels: `orders;track=stable`.
    caller: Option<Caller>,
    /// The share of calls without a trace that begin one.
    pub sample: Sample,
    /// Headers that are carried on along a chain of hops.
    pub carried: Carried,
}

/// A name of which threads have copies: each call counts several references to it, and threads that share a
/// counter slow each other down.
#[derive(Debug)]
struct Caller {
    name: HeaderValue,
    copies: Striped<HeaderValue>,
}

/// A share that can be set while calls read it.
#[derive(Debug)]
pub(crate) struct Sample(AtomicU64);

/// Names of headers, usually none, that can be set while calls read them.
#[derive(Debug)]
pub(crate) struct Carried {
    any: AtomicBool,
    names: Live<Vec<HeaderName>>,
}

// === impl Common ===

impl Common {
    /// With randomness of `random`; without a name, and without traces.
    pub(crate) fn new(random: Random) -> Self {
        Common { random, caller: None, sample: Sample::default(), carried: Carried::default() }
    }

    /// Sets the name of this service on the wire. A name that is invalid in a header is not sent.
    pub(crate) fn called(self, caller: String) -> Self {
        let caller = HeaderValue::try_from(caller).ok();
        Common { caller: caller.map(|name| Caller { name, copies: Striped::new() }), ..self }
    }

    /// The name of this service on the wire, with its labels: `orders;track=stable`.
    #[inline]
    pub(crate) fn caller(&self) -> Option<HeaderValue> {
        let caller = self.caller.as_ref()?;
        Some(caller.copies.mine(|| apart(&caller.name)).clone())
    }

    /// Whether a call without a trace begins one.
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

/// The same value with a reference count of its own.
fn apart(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).unwrap_or_else(|_| value.clone())
}

// === impl Sample ===

impl Sample {
    /// Sets the share.
    pub(crate) fn set(&self, share: Ratio) {
        self.0.store(share.get().to_bits(), Relaxed);
    }

    /// The current share.
    pub(crate) fn get(&self) -> f64 {
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
    /// Sets the names.
    pub(crate) fn set(&self, names: Vec<HeaderName>) {
        let any = !names.is_empty();
        self.names.set(names);
        self.any.store(any, Release);
    }

    /// Whether there are any.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Acquire)
    }

    /// Calls `look` with each.
    pub(crate) fn each(&self, look: impl FnMut(&HeaderName)) {
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
