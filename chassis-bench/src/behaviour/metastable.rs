//! A backend is slow for a while under callers that retry: do they recover when the backend does?
//!
//! Retries and the queue of that time can keep a service down long after the cause is gone (Bronson et al.,
//! "Metastable Failures in Distributed Systems", HotOS 2021).
use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{
    Figures, Pace,
    fleet::Fleet,
    overload::{BOUNDED, CAPACITY, SLOTS},
    sum,
};
use crate::{
    Result,
    drive::{Class, Drive, Load, Options, Slot},
};

const LOAD: f64 = 0.7;
/// The share of good calls that counts as recovered.
const WELL: f64 = 0.999;

pub(super) async fn run(pace: Pace) -> Result<Vec<Figures>> {
    let eager = "attempts: 3, when: always, per_try: 1s";
    let cases = [
        ("no bound on the server", "", format!("{{ timeout: 4s, retry: {{ {eager} }} }}")),
        ("concurrency 16 on the server", BOUNDED, format!("{{ timeout: 4s, retry: {{ {eager} }} }}")),
        (
            "no bound, no budget, no breaker",
            "",
            format!("{{ timeout: 4s, retry: {{ {eager}, budget: off }}, breaker: off }}"),
        ),
    ];
    let mut all = Vec::new();
    for (case, server, defaults) in cases {
        all.push(of(case, server, &defaults, pace).await?);
    }
    Ok(all)
}

async fn of(case: &str, server: &str, defaults: &str, pace: Pace) -> Result<Figures> {
    let mut fleet = Fleet::new()?;
    let backend = fleet.start("stock", server, &SLOTS).await?;
    let caller = fleet.caller(&format!("outbound: {{ defaults: {defaults} }}")).await?;
    let (time, slow, restored) = (pace.seconds(60), pace.seconds(10), pace.seconds(20));
    let options = Options {
        to: "stock".to_owned(),
        load: Load::Open { rate: LOAD * CAPACITY },
        time,
        ..Options::default()
    };
    let drive = Drive::new(&caller, options)?;
    let (report, moved) = tokio::join!(drive.run(), async {
        sleep(slow).await;
        // Calls in flight have a place in the queue: the same slots become slow.
        fleet.behave(backend, json!({ "latency": "33.333ms" })).await?;
        sleep(restored - slow).await;
        fleet.behave(backend, json!({ "latency": "10ms" })).await
    });
    moved?;
    let slots = &report.timeline;
    let share = |from, to| {
        100.0 * sum(slots, from, to, |s| s.ok) as f64 / sum(slots, from, to, |s| s.calls).max(1) as f64
    };
    Ok(Figures::new(
        "metastable",
        format!("{case}; {LOAD} of the capacity, 3 attempts of 1 s, 30 % of its speed for 10 s"),
        [
            ("calls", report.calls as f64),
            ("attempts / calls", report.attempts as f64 / report.calls.max(1) as f64),
            ("good before, %", share(Duration::ZERO, slow)),
            ("good while slow, %", share(slow, restored)),
            ("good after, %", share(restored, time)),
            ("seconds until 99.9 % are good", until_well(slots, restored)),
            ("hang", report.class(Class::Hang) as f64),
            ("latest start, ms", report.latest_start_ms),
        ],
    ))
}

/// Seconds from `restored` until each later second has enough good calls; all remaining time if that never
/// happens.
fn until_well(slots: &[Slot], restored: Duration) -> f64 {
    let end = slots.len() as f64 / 10.0;
    let bad = |start: usize| {
        let second = &slots[start..(start + 10).min(slots.len())];
        let (calls, ok) = second.iter().fold((0, 0), |(calls, ok), s| (calls + s.calls, ok + s.ok));
        (ok as f64) < WELL * calls as f64
    };
    let first = (restored.as_secs_f64() * 10.0) as usize;
    let last = (first..slots.len()).rev().find(|start| bad(*start));
    last.map_or(0.0, |start| ((start + 10) as f64 / 10.0).min(end) - restored.as_secs_f64())
}
