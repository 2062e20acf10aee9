//! Three instances are restarted in turn under callers whose calls are not idempotent: each is stopped by SIGTERM, and
//! another one is started in its place.
use std::time::Duration;

use tokio::time::Instant;

use super::{
    super::fleet::Fleet,
    Figures, Pace,
    calls::{Calls, SERVICE, is_at, know, nodes, until},
    server::{Kind, Server},
    start,
};
use crate::Result;

const CALLERS: usize = 64;
const WORK: [&str; 2] = ["--latency", "50ms"];

pub(super) async fn run(kind: Kind, pace: Pace) -> Result<Vec<Figures>> {
    let Some(mut server) = start("rolling", kind).await? else { return Ok(Vec::new()) };
    let mut fleet = Fleet::over(server.settings())?;
    let mut up = Vec::new();
    for _ in 0..3 {
        up.push(fleet.start(SERVICE, "", &WORK).await?);
    }
    list(&mut server, &fleet, &up).await?;
    let app = fleet.caller("").await?;
    Calls::make(&app, 2, Duration::from_millis(200), true).await?;
    know(&app, &up.iter().map(|one| fleet.at(*one)).collect::<Vec<_>>()).await?;

    let (begun, time) = (Instant::now(), pace.seconds(60));
    let calls = Calls::make(&app, CALLERS, time, false);
    let (calls, restarts) = tokio::join!(calls, async {
        let mut restarts = 0;
        while begun.elapsed() + pace.seconds(10) < time {
            let old = up.remove(0);
            // One that registers itself deregisters itself; of another one its callers have to know.
            if kind == Kind::Dns {
                list(&mut server, &fleet, &up).await?;
                know(&app, &up.iter().map(|one| fleet.at(*one)).collect::<Vec<_>>()).await?;
            }
            fleet.stop(old).await?;
            up.push(fleet.start(SERVICE, "", &WORK).await?);
            list(&mut server, &fleet, &up).await?;
            know(&app, &up.iter().map(|one| fleet.at(*one)).collect::<Vec<_>>()).await?;
            let new = fleet.at(*up.last().unwrap_or(&0)).clone();
            until("the new instance has calls of both protocols", || {
                nodes(&app).iter().filter(|node| is_at(node, &new) && node.successes > 0).count() == 2
            })
            .await?;
            restarts += 1;
        }
        Ok::<_, crate::Error>(restarts)
    });
    let (calls, restarts) = (calls?, restarts?);
    app.runtime().shutdown(Duration::from_secs(5)).await;
    let figures = Figures::new(
        "rolling",
        kind.name(),
        [
            ("calls", calls.count()),
            ("failed", calls.failed()),
            ("hang", calls.hanging()),
            ("restarts", f64::from(restarts)),
            ("p99, ms", calls.p99()),
            ("max, ms", calls.longest()),
        ],
    );
    Ok(vec![figures])
}

async fn list(server: &mut Server, fleet: &Fleet, up: &[usize]) -> Result {
    server.list(&up.iter().map(|one| fleet.at(*one)).collect::<Vec<_>>()).await
}
