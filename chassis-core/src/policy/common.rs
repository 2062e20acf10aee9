//! What all policies of a process have in common, and layers take from there: a pipeline is cloned for
//! each call, and what hangs on the policy costs it nothing.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::HeaderValue;

use crate::{random::Random, units::Ratio};

/// Randomness, this service's name on the wire, and the share of calls that begin a trace.
#[derive(Debug)]
pub struct Common {
    /// For everything that is drawn.
    pub random: Random,
    /// What this service calls itself on the wire: `orders;track=stable`.
    pub caller: Option<HeaderValue>,
    /// The share of calls without a trace that begin one.
    pub sample: Sample,
}

/// A share that can be set while calls look at it.
#[derive(Debug)]
pub struct Sample(AtomicU64);

// === impl Common ===

impl Common {
    /// Draws from `random`; nobody by name, and no traces.
    pub fn new(random: Random) -> Self {
        Common { random, caller: None, sample: Sample::default() }
    }
}

impl Default for Common {
    fn default() -> Self {
        Common::new(Random::from_os())
    }
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
