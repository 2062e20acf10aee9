//! Calls `orders` at a steady rate and records the outcome of each call.
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use chassis::{HttpClient, RequestExt};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval},
};

use crate::shop::Order;

/// The calls in flight, and the finished ones.
pub(crate) struct Load {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    calls: Mutex<Vec<Call>>,
    in_flight: AtomicUsize,
    stop: AtomicBool,
}

/// A finished call.
#[derive(Clone)]
pub(crate) struct Call {
    pub(crate) sent: Instant,
    pub(crate) over: Instant,
    /// Whether the call asked for the canary by a header.
    pub(crate) asked: bool,
    pub(crate) ended: Ended,
}

/// The outcome of a call.
#[derive(Clone)]
pub(crate) enum Ended {
    /// The answer was right.
    Good {
        /// The version of the settings that applied to the call.
        version: u64,
        /// Whether the canary answered.
        canary: bool,
    },
    /// The call was not sent: nothing listens at the address.
    Unsent(String),
    /// The call was lost, or its answer was wrong.
    Bad(String),
}

/// Calls per second.
pub(crate) const RATE: u32 = 200;
/// One call out of this many asks for the canary.
const ASKING: u64 = 50;
/// Timeout of a call.
const PATIENCE: Duration = Duration::from_secs(10);

// === impl Load ===

impl Load {
    /// Starts the load at once.
    pub(crate) fn start(orders: HttpClient) -> Self {
        let shared = Arc::<Shared>::default();
        let task = tokio::spawn(run(orders, shared.clone()));
        Load { shared, task }
    }

    /// The number of calls in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Gives `look` the finished calls, in the order they ended.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&[Call]) -> R) -> R {
        look(&self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends no more calls and waits for those in flight.
    pub(crate) async fn stop(self) -> Vec<Call> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.task.await; // a panic shows as missing calls
        std::mem::take(&mut *self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn run(orders: HttpClient, shared: Arc<Shared>) {
    let mut pace = interval(Duration::from_secs(1) / RATE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut under_way = JoinSet::new();
    for number in 0u64.. {
        pace.tick().await;
        if shared.stop.load(Ordering::Relaxed) {
            break;
        }
        while under_way.try_join_next().is_some() {}
        let (orders, shared) = (orders.clone(), shared.clone());
        under_way.spawn(async move {
            shared.in_flight.fetch_add(1, Ordering::Relaxed);
            let call = call(&orders, number % ASKING == ASKING - 1).await;
            shared.calls.lock().unwrap_or_else(PoisonError::into_inner).push(call);
            shared.in_flight.fetch_sub(1, Ordering::Relaxed);
        });
    }
    under_way.join_all().await;
}

async fn call(orders: &HttpClient, asked: bool) -> Call {
    let sent = Instant::now();
    let request = orders.get("/orders/{sku}").param("sku", "apple").timeout(PATIENCE);
    let request = if asked { request.header("x-canary", "true") } else { request };
    let ended = match request.send().await {
        Err(error) if !error.maybe_executed() => Ended::Unsent(error.to_string()),
        Err(error) => Ended::Bad(error.to_string()),
        Ok(response) => match response.ok().await {
            Err(problem) => Ended::Bad(problem.to_string()),
            Ok(answer) => match answer.json::<Order>().await {
                Err(error) => Ended::Bad(error.to_string()),
                Ok(Order { version, track, .. }) => Ended::Good { version, canary: track == "canary" },
            },
        },
    };
    Call { sent, over: Instant::now(), asked, ended }
}
