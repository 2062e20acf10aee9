//! The actions on the shop under load, and their observed effects.
use std::{collections::BTreeMap, process::ExitStatus, time::Duration};

use chassis::{Chassis, HttpClient};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    BoxError,
    load::{Call, Ended, Load, RATE},
    processes::Processes,
    settings::{self, AFTER, BEFORE},
    shop::Manner,
    table::Table,
    watch::Seen,
};

/// The record of the whole run, complete when the shop has stopped.
pub(crate) struct Record {
    /// When the load began: all times count from here.
    pub(crate) began: Instant,
    /// When the new settings were written.
    pub(crate) swapped: Instant,
    /// When `orders` was asked to stop.
    pub(crate) stopped: Instant,
    /// When `orders` had stopped, and its exit status.
    pub(crate) left: Instant,
    pub(crate) status: ExitStatus,
    /// Every call.
    pub(crate) calls: Vec<Call>,
    /// Actions and observations with their times.
    pub(crate) happened: Vec<(Instant, String)>,
}

/// The part of the record that grows during the run.
struct Diary {
    table: Table,
    happened: Vec<(Instant, String)>,
    last: Option<Seen>,
}

#[derive(Clone, Copy)]
enum Act {
    Swap,
    Kill,
    Start,
    Stop,
}

/// The actions and their times after the first call.
const SCRIPT: [(Duration, Act); 4] = [
    (Duration::from_secs(7), Act::Swap),
    (Duration::from_secs(12), Act::Kill),
    (Duration::from_secs(14), Act::Start),
    (Duration::from_secs(18), Act::Stop),
];
/// The instances at the start.
const OPENING: [(&str, Manner); 5] = [
    ("stock-1", Manner::Stable),
    ("stock-2", Manner::Stable),
    ("stock-canary", Manner::Canary),
    ("stock-slow", Manner::Slow),
    ("stock-flaky", Manner::Flaky),
];
const FLAKY: &str = "stock-flaky";
const NEWCOMER: &str = "stock-3";
/// How often the inspection of `orders` is read.
const LOOK: Duration = Duration::from_millis(200);
/// A busy machine may need this long to start six processes.
const OPENS_WITHIN: Duration = Duration::from_secs(60);
/// The settings allow 10.5 s for a stop.
const STOPS_WITHIN: Duration = Duration::from_secs(20);

/// Starts the shop and returns when `orders` knows all instances of `stock`.
pub(crate) async fn open(processes: &mut Processes, app: &Chassis) -> Result<(), BoxError> {
    println!("starting orders and {} instances of stock in {}", OPENING.len(), processes.dir().display());
    processes.orders()?;
    for (id, manner) in OPENING {
        processes.stock(id, manner)?;
    }
    let orders = app.http("orders");
    let opened = timeout(OPENS_WITHIN, async {
        let mut tick = interval(LOOK / 4);
        loop {
            tick.tick().await;
            processes.check()?;
            if Seen::ask(&orders).await.is_some_and(|seen| seen.nodes().len() == OPENING.len()) {
                return Ok::<(), BoxError>(());
            }
        }
    });
    opened.await.map_err(|_| format!("the shop did not open within {OPENS_WITHIN:?}"))?
}

/// Calls the shop, executes the script, and returns when `orders` has stopped.
pub(crate) async fn run(processes: &mut Processes, app: &Chassis) -> Result<Record, BoxError> {
    let orders = app.http("orders");
    let load = Load::start(orders.clone());
    let began = Instant::now();
    let mut diary = Diary { table: Table::new(), happened: Vec::new(), last: None };
    diary.note(format!("the shop is open; {RATE} calls a second from here on"));

    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut script = SCRIPT.into_iter().peekable();
    let (mut swapped, mut split) = (began, BEFORE);
    loop {
        tick.tick().await;
        processes.check()?;
        diary.look(&orders, &load, began, split).await;
        let Some((_, act)) = script.next_if(|(at, _)| began.elapsed() >= *at) else { continue };
        match act {
            Act::Swap => {
                swapped = Instant::now();
                settings::write(processes.dir(), AFTER)?;
                split = AFTER;
                diary.note(format!("chassis.yaml rewritten: split {} → {}", written(BEFORE), written(AFTER)));
            }
            Act::Kill => {
                processes.kill(FLAKY).await?;
                diary.note(format!("{FLAKY} killed with -9"));
            }
            Act::Start => {
                processes.stock(NEWCOMER, Manner::Stable)?;
                diary.note(format!("{NEWCOMER} started"));
            }
            Act::Stop => break,
        }
    }

    let stopped = Instant::now();
    processes.terminate("orders").await?;
    diary.note(format!("SIGTERM to orders, {} calls under way", load.in_flight()));
    let status = timeout(STOPS_WITHIN, ended(processes)).await;
    let status = status.map_err(|_| format!("orders did not stop within {STOPS_WITHIN:?}"))??;
    let left = Instant::now();
    diary.note(format!("orders is gone: {status}"));
    Ok(Record { began, swapped, stopped, left, status, calls: load.stop().await, happened: diary.happened })
}

/// Prints commands to try, and keeps the shop running until a signal ends it.
pub(crate) async fn keep_open<T>(processes: &mut Processes, app: &Chassis) -> Result<T, BoxError> {
    let orders = app.http("orders");
    let seen = Seen::ask(&orders).await.ok_or("orders has no answer")?;
    let stock = seen.node("stock-1").ok_or("stock-1 is gone")?.address.clone();
    let inspection = app.runtime().inspect();
    let mut nodes = inspection.services.iter().flat_map(|service| &service.nodes);
    let orders = nodes.next().ok_or("orders is gone")?.address.clone();
    println!(
        r#"
REST, served by orders:
  curl http://{orders}/orders/apple
  curl -H 'x-canary: true' http://{orders}/orders/apple
  curl http://{orders}/inspect
gRPC, served by stock-1:
  grpcurl -plaintext {stock} list
  grpcurl -plaintext -d '{{"id": "apple"}}' {stock} shop.v1.Stock/Level
Settings, in force as soon as they are saved: {dir}/chassis.yaml
Logs: {dir}/*.log
Ctrl-C ends it."#,
        dir = processes.dir().display()
    );
    let mut tick = interval(LOOK);
    loop {
        tick.tick().await;
        processes.check()?;
    }
}

async fn ended(processes: &mut Processes) -> Result<ExitStatus, BoxError> {
    let mut tick = interval(LOOK / 20);
    loop {
        tick.tick().await;
        if let Some(status) = processes.ended("orders")? {
            return Ok(status);
        }
    }
}

fn written([stable, canary]: [u32; 2]) -> String {
    format!("{stable}/{canary}")
}

// === impl Diary ===

impl Diary {
    fn note(&mut self, line: String) {
        self.happened.push((Instant::now(), line));
    }

    /// Shows the inspection of `orders`, and notes changes.
    async fn look(&mut self, orders: &HttpClient, load: &Load, began: Instant, split: [u32; 2]) {
        let Some(seen) = Seen::ask(orders).await else { return };
        if let Some(last) = self.last.take() {
            self.compare(&last, &seen);
        }
        let (calls, good) = load.look(|calls| {
            (calls.len(), calls.iter().filter(|call| matches!(call.ended, Ended::Good { .. })).count())
        });
        let head = format!(
            "{:5.1} s  settings version {}, split {}  {calls} calls, {good} good, {} under way",
            began.elapsed().as_secs_f64(),
            seen.version,
            written(split),
            load.in_flight(),
        );
        self.table.show(Instant::now(), &head, &seen);
        self.last = Some(seen);
    }

    fn compare(&mut self, last: &Seen, seen: &Seen) {
        if last.version != seen.version {
            self.note(format!("orders lives by version {} of the settings", seen.version));
        }
        let before: BTreeMap<_, _> = last.nodes().into_iter().map(|node| (&node.id, node)).collect();
        let after: BTreeMap<_, _> = seen.nodes().into_iter().map(|node| (&node.id, node)).collect();
        for id in before.keys().filter(|id| !after.contains_key(*id)) {
            self.note(format!("orders knows that {id} is gone"));
        }
        for (id, node) in &after {
            let earlier = before.get(id);
            if earlier.is_none() {
                self.note(format!("orders knows of {id}"));
            }
            if id.as_str() == NEWCOMER && node.calls > 0 && earlier.is_none_or(|earlier| earlier.calls == 0) {
                self.note(format!("{id} takes calls"));
            }
            if node.is_open() && !earlier.is_some_and(|earlier| earlier.is_open()) {
                self.note(format!(
                    "the circuit of {id} opened, {} of {} calls good",
                    node.successes, node.calls
                ));
            }
        }
    }
}
