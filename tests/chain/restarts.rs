//! Instances that stop in order under load: no call fails.
use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use chassis::Code;
use tokio::time::Instant;

use crate::mesh::{Act, Ask, Gate, Load, Mesh, Server, Wire, all_well, both, until};

/// Number of calls while instances come and go.
const CALLS: u64 = 30_000;
/// Number of answered calls between two restarts.
const ROUND: u64 = 1_500;

/// Three instances over TCP are restarted in turn, under 64 callers.
async fn rolling(wire: Wire, ask: fn() -> Ask) {
    let mesh = Mesh::new();
    let start = async |n: u64| -> Server {
        let plan = mesh.server("stock", &format!("stock-{n}")).config("shutdown: { deadline: 10s }");
        plan.listen(serde_json::json!({ "grpc": "127.0.0.1:0", "http": "127.0.0.1:0" })).start().await
    };
    let mut stocks = std::collections::VecDeque::new();
    for n in 0..3 {
        stocks.push_back(start(n).await);
    }
    let caller = mesh.caller("").await;
    let mut load = Load::new(&caller, wire, 64, ask);
    let mut restarts = 0;
    for n in 3..3 + CALLS / ROUND {
        load.more(ROUND).await;
        stocks.pop_front().expect("there are three").stop().await;
        stocks.push_back(start(n).await);
        restarts += 1;
    }
    load.more(ROUND).await;
    let outcomes = load.stop().await;
    println!("{wire:?}: {} calls, {restarts} restarts", outcomes.len());
    assert!(outcomes.len() as u64 >= CALLS && restarts == CALLS / ROUND);
    all_well(&outcomes);
    assert!(stocks.iter().all(|stock| stock.executed() > 0), "newcomers are called");
}

/// Also calls that are not idempotent: GOAWAY names those that were not executed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_call_of_grpc() {
    rolling(Wire::Grpc, || Ask::to("stock")).await;
}

/// HTTP/1.1 cannot name the calls that were not executed; a `GET` is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_no_get() {
    rolling(Wire::Rest, || Ask::to("stock").safe()).await;
}

both! {
    /// Calls in flight when a stop begins are answered, and later ones are refused.
    async fn a_stop_waits_for_what_is_under_way(wire: Wire) {
        let (mesh, gate) = (Mesh::new(), Gate::shut());
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Wait(gate.clone()));
        let caller = mesh.caller("").await;
        let calls: Vec<_> = (0..10).map(|_| caller.spawn(wire, Ask::to("stock"))).collect();
        until("all are under way", || stock.running() == 10).await;
        let stop = tokio::spawn(stock.stop());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!stop.is_finished());
        assert!(!caller.call(wire, Ask::to("stock")).await.is_ok(), "no new call is accepted");
        gate.open();
        for call in calls {
            assert_eq!(call.await.unwrap().by(), "stock-1");
        }
        stop.await.unwrap();
    }
}

/// The captured log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

both! {
    /// The process exits at the deadline and logs how many calls were cut.
    async fn stuck_streams_do_not_hold_the_exit(wire: Wire) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        let _logged = tracing::subscriber::set_default(subscriber);
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("shutdown: { deadline: 2s }").start().await;
        stock.does(Act::Hang);
        let caller = mesh.caller("").await;
        let mut streams = Vec::new();
        for _ in 0..3 {
            let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|no| panic!("{no:?}"));
            assert_eq!(parts.next().await.unwrap().unwrap(), "hello 1");
            streams.push(parts);
        }
        let (echo, began) = (stock.echo.clone(), Instant::now());
        stock.stop().await;
        let took = began.elapsed();
        assert!((2_000..2_100).contains(&took.as_millis()), "{took:?}");
        for mut parts in streams {
            let (more, failed) = parts.rest().await;
            assert_eq!((more, failed.map(|failed| failed.code)), (0, Some(Code::Unavailable)));
        }
        assert_eq!(echo.running(), 0, "its handlers are gone");
        let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let line = log.lines().find(|line| line.contains("were cut")).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains("cut=3"), "{line}");
    }
}
