//! Something that can be done any number of times, and how often it is done in a lap.
use std::{future::Future, hint::black_box, pin::Pin};

/// A future that can be kept, on one thread.
pub type Local<'a, T = ()> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// What one row measures.
pub trait Case {
    /// Does it `times`, by so many `callers` at once.
    fn run(&self, times: usize, callers: usize) -> Local<'_>;
}

/// How often a row is done: first unmeasured, then in two laps whose difference is what counts, so
/// that whatever happens once a lap, and whatever happens at the start, is no part of the figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Laps {
    pub warm: usize,
    pub short: usize,
    pub long: usize,
}

// === impl Laps ===

impl Laps {
    /// Calls of gRPC or REST, both ends of them. Multiples of 64.
    pub const CALLS: Laps = Laps { warm: 384, short: 64, long: 704 };
    /// Parts of a call.
    pub const PARTS: Laps = Laps { warm: 2_048, short: 128, long: 4_224 };
    /// What takes long even once.
    pub const WHOLE: Laps = Laps { warm: 2, short: 2, long: 6 };

    /// For a quick look: the counts are good to half a per cent.
    pub fn shorter(self) -> Self {
        match self {
            Laps::CALLS => Laps { warm: 128, short: 64, long: 256 },
            Laps::PARTS => Laps { warm: 256, short: 64, long: 576 },
            _ => Laps { warm: 1, short: 0, long: 1 },
        }
    }
}

/// Is called between laps; callgrind is told to write down what it has counted so far whenever it is.
#[inline(never)]
pub fn chassis_bench_lap(number: usize) {
    black_box(number);
}

/// Does `one` so many `times` in all, by so many `callers` at once, each in a task of its own.
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
