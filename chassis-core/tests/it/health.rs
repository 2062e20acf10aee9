//! Health checks of the program: when they run, what they decide, and what a bad one does.
use std::{
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use chassis_core::{
    Event, Runtime,
    health::{CheckConfig, CheckStatus, Health, Readiness},
    inspect::CheckView,
};
use tokio::time::{Instant, sleep, timeout};

use crate::support::{MS, S};

/// What the function of a check does; a test changes it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Pass,
    Fail,
    Panic,
    Hang,
}

/// A check, and the number of its runs.
#[derive(Clone)]
struct Script {
    does: Arc<Mutex<Does>>,
    runs: Arc<AtomicUsize>,
    /// The runs that exist at the moment, and the most that did at once.
    at_once: Arc<[AtomicU32; 2]>,
}

/// Counts a run until it is dropped.
struct Run(Script);

impl Script {
    fn new(does: Does) -> Self {
        Script { does: Arc::new(Mutex::new(does)), runs: Arc::default(), at_once: Arc::default() }
    }

    fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    fn runs(&self) -> usize {
        self.runs.load(SeqCst)
    }

    fn begin(&self) -> Run {
        self.runs.fetch_add(1, SeqCst);
        let now = self.at_once[0].fetch_add(1, SeqCst) + 1;
        self.at_once[1].fetch_max(now, SeqCst);
        Run(self.clone())
    }

    async fn run(self) -> Result<(), chassis_core::BoxError> {
        let _run = self.begin();
        let does = *self.does.lock().unwrap();
        match does {
            Does::Pass => Ok(()),
            Does::Fail => Err("no route".into()),
            Does::Panic => panic!("out of cheese"),
            Does::Hang => std::future::pending().await,
        }
    }

    fn check(&self, health: &Health, name: &str, config: CheckConfig) -> chassis_core::health::RunningCheck {
        let script = self.clone();
        health.check(name, config, move || script.clone().run())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.0.at_once[0].fetch_sub(1, SeqCst);
    }
}

fn runtime() -> Runtime {
    Runtime::builder("orders").random(chassis_core::Random::seeded(1)).build().unwrap()
}

fn times(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

fn view(runtime: &Runtime, name: &str) -> Option<CheckView> {
    runtime.inspect().checks.into_iter().find(|check| check.name == name)
}

/// The changes of a check, as the events report them.
fn changes(runtime: &Runtime, name: &str) -> Vec<String> {
    let past = runtime.events().past();
    let changes = past.iter().filter_map(|(_, event)| match &**event {
        Event::HealthChanged { check, .. } if check == name => Some(event.to_string()),
        _ => None,
    });
    changes.collect()
}

#[tokio::test(start_paused = true)]
async fn a_critical_check_has_to_pass_once_before_the_process_is_ready() {
    let (runtime, db, cache) = (runtime(), Script::new(Does::Fail), Script::new(Does::Fail));
    let health = runtime.health();
    assert_eq!(health.readiness(), Readiness::Ready, "there is no check");
    let _cache = cache.check(health, "cache", CheckConfig::informative());
    assert_eq!(health.readiness(), Readiness::Ready, "an informative check decides nothing");
    let _db = db.check(health, "db", CheckConfig::default());
    assert_eq!(health.readiness(), Readiness::Starting);
    sleep(1500 * MS).await;
    assert_eq!(health.readiness(), Readiness::Starting, "two failures are not enough to fail");
    assert_eq!(view(&runtime, "db").unwrap().why.as_deref(), Some("no route"));
    db.does(Does::Pass);
    // Until the first success it runs each second.
    sleep(S).await;
    assert_eq!(health.readiness(), Readiness::Ready);
    assert_eq!(changes(&runtime, "db"), ["critical health check `db` is passing"]);
    assert_eq!(changes(&runtime, "cache"), ["health check `cache` is failing: no route"]);
}

#[tokio::test(start_paused = true)]
async fn a_check_fails_and_passes_after_so_many_results_in_a_row() {
    let (runtime, db) = (runtime(), Script::new(Does::Pass));
    let config = CheckConfig { failures: times(3), successes: times(2), ..CheckConfig::default() };
    let _db = db.check(runtime.health(), "db", config);
    sleep(5 * S).await;
    let next = async |does: Does| {
        let before = db.runs();
        db.does(does);
        while db.runs() == before {
            sleep(100 * MS).await;
        }
        sleep(MS).await;
        runtime.health().readiness()
    };
    for (does, expected) in [
        (Does::Fail, Readiness::Ready),
        (Does::Fail, Readiness::Ready),
        (Does::Pass, Readiness::Ready),
        (Does::Fail, Readiness::Ready),
        (Does::Panic, Readiness::Ready),
        (Does::Fail, Readiness::Failing),
        (Does::Pass, Readiness::Failing),
        (Does::Fail, Readiness::Failing),
        (Does::Pass, Readiness::Failing),
        (Does::Pass, Readiness::Ready),
    ] {
        assert_eq!(next(does).await, expected, "{does:?}");
    }
    let (passes, fails) = ("critical health check `db` is passing", "critical health check `db` is failing");
    assert_eq!(changes(&runtime, "db"), [passes, &format!("{fails}: no route"), passes]);
}

#[tokio::test(start_paused = true)]
async fn errors_panics_and_hangs_are_failures_with_a_reason() {
    for (does, why) in [
        (Does::Fail, "no route"),
        (Does::Panic, "it panicked: out of cheese"),
        (Does::Hang, "no result within 2s"),
    ] {
        let (runtime, db) = (runtime(), Script::new(does));
        let _db = db.check(runtime.health(), "db", CheckConfig { failures: times(1), ..Default::default() });
        sleep(3 * S).await;
        assert_eq!(changes(&runtime, "db"), [format!("critical health check `db` is failing: {why}")]);
        assert_eq!(runtime.health().readiness(), Readiness::Failing);
        // What hung is dropped, and the next run is a new one.
        db.does(Does::Pass);
        sleep(12 * S).await;
        assert_eq!(runtime.health().readiness(), Readiness::Ready, "after {does:?}");
        assert_eq!(db.at_once[1].load(SeqCst), 1, "never two at once");
    }
}

#[tokio::test(start_paused = true)]
async fn checks_run_at_their_interval_with_jitter() {
    let runtime = runtime();
    let begun = Instant::now();
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let noted = times.clone();
    let check = runtime.health().check("db", CheckConfig::default(), move || {
        noted.lock().unwrap().push(begun.elapsed());
        async { Ok(()) }
    });
    sleep(1_000 * S).await;
    let times = times.lock().unwrap().clone();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.iter().all(|pause| (9 * S..=10 * S + MS).contains(pause)), "{pauses:?}");
    assert!(pauses.iter().any(|pause| *pause < 9_800 * MS) && pauses.iter().any(|pause| *pause > 9_200 * MS));
    drop(check);
}

#[tokio::test(start_paused = true)]
async fn a_check_ends_when_it_is_dropped_or_replaced_and_with_the_service() {
    let (runtime, first, second) = (runtime(), Script::new(Does::Fail), Script::new(Does::Pass));
    let health = runtime.health();
    let one = first.check(health, "db", CheckConfig { failures: times(1), ..Default::default() });
    sleep(S / 2).await;
    assert_eq!(health.readiness(), Readiness::Failing);
    let other = second.check(health, "db", CheckConfig::default());
    assert_eq!(health.readiness(), Readiness::Starting, "the new one has not passed yet");
    drop(one); // ends nothing: it was replaced
    let (runs, _) = (first.runs(), sleep(60 * S).await);
    assert_eq!((first.runs(), health.readiness()), (runs, Readiness::Ready));

    second.does(Does::Fail);
    sleep(60 * S).await;
    assert_eq!(health.readiness(), Readiness::Failing);
    drop(other);
    assert_eq!((health.readiness(), view(&runtime, "db").is_none()), (Readiness::Ready, true));
    let (runs, _) = (second.runs(), sleep(60 * S).await);
    assert_eq!(second.runs(), runs);

    first.check(health, "db", CheckConfig::default()).detach();
    let (runs, _) = (first.runs(), sleep(60 * S).await);
    assert!(first.runs() > runs);
    assert!(runtime.shutdown(S).await, "the task has ended");
    let (runs, _) = (first.runs(), sleep(60 * S).await);
    assert_eq!(first.runs(), runs);
}

#[tokio::test(start_paused = true)]
async fn a_status_is_set_by_hand() {
    let (runtime, db) = (runtime(), Script::new(Does::Pass));
    let health = runtime.health();
    health.set("licence", CheckStatus::Failing("it has expired".into()));
    assert_eq!(health.readiness(), Readiness::Failing);
    health.set("licence", CheckStatus::Passing);
    assert_eq!(health.readiness(), Readiness::Ready);
    health.remove("licence");
    assert!(view(&runtime, "licence").is_none());

    let _db = db.check(health, "db", CheckConfig::default());
    sleep(S).await;
    health.set("db", CheckStatus::Failing("in maintenance".into()));
    sleep(60 * S).await;
    let seen = view(&runtime, "db").unwrap();
    assert_eq!((seen.status, seen.why.as_deref(), seen.is_set), ("failing", Some("in maintenance"), true));
    assert_eq!(health.readiness(), Readiness::Failing, "its runs pass and are ignored");
    health.remove("db");
    assert_eq!(health.readiness(), Readiness::Ready);
    assert_eq!(
        changes(&runtime, "licence"),
        [
            "critical health check `licence` is failing: it has expired",
            "critical health check `licence` is passing"
        ]
    );
}

/// On the real clock, because a paused one would advance while another thread is blocked.
#[tokio::test]
async fn a_check_that_blocks_its_thread_delays_nothing_and_never_runs_twice() {
    let (unblock, blocked) = mpsc::channel::<()>();
    let (runtime, script, blocked) = (runtime(), Script::new(Does::Pass), Arc::new(Mutex::new(blocked)));
    let config =
        CheckConfig { interval: 10 * MS, timeout: 20 * MS, failures: times(1), ..Default::default() };
    let counted = script.clone();
    let _db = runtime.health().check("db", config, move || {
        let (run, blocked) = (counted.begin(), blocked.clone());
        async move {
            let _run = run;
            // Ends with the test at the latest.
            let _ = blocked.lock().unwrap().recv_timeout(60 * S);
            Ok(())
        }
    });
    let until = async |what: &str, condition: &dyn Fn(&CheckView) -> bool| {
        let mut readiness = runtime.health().watch();
        let waiting = async {
            while !condition(&view(&runtime, "db").unwrap()) {
                // Results are no events; another task of this thread runs meanwhile.
                let _ = timeout(MS, readiness.changed()).await;
            }
        };
        timeout(30 * S, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
    };
    until("it fails", &|check| check.status == "failing").await;
    until("the run is still there", &|check| {
        check.why.as_deref() == Some("an earlier run still blocks its thread")
    })
    .await;
    assert_eq!((script.runs(), script.at_once[1].load(SeqCst)), (1, 1));
    drop(unblock); // from now on no run blocks
    until("it passes", &|check| check.status == "passing").await;
    assert_eq!(script.at_once[1].load(SeqCst), 1);
}
