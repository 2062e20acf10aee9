//! 200 processes, each with a registry of its own, come back to a server that was away and has lost everything. Each has
//! an entry of its own, and watches another service.
use std::{collections::BTreeMap, time::Duration};

use chassis::registry::{Instance, Membership, Registration, Registry, Watcher};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    Figures, Pace,
    calls::SERVICE,
    server::{Fault, Kind},
    start,
};
use crate::Result;

const PROCESSES: usize = 200;
/// The service of their entries, which none of them watches.
const OWN: &str = "orders";
/// The server serves before an outage.
const BEFORE: Duration = Duration::from_secs(3);
/// An outage in which each process tries again and again, and one after which they spread over `jitter`.
const OUTAGES: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(35)];
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) async fn run(kind: Kind, _: Pace) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    if kind == Kind::Dns {
        return Ok(all); // it registers nothing, and asks by its TTL
    }
    for outage in OUTAGES {
        all.extend(of(kind, outage).await?);
    }
    Ok(all)
}

async fn of(kind: Kind, outage: Duration) -> Result<Option<Figures>> {
    let Some(mut server) = start("spread", kind).await? else { return Ok(None) };
    let registry = server.registry()?;
    let _watched = registry.register(instance(SERVICE, "first")).await?;
    let mut entries: Vec<Box<dyn Registration>> = Vec::new();
    let mut watches = JoinSet::new();
    for n in 0..PROCESSES {
        let registry = server.registry()?;
        entries.push(registry.register(instance(OWN, &format!("i{n}"))).await?);
        let watcher = registry.watch(SERVICE).await?;
        watches.spawn(sees(watcher, "second"));
    }
    sleep(BEFORE).await;
    server.wipe().await?;
    sleep(outage).await;
    server.heal(Fault::Killed).await?;
    let back = Instant::now();
    let registry = server.registry()?;
    let (listed, second) = tokio::join!(listed(&*registry), registry.register(instance(SERVICE, "second")));
    let _second = second?;
    let listed: Vec<Duration> = listed?.into_values().map(|at| at - back).collect();
    let mut seen = Vec::new();
    while let Some(at) = watches.join_next().await {
        seen.push(at?? - back);
    }
    Ok(Some(Figures::new(
        "spread",
        format!("{}, away for {} s", kind.name(), outage.as_secs()),
        [
            ("entries that are back", listed.len() as f64),
            ("entries: in the busiest second, %", busiest(&listed)),
            ("entries: the last after, s", last(&listed)),
            ("watches that go on", seen.len() as f64),
            ("watches: in the busiest second, %", busiest(&seen)),
            ("watches: the last after, s", last(&seen)),
        ],
    )))
}

fn instance(service: &str, id: &str) -> Instance {
    Instance::new(service, id).with_address("grpc", "127.0.0.1:1")
}

/// When a watcher reports this instance.
async fn sees(mut watcher: Box<dyn Watcher>, id: &str) -> Result<Instant> {
    let watched = timeout(PATIENCE, async {
        loop {
            match watcher.next().await {
                Ok(Membership::Known(all)) if all.iter().any(|instance| instance.id == id) => return,
                _ => {}
            }
        }
    });
    watched.await.map_err(|_| format!("a watcher does not see `{id}`"))?;
    Ok(Instant::now())
}

/// When the entry of each process is listed again, by its id; ends when all are.
async fn listed(registry: &dyn Registry) -> Result<BTreeMap<String, Instant>> {
    let mut listed = BTreeMap::new();
    let watched = timeout(PATIENCE, async {
        let mut watcher = registry.watch(OWN).await?;
        while listed.len() < PROCESSES {
            if let Ok(Membership::Known(all)) = watcher.next().await {
                for instance in all {
                    listed.entry(instance.id.clone()).or_insert_with(Instant::now);
                }
            }
        }
        Ok::<_, crate::Error>(())
    });
    // Those that do not come back are missing in the figures.
    watched.await.unwrap_or(Ok(()))?;
    Ok(listed)
}

/// The share of those in the second that has most of them, in percent.
fn busiest(all: &[Duration]) -> f64 {
    let mut seconds = BTreeMap::<_, u32>::new();
    all.iter().for_each(|at| *seconds.entry(at.as_secs()).or_default() += 1);
    100.0 * f64::from(seconds.into_values().max().unwrap_or(0)) / all.len().max(1) as f64
}

fn last(all: &[Duration]) -> f64 {
    all.iter().max().map_or(f64::NAN, Duration::as_secs_f64)
}
