//! The pushes, and the checks.
use std::{process::ExitCode, time::Duration};

use chassis::{Chassis, HttpClient, document::Environment};
use tokio::{
    task::JoinSet,
    time::{Instant, interval, timeout},
};

use crate::{BoxError, center::Center, processes::Processes, services::InForce};

/// The checks, each with whether it passed.
struct Checks(Vec<(bool, String)>);

/// The calls of one phase.
struct Calls {
    canary: usize,
    stable: usize,
    failed: Vec<String>,
}

/// The percentages of the canary: at the start, after the good push, and in the bad one.
const BEFORE: u32 = 10;
const AFTER: u32 = 80;
const BAD: u32 = 50;
const CALLERS: usize = 4;
/// The calls of a caller in each phase.
const CALLS: usize = 250;
/// A random share deviates by this many standard deviations once in 15,000 runs.
const SIGMAS: f64 = 4.0;
/// A change has to be in force within this time.
const FOLLOWED: Duration = Duration::from_secs(2);
/// A busy machine may need this long to start three processes.
const PATIENCE: Duration = Duration::from_secs(60);

fn document(canary: u32, deadline: &str) -> String {
    let stable = 100 - canary;
    format!(
        "# The settings of every process of this example.
outbound:
  services:
    stock:
      timeout: {deadline}
      routes:
        - {{ name: split, split: {{ stable: {stable}, canary: {canary} }}, by: track }}
"
    )
}

/// Plays it, and prints the summary.
pub(crate) async fn run(center: &Center, processes: &mut Processes) -> Result<ExitCode, BoxError> {
    let mut checks = Checks(Vec::new());
    center.push(&document(BEFORE, "5s")).await?;
    let settings = center.settings().to_string();
    for arguments in
        [&["orders", &*settings][..], &["stock", "stable", &settings], &["stock", "canary", &settings]]
    {
        processes.start(arguments)?;
    }
    let app = Chassis::builder("driver").without_file().environment(Environment::default());
    let registry = serde_json::json!({ "registry": center.settings()["registry"] });
    let app = app.settings(registry).build().await?;
    let orders = app.http("orders");
    open(&orders, processes).await?;
    println!("orders and two instances of stock read their settings from {}", center.name());

    let first = in_force(&orders).await?;
    checks.calls("the first version", BEFORE, call(&orders).await);

    let pushed = Instant::now();
    center.push(&document(AFTER, "5s")).await?;
    let second = until(&orders, |now| now.version != first.version).await?;
    let took = pushed.elapsed();
    let line = format!("a push was in force after {took:.2?}: {}", second.origin);
    checks.add(took <= FOLLOWED, line);
    checks.calls("the pushed version", AFTER, call(&orders).await);

    center.push(&document(BAD, "soon")).await?;
    let bad = until(&orders, |now| !now.refused.is_empty()).await?;
    checks.add(bad.version == second.version, format!("a bad push was refused: {}", bad.refused.join("; ")));
    checks.calls("the same version", AFTER, call(&orders).await);

    let back = orders.post("/rollback/{version}").param("version", first.version).send().await?.ok().await?;
    let back: u64 = back.json().await?;
    let now = in_force(&orders).await?;
    checks.add(
        now.version == back,
        format!("version {} was put in force again, as version {back}", first.version),
    );
    checks.calls("the version of the rollback", BEFORE, call(&orders).await);

    processes.check()?;
    Ok(checks.print())
}

/// Waits until both instances of `stock` answer.
async fn open(orders: &HttpClient, processes: &mut Processes) -> Result<(), BoxError> {
    let opened = timeout(PATIENCE, async {
        let mut tick = interval(Duration::from_millis(50));
        let mut seen = [false; 2];
        while seen.contains(&false) {
            tick.tick().await;
            processes.check()?;
            if let Ok(answer) = orders.get("/orders").send().await
                && answer.status().is_success()
            {
                seen[usize::from(answer.text().await? == "canary")] = true;
            }
        }
        Ok(())
    });
    opened.await.map_err(|_| "the services did not open in time")?
}

async fn in_force(orders: &HttpClient) -> Result<InForce, BoxError> {
    Ok(orders.get("/settings").send().await?.ok().await?.json().await?)
}

/// Waits until the settings of `orders` are so.
async fn until(orders: &HttpClient, is_so: impl Fn(&InForce) -> bool) -> Result<InForce, BoxError> {
    let waited = timeout(PATIENCE, async {
        let mut tick = interval(Duration::from_millis(5));
        loop {
            tick.tick().await;
            let now = in_force(orders).await?;
            if is_so(&now) {
                return Ok(now);
            }
        }
    });
    waited.await.map_err(|_| "a push was not seen in time")?
}

/// Calls `orders`, which calls `stock`, from several callers at once.
async fn call(orders: &HttpClient) -> Calls {
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let orders = orders.clone();
        callers.spawn(async move {
            let mut answers = Vec::new();
            for _ in 0..CALLS {
                let answered = async {
                    orders.get("/orders").send().await?.ok().await?.text().await.map_err(BoxError::from)
                };
                answers.push(answered.await.map_err(|error: BoxError| error.to_string()));
            }
            answers
        });
    }
    let mut calls = Calls { canary: 0, stable: 0, failed: Vec::new() };
    for answer in callers.join_all().await.into_iter().flatten() {
        match answer.as_deref() {
            Ok("canary") => calls.canary += 1,
            Ok("stable") => calls.stable += 1,
            Ok(other) => calls.failed.push(format!("an odd answer: {other}")),
            Err(why) => calls.failed.push(why.clone()),
        }
    }
    calls
}

// === impl Checks ===

impl Checks {
    fn add(&mut self, held: bool, line: String) {
        self.0.push((held, line));
    }

    /// All calls were answered, and the canary had its share.
    fn calls(&mut self, version: &str, percent: u32, calls: Calls) {
        let all = CALLERS * CALLS;
        let (wanted, seen) = (f64::from(percent) / 100.0, calls.canary as f64 / all as f64);
        let is_near = (seen - wanted).abs() <= SIGMAS * (wanted * (1.0 - wanted) / all as f64).sqrt();
        let line = format!(
            "{version}: the canary answered {:.1} % of {all} calls ({percent} % wanted)",
            100.0 * seen
        );
        self.add(is_near, line);
        let failed = calls.failed.first().map(|why| format!(", for example: {why}")).unwrap_or_default();
        self.add(
            calls.stable + calls.canary == all,
            format!("{} of them failed{failed}", calls.failed.len()),
        );
    }

    /// Prints all; the exit code is a failure if one did not pass.
    fn print(&self) -> ExitCode {
        for (held, line) in &self.0 {
            println!("  {}  {line}", if *held { "yes" } else { "NO " });
        }
        match self.0.iter().all(|(held, _)| *held) {
            true => ExitCode::SUCCESS,
            false => ExitCode::FAILURE,
        }
    }
}
