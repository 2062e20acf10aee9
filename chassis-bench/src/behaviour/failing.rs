//! A backend fails every call: how many attempts reach it per call of its callers?
use std::time::Duration;

use tokio::time::{Instant, interval};

use super::{Figures, Pace, fleet::Fleet};
use crate::{
    Result,
    drive::{Class, Drive, Load, Options, Slot},
};

/// The number of services in a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// The caller calls the failing service.
    One,
    /// The failing service is the third.
    Three,
}

const RATE: f64 = 500.0;

pub(super) async fn run(pace: Pace, depth: Depth) -> Result<Vec<Figures>> {
    let eager = "retry: { attempts: 3, when: always }";
    let cases = [
        ("defaults", "{}".to_owned()),
        ("3 attempts whatever failed", format!("{{ {eager} }}")),
        ("3 attempts whatever failed, no breaker", format!("{{ {eager}, breaker: off }}")),
    ];
    let mut all = Vec::new();
    for (case, defaults) in cases {
        all.push(of(case, &defaults, pace, depth).await?);
    }
    Ok(all)
}

async fn of(case: &str, defaults: &str, pace: Pace, depth: Depth) -> Result<Figures> {
    let settings = format!("outbound: {{ defaults: {defaults} }}\n");
    let mut fleet = Fleet::new()?;
    let leaf = fleet.start("leaf", &settings, &["--latency", "2ms", "--errors", "100%:UNAVAILABLE"]).await?;
    let to = match depth {
        Depth::One => "leaf",
        Depth::Three => {
            fleet.start("middle", &settings, &["--upstream", "leaf:grpc"]).await?;
            fleet.start("front", &settings, &["--upstream", "middle:grpc"]).await?;
            "front"
        }
    };
    let caller = fleet.caller(&settings).await?;
    let options = Options {
        to: to.to_owned(),
        load: Load::Open { rate: RATE },
        time: pace.seconds(60),
        ..Options::default()
    };
    let drive = Drive::new(&caller, options)?;
    let mut executed = Vec::new();
    let report = tokio::select! {
        report = drive.run() => report,
        error = watch(&fleet, leaf, &mut executed) => return Err(error),
    };
    let window = pace.seconds(10);
    let worst = worst(&executed, &report.timeline, window);
    let at_leaf = executed.last().map_or(0, |(_, executed)| *executed);
    let experiment = if depth == Depth::One { "failing" } else { "chain" };
    Ok(Figures::new(
        experiment,
        format!("{case}; {RATE}/s"),
        [
            ("calls", report.calls as f64),
            ("executed at the leaf", at_leaf as f64),
            ("executed / calls, worst 10 s", worst),
            ("executed / calls, whole", at_leaf as f64 / report.calls.max(1) as f64),
            ("refused before work", report.class(Class::RefusedBeforeWork) as f64),
            ("hang", report.class(Class::Hang) as f64),
            ("p99, ms", report.latency_ms.p99),
        ],
    ))
}

/// Records how many calls the leaf has executed, until it cannot be asked any more.
async fn watch(fleet: &Fleet, leaf: usize, executed: &mut Vec<(Duration, u64)>) -> crate::Error {
    let (start, mut ticks) = (Instant::now(), interval(Duration::from_millis(100)));
    loop {
        ticks.tick().await;
        match fleet.status(leaf).await {
            Ok(status) => executed.push((start.elapsed(), status.executed)),
            Err(error) => return error,
        }
    }
}

/// The largest number of executions per call in any interval of length `window`.
fn worst(executed: &[(Duration, u64)], slots: &[Slot], window: Duration) -> f64 {
    let in_windows = executed.iter().filter_map(|(from, before)| {
        let (_, after) = executed.iter().find(|(at, _)| *at >= *from + window)?;
        let calls = super::sum(slots, *from, *from + window, |slot| slot.calls);
        Some((after - before) as f64 / calls.max(1) as f64)
    });
    in_windows.fold(0.0, f64::max)
}
