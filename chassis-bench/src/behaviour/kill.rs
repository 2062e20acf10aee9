//! One of three instances is killed, without deregistration, under callers whose calls are idempotent.
use std::time::Duration;

use tokio::time::sleep;

use super::{
    Figures, Pace,
    fleet::{Fleet, share_of},
    sum,
};
use crate::{
    Result,
    drive::{Class, Drive, Load, Options},
};

const CALLERS: usize = 64;

pub(super) async fn run(pace: Pace) -> Result<Vec<Figures>> {
    let mut fleet = Fleet::new()?;
    for _ in 0..3 {
        fleet.start("stock", "", &["--latency", "20ms"]).await?;
    }
    let caller = fleet.caller("").await?;
    let (time, kill_at) = (pace.seconds(60), pace.seconds(20));
    let load = Load::Closed { callers: CALLERS };
    let options = Options { to: "stock".to_owned(), load, time, idempotent: true, ..Options::default() };
    let drive = Drive::new(&caller, options)?;
    let (report, killed) = tokio::join!(drive.run(), async {
        sleep(kill_at).await;
        fleet.kill(0).await?;
        let killed = fleet.id(0);
        Ok::<_, crate::Error>(share_of(&caller, |node| node.id == killed, time - kill_at).await)
    });
    let share = killed?;
    let failed = |slot: &crate::drive::Slot| slot.calls - slot.ok;
    let slots = &report.timeline;
    let last = slots.iter().rposition(|slot| failed(slot) > 0);
    let until = last.map_or(0.0, |at| (at as f64 + 1.0) / 10.0 - kill_at.as_secs_f64());
    let figures = Figures::new(
        "kill",
        format!("{CALLERS} callers, gRPC, idempotent, killed after {} s", kill_at.as_secs()),
        [
            ("calls", report.calls as f64),
            ("attempts", report.attempts as f64),
            ("not ok", (report.calls - report.class(Class::Ok)) as f64),
            ("not ok before the kill", sum(slots, Duration::ZERO, kill_at, failed) as f64),
            ("hang", report.class(Class::Hang) as f64),
            ("seconds until its share is 0", share.as_secs_f64()),
            ("seconds until the last failure", until.max(0.0)),
            ("p99 of ok, ms", report.latency_ok_ms.p99),
            ("max of ok, ms", report.latency_ok_ms.max),
        ],
    );
    Ok(vec![figures])
}
