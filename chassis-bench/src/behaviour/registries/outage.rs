//! The server of the registry, which is the config center too, is away under callers. Meanwhile one of three instances
//! is killed, and another one is restarted at its addresses.
use std::time::Duration;

use chassis::{Chassis, inspect::NodeView};
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::{
    super::fleet::{Fleet, calls_to, share_of},
    Figures, Pace,
    calls::{Calls, SERVICE, answered_by, is_at, know, until},
    server::{Fault, Kind},
    start,
};
use crate::Result;

const CALLERS: usize = 64;
/// A killed instance has to be avoided by then.
const SOON: Duration = Duration::from_secs(1);
/// Few enough calls for two cores: 64 callers make 1,280 a second.
const WORK: [&str; 2] = ["--latency", "50ms"];

pub(super) async fn run(kind: Kind, pace: Pace) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    for fault in [Fault::Killed, Fault::Frozen] {
        all.extend(of(kind, fault, pace).await?);
    }
    Ok(all)
}

async fn of(kind: Kind, fault: Fault, pace: Pace) -> Result<Option<Figures>> {
    let Some(mut server) = start("outage", kind).await? else { return Ok(None) };
    let mut fleet = Fleet::over(server.settings())?;
    for _ in 0..3 {
        fleet.start(SERVICE, "", &WORK).await?;
    }
    server.list(&[fleet.at(0), fleet.at(1), fleet.at(2)]).await?;
    server.put(&with_timeout(10)).await?;
    let centers: Vec<_> = server.center().into_iter().collect();
    let app =
        fleet.caller(&format!("config: {}\n", json!({ "centers": centers, "last_good": "off" }))).await?;
    // A caller follows the services that it has called.
    Calls::make(&app, 2, Duration::from_millis(200), true).await?;
    know(&app, &[fleet.at(0), fleet.at(1), fleet.at(2)]).await?;

    let begun = Instant::now();
    let at = |seconds| sleep_until(begun + pace.seconds(seconds));
    let (killed, restarted) = (fleet.at(0).clone(), fleet.at(1).clone());
    let calls = Calls::make(&app, CALLERS, pace.seconds(85), true);
    let (calls, seen) = tokio::join!(calls, async {
        at(5).await;
        server.fail(fault).await?;
        at(15).await;
        fleet.kill(0).await?;
        let is_killed = |node: &NodeView| is_at(node, &killed);
        let share = share_of(&app, is_killed, SOON + SOON).await;
        let then = calls_to(&app, is_killed);
        at(30).await;
        let probes = calls_to(&app, is_killed).zip(then).map_or(0, |(now, then)| now.saturating_sub(then));
        fleet.stop(1).await?;
        let before = answered_by(&app, &restarted);
        fleet.start_at(&restarted, SERVICE, "", &WORK).await?;
        let again =
            until("the restarted instance is called", || answered_by(&app, &restarted) > before).await?;
        at(65).await;
        server.heal(fault).await?;
        server.put(&with_timeout(9)).await?;
        let new = fleet.start(SERVICE, "", &WORK).await?;
        let new = fleet.at(new).clone();
        server.list(&[&restarted, fleet.at(2), &new]).await?;
        let (settings, called) = tokio::join!(
            async {
                match server.center() {
                    Some(_) => {
                        until("the settings are applied", || timeout_of(&app) == Some(9)).await.map(Some)
                    }
                    None => Ok(None),
                }
            },
            until("a new instance is called", || answered_by(&app, &new) > 0),
        );
        let (settings, called) = (settings?, called?);
        Ok::<_, crate::Error>((share, probes, again, called, settings))
    });
    let (calls, (share, probes, again, called, settings)) = (calls?, seen?);
    app.runtime().shutdown(Duration::from_secs(5)).await;
    let mut figures = vec![
        ("calls", calls.count()),
        ("failed", calls.failed()),
        ("hang", calls.hanging()),
        ("killed instance: seconds until its share is 0", share.as_secs_f64()),
        ("killed instance: attempts later than that", probes as f64),
        ("restarted instance: seconds until it is called", again.as_secs_f64()),
        ("after the return: seconds until a new instance is called", called.as_secs_f64()),
        ("p99, ms", calls.p99()),
        ("max, ms", calls.longest()),
    ];
    let settings = settings
        .map(|took| ("after the return: seconds until new settings are in force", took.as_secs_f64()));
    figures.extend(settings);
    Ok(Some(Figures::new("outage", format!("{}, {fault}", kind.name()), figures)))
}

fn with_timeout(seconds: u64) -> String {
    format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}\n")
}

/// The timeout of calls, in seconds.
fn timeout_of(app: &Chassis) -> Option<u64> {
    app.runtime().policies().get().outbound(&SERVICE.into(), "x").timeout().map(|timeout| timeout.as_secs())
}
