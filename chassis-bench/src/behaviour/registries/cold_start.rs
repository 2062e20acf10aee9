//! Callers start while the server of the registry, which is the config center too, is away.
use std::{fs, path::Path, time::Duration};

use chassis::{Chassis, Reason};
use serde_json::json;
use tokio::time::Instant;

use super::{
    super::fleet::Fleet,
    Figures, Pace,
    calls::{Calls, SERVICE, know, until, until_async},
    server::{Fault, Kind, Server},
    start,
};
use crate::{
    Result,
    drive::{Caller, Class, Operation, Options, Outcome, Protocol},
};

/// The start of a process that found nothing on disk.
struct WithoutDisk {
    /// Until its first call failed.
    failed: Duration,
    reason: Option<Reason>,
    /// From the return of the server to the first call that succeeds.
    healed: Duration,
}

/// No call waits so long.
const LIMIT: Duration = Duration::from_secs(30);
const BOTH: [Protocol; 2] = [Protocol::Grpc, Protocol::Http];

pub(super) async fn run(kind: Kind, pace: Pace) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    for fault in [Fault::Killed, Fault::Frozen] {
        all.extend(of(kind, fault, pace).await?);
    }
    Ok(all)
}

async fn of(kind: Kind, fault: Fault, pace: Pace) -> Result<Option<Figures>> {
    let Some(mut server) = start("cold-start", kind).await? else { return Ok(None) };
    let mut fleet = Fleet::over(server.settings())?;
    for _ in 0..2 {
        fleet.start(SERVICE, "", &["--latency", "10ms"]).await?;
    }
    let all = [fleet.at(0), fleet.at(1)];
    server.list(&all).await?;
    server.put("outbound: { defaults: { timeout: 20s } }\n").await?;
    let dir = tempfile::tempdir()?;
    let kept = with_disk(&server, dir.path());
    // The process before leaves what it knows.
    let before = fleet.caller(&kept).await?;
    Calls::make(&before, 2, Duration::from_millis(200), true).await?;
    know(&before, &all).await?;
    let is_kept = || files(dir.path()) >= BOTH.len() + usize::from(server.center().is_some());
    until("the instances and the settings are on disk", is_kept).await?;
    before.runtime().shutdown(Duration::from_secs(5)).await;
    drop(before);

    server.fail(fault).await?;
    let begun = Instant::now();
    let with = fleet.caller(&kept).await?;
    let first = once(&with, LIMIT).await?;
    let (first_took, first_failed) =
        (begun.elapsed(), first.iter().filter(|out| out.class != Class::Ok).count());
    let calls = Calls::make(&with, 16, pace.seconds(5), true).await?;
    // A start that requires its center, and finds neither it nor its text.
    let required = match server.center() {
        Some(center) => {
            let begun = Instant::now();
            let settings = format!("config: {}\n", json!({ "centers": [center], "last_good": "off" }));
            match fleet.caller(&settings).await {
                Err(_) => Some(begun.elapsed()),
                Ok(_) => return Err("it starts without its center".into()),
            }
        }
        None => None,
    };
    let without = without_disk(&mut server, &fleet, fault).await?;
    with.runtime().shutdown(Duration::from_secs(5)).await;
    let mut figures = vec![
        ("from disk: seconds until the first calls are answered", first_took.as_secs_f64()),
        ("from disk: calls", calls.count() + BOTH.len() as f64),
        ("from disk: failed", calls.failed() + first_failed as f64),
        ("without: seconds until the first call fails", without.failed.as_secs_f64()),
        ("without: the error has a reason", f64::from(u8::from(without.reason.is_some()))),
        ("without: seconds from the return to a good call", without.healed.as_secs_f64()),
    ];
    figures.extend(
        required.map(|took| ("without its center: seconds until the start fails", took.as_secs_f64())),
    );
    Ok(Some(Figures::new("cold-start", format!("{}, {fault}", kind.name()), figures)))
}

/// Starts without anything on disk, and calls until the server is back.
async fn without_disk(server: &mut Server, fleet: &Fleet, fault: Fault) -> Result<WithoutDisk> {
    let begun = Instant::now();
    let app = fleet.caller("config: { last_good: off }\n").await?;
    let first = once(&app, LIMIT).await?;
    let failed = begun.elapsed();
    if let Some(good) = first.iter().find(|outcome| outcome.class == Class::Ok) {
        return Err(format!("a call without a registry was answered: {good:?}").into());
    }
    if first.iter().any(|outcome| outcome.class == Class::Hang) {
        return Err(format!("a call hangs: {first:?}").into());
    }
    let reason = first.iter().map(|outcome| outcome.reason).find(Option::is_none).unwrap_or(first[0].reason);
    eprintln!("without a registry: {}", first[0].message);
    server.heal(fault).await?;
    let healed = until_async("a call is answered", async || {
        Ok(once(&app, LIMIT).await?.iter().all(|outcome| outcome.class == Class::Ok))
    });
    let healed = healed.await?;
    app.runtime().shutdown(Duration::from_secs(5)).await;
    Ok(WithoutDisk { failed, reason, healed })
}

/// One call over each protocol, at the same time.
async fn once(app: &Chassis, limit: Duration) -> Result<[Outcome; 2]> {
    let caller = |protocol| {
        let to = SERVICE.to_owned();
        Caller::new(app, &Options { to, protocol, operation: Operation::Call, ..Options::default() })
    };
    let [grpc, http] = BOTH.map(caller);
    let (grpc, http) = (grpc?, http?);
    let (grpc, http) = tokio::join!(grpc.call(limit), http.call(limit));
    Ok([grpc, http])
}

fn with_disk(server: &Server, dir: &Path) -> String {
    let centers: Vec<_> = server.center().into_iter().collect();
    let config = json!({ "centers": centers, "last_good": dir });
    let discovery = json!({ "last_good": { "dir": dir } });
    format!("config: {config}\ndiscovery: {discovery}\n")
}

/// The number of files with the instances of a service and protocol, or the text of a center.
fn files(dir: &Path) -> usize {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let kept = names.filter(|name| {
        let name = name.to_string_lossy();
        name.ends_with(".instances") || name.starts_with("config-")
    });
    kept.count()
}
