//! More calls than a service can handle, whose `concurrency` refuses the excess.
use std::time::Duration;

use super::{Figures, Pace, fleet::Fleet};
use crate::{
    Result,
    drive::{Class, Drive, Load, Options},
};

/// Eight slots of 10 ms: 800 calls a second on any machine, and few enough that two cores can send and refuse
/// ten times as many.
pub(super) const SLOTS: [&str; 4] = ["--slots", "8", "--latency", "10ms"];
/// The same as a number.
pub(super) const CAPACITY: f64 = 800.0;
/// The same number may wait; and calls that change the experiment must always pass.
pub(super) const BOUNDED: &str = "
inbound:
  concurrency: 16
  operations: { PUT /behaviour: { concurrency: off } }
";
/// A measured capacity that deviates more means that the machine is too slow, and the run is void.
const TOLERANCE: f64 = 0.05;

pub(super) async fn run(pace: Pace) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    let measured = capacity(pace).await?;
    let void = f64::from((measured / CAPACITY - 1.0).abs() > TOLERANCE);
    all.push(Figures::new("overload", "capacity", [("calls/s", measured), ("void", void)]));
    for factor in [0.8, 2.0, 10.0] {
        all.push(at(factor, pace).await?);
    }
    Ok(all)
}

/// Measures the capacity of the service without any limit.
async fn capacity(pace: Pace) -> Result<f64> {
    let mut fleet = Fleet::new()?;
    fleet.start("stock", "", &SLOTS).await?;
    let caller = fleet.caller("").await?;
    let load = Load::Closed { callers: 24 };
    let options = Options { to: "stock".to_owned(), load, time: pace.seconds(10), ..Options::default() };
    let report = Drive::new(&caller, options)?.run().await;
    Ok(report.class(Class::Ok) as f64 / report.seconds)
}

async fn at(factor: f64, pace: Pace) -> Result<Figures> {
    let mut fleet = Fleet::new()?;
    fleet.start("stock", BOUNDED, &SLOTS).await?;
    let caller = fleet.caller("").await?;
    let options = Options {
        to: "stock".to_owned(),
        load: Load::Open { rate: factor * CAPACITY },
        time: pace.seconds(20),
        timeout: Some(Duration::from_secs(1)),
        ..Options::default()
    };
    let report = Drive::new(&caller, options)?.run().await;
    let ok = report.class(Class::Ok);
    let goodput = ok as f64 / pace.seconds(20).as_secs_f64();
    Ok(Figures::new(
        "overload",
        format!("{factor} of the capacity, concurrency 16"),
        [
            ("calls", report.calls as f64),
            ("good/s", goodput),
            ("good / what could be done, %", 100.0 * goodput / CAPACITY.min(factor * CAPACITY)),
            ("p50 of ok, ms", report.latency_ok_ms.p50),
            ("p99 of ok, ms", report.latency_ok_ms.p99),
            ("refused before work", report.class(Class::RefusedBeforeWork) as f64),
            ("failed, not executed", report.class(Class::FailedNotExecuted) as f64),
            ("maybe executed", report.class(Class::MaybeExecuted) as f64),
            ("hang", report.class(Class::Hang) as f64),
            ("attempts / calls", report.attempts as f64 / report.calls.max(1) as f64),
            ("latest start, ms", report.latest_start_ms),
        ],
    ))
}
