//! How long a change of a large registry holds the thread that serves calls, and when it is seen.
//!
//! One thread runs the calls and the follower of the registry; another one sends the snapshots. A task that yields all
//! the time measures the processor time of the serving thread between two of its turns, so other processes on this
//! machine change nothing.
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use chassis::{
    LabelSet, Random, Runtime,
    reexports::async_trait::async_trait,
    registry::{Instance, Membership, Registration, Registry, RegistryError, Watcher},
};
use chassis_core::{Members, pipeline};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{Figures, Pace};
use crate::{
    Result,
    layers::echo::drain,
    micro::leaf::{AtOnce, Maker},
};

/// Passes on the snapshots that the experiment sends.
struct Feed(Arc<Mutex<mpsc::Receiver<Membership>>>);

/// The current members.
type Look = Box<dyn Fn() -> Arc<Members> + Send>;

struct Fed(Arc<Mutex<mpsc::Receiver<Membership>>>);

/// The serving thread's records since it was last asked.
#[derive(Default)]
struct Seen {
    /// The longest time between two turns, in nanoseconds of the thread's processor time.
    held: AtomicU64,
    calls: AtomicU64,
    over: AtomicBool,
}

/// A change of the registry.
#[derive(Clone, Copy)]
enum Change {
    First,
    Weights(usize),
    Removed,
    None,
}

const SIZES: [usize; 3] = [100_000, 10_000, 100];

/// Runs the experiment.
pub(super) async fn run(pace: Pace) -> Result<Vec<Figures>> {
    let rounds = if pace.seconds(5) < Duration::from_secs(5) { 2 } else { 10 };
    let measure = move || SIZES.into_iter().map(|size| of(size, rounds)).collect();
    tokio::task::spawn_blocking(measure).await?
}

fn of(size: usize, rounds: usize) -> Result<Figures> {
    let (sender, receiver) = mpsc::channel(1);
    let (seen, (ready, started)) = (Arc::new(Seen::default()), oneshot::channel());
    let recorded = seen.clone();
    let serving = std::thread::spawn(move || -> Result {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(receiver, recorded, ready));
        Ok(())
    });
    let members = started.blocking_recv()?;
    let mut weights = vec![1; size];
    let mut figures = Vec::new();
    let cases = [
        (Change::First, "first: held, ms", "first: seen after, ms"),
        (Change::None, "no change: held, ms", ""),
        (Change::Weights(1), "1 changed: held, ms", "1 changed: seen after, ms"),
        (Change::Weights(1_000), "1,000 changed: held, ms", "1,000 changed: seen after, ms"),
        (Change::Weights(size), "all changed: held, ms", "all changed: seen after, ms"),
        (Change::Removed, "1 removed: held, ms", "1 removed: seen after, ms"),
    ];
    let mut shared = shared(&weights, None);
    for (change, held, late) in cases {
        let rounds = if matches!(change, Change::First) { 1 } else { rounds };
        let (mut most_held, mut most_late) = (0.0, Duration::ZERO);
        for _ in 0..rounds {
            match change {
                Change::Weights(changed) => {
                    weights.iter_mut().rev().take(changed).for_each(|weight| *weight += 1);
                    shared = self::shared(&weights, Some(&shared));
                }
                Change::Removed => {
                    shared.pop();
                    weights.pop();
                }
                Change::First | Change::None => {}
            }
            let snapshot = Membership::Known(shared.clone());
            let last = shared.last().ok_or("there are instances")?.clone();
            seen.held.store(0, SeqCst);
            let sent = Instant::now();
            sender.blocking_send(snapshot)?;
            let is_seen = || {
                let members = members();
                members.nodes().len() == shared.len()
                    && members.nodes().last().is_some_and(|node| *node.instance() == *last)
            };
            while !is_seen() && !matches!(change, Change::None) {
                std::thread::sleep(Duration::from_micros(100));
            }
            most_late = most_late.max(sent.elapsed());
            // Until the members before are dropped.
            std::thread::sleep(Duration::from_millis(250));
            most_held = f64::max(most_held, seen.held.load(SeqCst) as f64 / 1e6);
        }
        figures.push((held, most_held));
        if !late.is_empty() {
            figures.push((late, most_late.as_secs_f64() * 1e3));
        }
    }
    seen.over.store(true, SeqCst);
    drop((members, sender));
    serving.join().map_err(|_| "the serving thread panicked")??;
    figures.push(("calls", seen.calls.load(SeqCst) as f64));
    Ok(Figures::new("registry", format!("{size} instances"), figures))
}

/// The instances with these weights; those of `before` that are equal are shared.
fn shared(weights: &[u32], before: Option<&[Arc<Instance>]>) -> Vec<Arc<Instance>> {
    let of = |(number, weight): (usize, &u32)| match before.map(|before| &before[number]) {
        Some(same) if same.weight == *weight => same.clone(),
        _ => Arc::new(
            Instance::new("echo", format!("echo-{number:06}"))
                .with_address(
                    "grpc",
                    format!("10.{}.{}.{}:80", number >> 16, number >> 8 & 255, number & 255),
                )
                .with_label("track", if number % 2 == 0 { "stable" } else { "canary" })
                .with_weight(*weight),
        ),
    };
    weights.iter().enumerate().map(of).collect()
}

/// Calls the service, of all nodes and of those with a label, and measures.
async fn serve(feed: mpsc::Receiver<Membership>, seen: Arc<Seen>, ready: oneshot::Sender<Look>) {
    let registry = Arc::new(Feed(Arc::new(Mutex::new(feed))));
    let runtime = Runtime::builder("caller").random(Random::seeded(1)).registry(registry).build();
    let runtime = runtime.expect("its metrics have a registry of their own");
    let transport = Arc::new(AtOnce::new());
    let pipeline = pipeline::client(&runtime, "echo", &transport);
    let cluster = runtime.cluster("echo", &transport);
    let _ = ready.send(Box::new(move || cluster.members()));
    let stable = Arc::new(LabelSet::from_iter([("track", "stable")]));
    for labels in [None, Some(stable)] {
        let (mut pipeline, seen) = (pipeline.clone(), seen.clone());
        runtime.tasks().spawn(async move {
            let maker = Maker::new();
            loop {
                let mut call = maker.call();
                call.options.labels = labels.clone();
                let reply = tower_service::Service::call(&mut pipeline, call).await;
                drain(reply.expect("it is answered at once").into_body()).await;
                seen.calls.fetch_add(1, SeqCst);
                tokio::task::yield_now().await;
            }
        });
    }
    let mut last = processor_time();
    while !seen.over.load(SeqCst) {
        tokio::task::yield_now().await;
        let now = processor_time();
        seen.held.fetch_max(now - last, SeqCst);
        last = now;
    }
    runtime.shutdown(Duration::from_secs(10)).await;
}

/// The processor time of this thread, in nanoseconds.
fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[async_trait]
impl Registry for Feed {
    fn name(&self) -> &str {
        "feed"
    }
    async fn register(&self, _: Instance) -> std::result::Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("the experiment sends the instances"))
    }
    async fn watch(&self, _: &str) -> std::result::Result<Box<dyn Watcher>, RegistryError> {
        Ok(Box::new(Fed(self.0.clone())))
    }
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Watcher for Fed {
    async fn next(&mut self) -> std::result::Result<Membership, RegistryError> {
        let next = self.0.lock().await.recv().await;
        next.ok_or_else(|| RegistryError::new("the experiment is over"))
    }
}
