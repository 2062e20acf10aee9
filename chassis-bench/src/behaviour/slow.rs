//! One of eleven instances takes 2 s for half of the time, as in the experiment that Finagle published
//! ("Beyond round robin": round robin about 95 % good, least loaded 99 %, peak EWMA 99.9 %).
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{Figures, Pace, fleet::Fleet, sum};
use crate::{
    Result,
    drive::{Class, Drive, Load, Options},
};

const INSTANCES: usize = 11;
const RATE: f64 = 1_000.0;
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) async fn run(pace: Pace) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    for balance in ["round_robin", "random", "p2c"] {
        all.push(of(balance, pace).await?);
    }
    Ok(all)
}

async fn of(balance: &str, pace: Pace) -> Result<Figures> {
    let mut fleet = Fleet::new()?;
    for _ in 0..INSTANCES {
        fleet.start("stock", "", &["--latency", "lognormal:10ms,0.3"]).await?;
    }
    let caller = fleet.caller(&format!("outbound: {{ defaults: {{ balance: {balance} }} }}")).await?;
    let (time, from, to) = (pace.seconds(60), pace.seconds(15), pace.seconds(45));
    let options = Options {
        to: "stock".to_owned(),
        load: Load::Open { rate: RATE },
        time,
        timeout: Some(TIMEOUT),
        ..Options::default()
    };
    let drive = Drive::new(&caller, options)?;
    let (report, slowed) = tokio::join!(drive.run(), async {
        sleep(from).await;
        fleet.behave(0, json!({ "latency": "2s" })).await?;
        sleep(to - from).await;
        fleet.behave(0, json!({ "latency": "lognormal:10ms,0.3" })).await
    });
    slowed?;
    let slots = &report.timeline;
    let (calls, ok) = (sum(slots, from, to, |s| s.calls), sum(slots, from, to, |s| s.ok));
    Ok(Figures::new(
        "slow",
        format!("{balance}, {INSTANCES} instances, one at 2 s for half of the time, {RATE}/s, timeout 1 s"),
        [
            ("calls", report.calls as f64),
            ("good, %", report.good()),
            ("good while one is slow, %", 100.0 * ok as f64 / calls.max(1) as f64),
            ("hang", report.class(Class::Hang) as f64),
            ("p99 of ok, ms", report.latency_ok_ms.p99),
            ("p99.9 of all, ms", report.latency_ms.p999),
            ("latest start, ms", report.latest_start_ms),
        ],
    ))
}
