//! A repeatable piece of work, and how often a lap repeats it.
use std::{future::Future, hint::black_box, pin::Pin};

/// A future that can be kept, on one thread.
pub type Local<'a, T = ()> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// The work that one row measures.
pub trait Case {
    /// Does it `times` times, by `callers` concurrent tasks.
    fn run(&self, times: usize, callers: usize) -> Local<'_>;
}

/// The repetitions of a row: first unmeasured, then in two laps. The difference of the laps is the result, so
/// that work that happens once a lap, or at the start, is not part of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Laps {
    pub warm: usize,
    pub short: usize,
    pub long: usize,
}

// === impl Laps ===

impl Laps {
    /// For calls of gRPC or REST, with both ends. Multiples of 64.
    pub const CALLS: Laps = Laps { warm: 384, short: 64, long: 704 };
    /// For parts of a call.
    pub const PARTS: Laps = Laps { warm: 2_048, short: 128, long: 4_224 };
    /// For work that takes long even once.
    pub const WHOLE: Laps = Laps { warm: 2, short: 2, long: 6 };

    /// For a quick look: the counts are accurate to half a per cent.
    pub fn shorter(self) -> Self {
        match self {
            Laps::CALLS => Laps { warm: 128, short: 64, long: 256 },
            Laps::PARTS => Laps { warm: 256, short: 64, long: 576 },
            _ => Laps { warm: 1, short: 0, long: 1 },
        }
    }
}

/// Called between laps; callgrind writes its counts whenever it is called.
#[inline(never)]
pub fn chassis_bench_lap(number: usize) {
    black_box(number);
}

/// Does `one` this many `times` in all, by `callers` concurrent tasks.
pub async fn by_callers<F, Fut>(times: usize, callers: usize, caller: F)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let tasks: Vec<_> = (0..callers).map(|_| tokio::spawn(caller(times / callers))).collect();
    for task in tasks {
        task.await.expect("a caller does not panic");
    }
}
