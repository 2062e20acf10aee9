//! Settings that change while calls are under way: calls that see parts of two versions, and the cost of a stream of
//! updates.
use std::{
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis::{
    Chassis, Invocation, LiveSection, Next, Random, Runtime, Sections, Stage,
    config::Format,
    document::{Environment, TextSource},
    registries::MemoryRegistry,
    registry::Instance,
    settings::{ServiceSettings, Settings},
    units::{PositiveSpan, Switch},
};
use chassis_core::{Stages, pipeline};
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    sync::OnceCell,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use tower_service::Service;

use super::{Figures, Pace};
use crate::{
    Result,
    layers::echo::drain,
    micro::leaf::{AtOnce, Maker},
};

/// A section whose number is also in a setting of chassis: the timeout in milliseconds is [`BASE`] more.
#[derive(Clone, Copy)]
struct Linked(u64);

/// The records of all calls.
#[derive(Default)]
struct Seen {
    calls: AtomicU64,
    torn: AtomicU64,
    /// Calls during which a newer version was put in force.
    overlapped: AtomicU64,
}

const BASE: u64 = 60_000;
const CALLS: u64 = 1_000_000;
const CALLERS: usize = 4;
/// Updates in a second.
const RATE: u64 = 1_000;
/// Services in the settings that are updated.
const SERVICES: usize = 100;

/// A million calls, each of which reads two linked settings four times, while versions are swapped without a pause.
pub(super) async fn torn(pace: Pace) -> Result<Vec<Figures>> {
    let calls = CALLS * u64::from(pace.seconds(5).as_millis() as u32) / 5_000;
    let (seen, section) = (Arc::new(Seen::default()), Arc::new(OnceCell::<LiveSection<Linked>>::new()));
    let mut stages = Stages::default();
    let layer = {
        let (seen, section) = (seen.clone(), section.clone());
        move |call: Invocation, next: Next| {
            let (seen, section) = (seen.clone(), section.clone());
            async move {
                let live = section.get().expect("it is set before the first call");
                let whole = |policy: &chassis::Policy| {
                    let timeout = policy.timeout().unwrap_or_default().as_millis() as u64;
                    let of_policy = policy.extension::<Linked>().map(|linked| linked.0);
                    of_policy == Some(live.get().0) && of_policy == Some(timeout.saturating_sub(BASE))
                };
                let first = call.policy().version();
                let mut is_whole = whole(call.policy());
                tokio::task::yield_now().await;
                let reply = next.run(call).await;
                if let Ok(reply) = &reply {
                    is_whole &= whole(reply.policy()) && reply.policy().version() == first;
                }
                seen.calls.fetch_add(1, Relaxed);
                seen.torn.fetch_add(u64::from(!is_whole), Relaxed);
                seen.overlapped.fetch_add(u64::from(live.newest().0 != live.get().0), Relaxed);
                reply
            }
        }
    };
    stages.add_fn(Stage::Call, "linked", None, layer);
    let registry = MemoryRegistry::new();
    registry.put(Instance::new("echo", "echo-1").with_address("grpc", "10.0.0.1:80"));
    let runtime = Runtime::builder("caller")
        .random(Random::seeded(1))
        .stages(stages)
        .registry(Arc::new(registry))
        .build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let apply = |version: u64| {
        let settings = linked(version);
        runtime.apply(&settings, version, "").map_err(|problems| format!("{problems:?}"))
    };
    apply(1)?;
    section.set(runtime.section("linked").ok_or("it was applied")?).ok();
    let (transport, is_over) = (Arc::new(AtOnce::new()), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let mut pipeline = pipeline::client(&runtime, "echo", &transport);
            let is_over = is_over.clone();
            tokio::spawn(async move {
                let maker = Maker::new();
                while !is_over.load(Relaxed) {
                    let reply = pipeline.call(maker.call()).await.map_err(|error| error.to_string())?;
                    drain(reply.into_body()).await;
                }
                Ok::<(), String>(())
            })
        })
        .collect();
    // The versions have a thread of their own, as a follower of settings on a runtime of several threads.
    let (recorded, over) = (seen.clone(), is_over.clone());
    let swapped = {
        let runtime = runtime.clone();
        tokio::task::spawn_blocking(move || {
            let mut version = 1;
            while recorded.calls.load(Relaxed) < calls {
                version += 1;
                runtime.apply(&linked(version), version, "").map_err(|problems| format!("{problems:?}"))?;
            }
            over.store(true, Relaxed);
            Ok::<u64, String>(version)
        })
    };
    let versions = swapped.await??;
    for caller in callers {
        caller.await??;
    }
    runtime.shutdown(Duration::from_secs(10)).await;
    let count = |number: &AtomicU64| number.load(Relaxed) as f64;
    let figures = [
        ("calls", count(&seen.calls)),
        ("calls that saw two versions", count(&seen.torn)),
        ("calls during which versions changed", count(&seen.overlapped)),
        ("versions", versions as f64),
    ];
    Ok(vec![Figures::new("torn", format!("{CALLERS} callers"), figures)])
}

fn linked(number: u64) -> Settings {
    let mut settings = Settings::default();
    let timeout = Some(Switch::On(PositiveSpan::from_millis(BASE + number)));
    settings.outbound.defaults = ServiceSettings { timeout, ..ServiceSettings::default() };
    settings.sections = Sections::default().with("linked", Arc::new(Linked(number)));
    settings
}

/// Measures the cost of a thousand updates a second through a config center.
pub(super) async fn updates(pace: Pace) -> Result<Vec<Figures>> {
    let time = pace.seconds(10);
    let mut all = Vec::new();
    for (case, text) in [
        ("another value each", Text { number: true, comment: true }),
        ("another spelling each", Text { number: false, comment: true }),
        ("the same text", Text { number: false, comment: false }),
    ] {
        all.push(updated(case, time, text).await?);
    }
    Ok(all)
}

async fn updated(case: &str, time: Duration, text: Text) -> Result<Figures> {
    let source = TextSource::new("center", Format::Yaml, text.of(0));
    let alone = {
        let nothing_follows = TextSource::new("center", Format::Yaml, text.of(0));
        push(&nothing_follows, time, text).await
    };
    let app = Chassis::builder("orders")
        .without_file()
        .environment(Environment::default())
        .settings(serde_json::json!({ "registry": { "kind": "memory" } }))
        .config(source.clone())
        .build()
        .await?;
    let pushed = push(&source, time, text).await;
    let last = Instant::now();
    let expected = Duration::from_millis(text.timeout(pushed.updates));
    let in_force = || {
        let policies = app.runtime().policies().get();
        policies.outbound(&"stock".into(), "bench.v1.Echo/Call").timeout().unwrap_or_default()
    };
    while in_force() != expected && last.elapsed() < Duration::from_secs(10) {
        sleep(Duration::from_millis(1)).await;
    }
    let late = last.elapsed();
    let versions = app.config().version();
    app.runtime().shutdown(Duration::from_secs(10)).await;
    let figures = [
        ("updates", pushed.updates as f64),
        ("versions", versions as f64),
        ("processor, % of a core", pushed.share()),
        ("without a service that follows, %", alone.share()),
        ("the last is in force after, ms", late.as_secs_f64() * 1e3),
    ];
    Ok(Figures::new("updates", case, figures))
}

/// Settings of a hundred services, and how the texts of them differ.
#[derive(Clone, Copy)]
struct Text {
    number: bool,
    comment: bool,
}

/// Updates that were pushed, and what that took.
struct Pushed {
    updates: u64,
    processor: Duration,
    time: Duration,
}

// === impl Text ===

impl Text {
    fn timeout(self, number: u64) -> u64 {
        1_000 + if self.number { number } else { 0 }
    }

    fn of(self, number: u64) -> String {
        let (comment, timeout) = (if self.comment { number } else { 0 }, self.timeout(number));
        let mut text =
            format!("# {comment}\noutbound:\n  defaults: {{ timeout: {timeout}ms }}\n  services:\n");
        for service in 0..SERVICES {
            let _ = writeln!(
                text,
                "    service-{service}: {{ timeout: 2s, retry: {{ attempts: 3, backoff: 50ms }}, breaker: {{ min_calls: \
                 50 }} }}"
            );
        }
        text
    }
}

// === impl Pushed ===

impl Pushed {
    fn share(&self) -> f64 {
        100.0 * self.processor.as_secs_f64() / self.time.as_secs_f64()
    }
}

async fn push(source: &TextSource, time: Duration, text: Text) -> Pushed {
    let (begun, before) = (Instant::now(), processor_time());
    let mut ticks = interval(Duration::from_secs(1) / RATE as u32);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let all = time.as_millis() as u64 * RATE / 1_000;
    for number in 1..=all {
        ticks.tick().await;
        source.set(text.of(number));
    }
    Pushed { updates: all, processor: processor_time() - before, time: begun.elapsed() }
}

/// The processor time of this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
