//! Servers that answer as no agent should: what is known stays, and nothing is asked in a busy loop.
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use chassis_consul::{ConsulConfig, ConsulRegistry};
use chassis_core::{
    registry::Registry,
    testing::server::{PATIENCE, ids_of, until},
    units::PositiveSpan,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep, timeout},
};

trials! {
    answers_that_make_no_sense_change_nothing
    an_answer_that_does_not_come_is_given_up
    an_index_of_zero_is_no_busy_loop
    an_index_that_goes_back_is_read_at_once
    constant_change_is_read_at_a_bounded_pace
}

/// A server; its answers come from a function of the path.
struct Fake {
    address: String,
    asked: Arc<AtomicUsize>,
    paths: Arc<Mutex<Vec<String>>>,
}

/// An answer of the server.
#[derive(Clone)]
enum Sent {
    /// A head, and a body.
    Answer(&'static str, u64, String),
    /// Bytes without an end, at this pace.
    Endless(Duration),
    Nothing,
}

impl Fake {
    async fn start(answer: impl Fn(&str) -> Sent + Send + Sync + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (asked, paths, answer) = (Arc::new(AtomicUsize::new(0)), Arc::default(), Arc::new(answer));
        let fake = Fake { address, asked, paths };
        let (asked, paths) = (fake.asked.clone(), fake.paths.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (asked, paths, answer) = (asked.clone(), paths.clone(), answer.clone());
                tokio::spawn(serve(stream, move |path| {
                    asked.fetch_add(1, Relaxed);
                    paths.lock().unwrap().push(path.to_owned());
                    answer(path)
                }));
            }
        });
        fake
    }

    fn registry(&self) -> ConsulRegistry {
        let wait = PositiveSpan::from_millis(1_000);
        ConsulRegistry::new(ConsulConfig { wait, ..ConsulConfig::at(&self.address) }).unwrap()
    }
}

async fn serve(mut stream: TcpStream, answer: impl Fn(&str) -> Sent) -> std::io::Result<()> {
    let mut read = Vec::new();
    loop {
        while !read.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let path = String::from_utf8_lossy(&read).split(' ').nth(1).unwrap().to_owned();
        read.clear();
        match answer(&path) {
            Sent::Answer(status, index, body) => {
                let head = format!(
                    "HTTP/1.1 {status}\r\nx-consul-index: {index}\r\ncontent-length: {}\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(body.as_bytes()).await?;
            }
            Sent::Endless(pause) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n").await?;
                let some = vec![b' '; if pause.is_zero() { 1 << 20 } else { 1 }];
                loop {
                    stream.write_all(&some).await?;
                    sleep(pause).await;
                }
            }
            Sent::Nothing => std::future::pending().await,
        }
    }
}

fn list(ids: &[String]) -> String {
    let one = |id: &String| {
        serde_json::json!({
            "Node": { "Node": "n", "Address": "10.0.0.1" },
            "Service": { "ID": id, "Service": "stock", "Port": 80 }, "Checks": [] })
    };
    serde_json::Value::Array(ids.iter().map(one).collect()).to_string()
}

fn known(index: u64) -> Sent {
    Sent::Answer("200 OK", index, list(&["a".to_owned()]))
}

async fn answers_that_make_no_sense_change_nothing() {
    let deep = "[".repeat(100_000);
    let answers = [
        Sent::Answer("200 OK", 8, "[{\"Node\":".to_owned()),
        Sent::Answer("200 OK", 8, "<html>a page</html>".to_owned()),
        Sent::Answer("200 OK", 8, String::new()),
        Sent::Answer("200 OK", 8, "{}".to_owned()),
        Sent::Answer("200 OK", 8, "null".to_owned()),
        Sent::Answer("200 OK", 8, deep),
        Sent::Answer("404 Not Found", 8, String::new()),
        Sent::Answer("500 Internal Server Error", 8, "No cluster leader".to_owned()),
        Sent::Answer("429 Too Many Requests", 8, "\u{1b}[31m\n".repeat(10_000)),
        Sent::Answer("301 Moved Permanently", 8, String::new()),
        Sent::Endless(Duration::ZERO),
    ];
    for (n, bad) in answers.into_iter().enumerate() {
        let turn = Arc::new(AtomicU64::new(0));
        let turns = turn.clone();
        // A good one, two bad ones, and good ones with a change.
        let fake = Fake::start(move |_| match turns.fetch_add(1, Relaxed) {
            0 => known(7),
            1 | 2 => bad.clone(),
            3 => Sent::Answer("200 OK", 9, list(&["a".to_owned(), "b".to_owned()])),
            _ => Sent::Nothing,
        })
        .await;
        let mut watcher = fake.registry().watch("stock").await.unwrap();
        until(&mut watcher, &["n/a"]).await;
        let answer = timeout(PATIENCE, watcher.next()).await.unwrap();
        let error = answer.expect_err(&format!("answer {n}")).to_string();
        assert!(error.len() < 1_000 && !error.contains('\u{1b}'), "answer {n}: {error}");
        until(&mut watcher, &["n/a", "n/b"]).await;
        assert!(turn.load(Relaxed) <= 5, "answer {n}");
    }
}

async fn an_answer_that_does_not_come_is_given_up() {
    for bad in [Sent::Nothing, Sent::Endless(Duration::from_millis(50))] {
        let turn = AtomicU64::new(0);
        let fake = Fake::start(move |_| match turn.fetch_add(1, Relaxed) {
            0 => known(7),
            _ => bad.clone(),
        })
        .await;
        let mut watcher = fake.registry().watch("stock").await.unwrap();
        until(&mut watcher, &["n/a"]).await;
        let begun = Instant::now();
        let answer = timeout(PATIENCE, watcher.next()).await.unwrap();
        assert!(answer.is_err(), "{answer:?}");
        // The blocking query, which may wait for 1 s, and one that does not wait.
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(fake.asked.load(Relaxed) <= 4);
    }
}

async fn an_index_of_zero_is_no_busy_loop() {
    let fake = Fake::start(|_| known(0)).await;
    let mut watcher = fake.registry().watch("stock").await.unwrap();
    until(&mut watcher, &["n/a"]).await;
    sleep(Duration::from_secs(2)).await; // what is measured
    let asked = fake.asked.load(Relaxed);
    assert!((2..=13).contains(&asked), "{asked} requests in 2 s");
    let paths = fake.paths.lock().unwrap().clone();
    assert!(paths[1..].iter().all(|path| path.contains("index=1")), "{paths:?}");
}

async fn an_index_that_goes_back_is_read_at_once() {
    let turn = AtomicU64::new(0);
    let fake = Fake::start(move |_| match turn.fetch_add(1, Relaxed) {
        0 => known(70),
        1 => Sent::Answer("200 OK", 5, list(&["b".to_owned()])),
        2 => Sent::Answer("200 OK", 6, list(&["c".to_owned()])),
        _ => Sent::Nothing,
    })
    .await;
    let mut watcher = fake.registry().watch("stock").await.unwrap();
    until(&mut watcher, &["n/c"]).await;
    while fake.asked.load(Relaxed) < 4 {
        tokio::task::yield_now().await;
    }
    let paths = fake.paths.lock().unwrap().clone();
    let index = |path: &String| path.split_once("index=").map(|(_, index)| index.to_owned());
    assert_eq!(
        paths.iter().map(index).collect::<Vec<_>>(),
        [None, Some("70".into()), None, Some("6".into())]
    );
}

async fn constant_change_is_read_at_a_bounded_pace() {
    // Each query finds another state.
    let turn = Arc::new(AtomicU64::new(1));
    let turns = turn.clone();
    let fake = Fake::start(move |_| {
        let index = turns.fetch_add(1, Relaxed);
        Sent::Answer("200 OK", index, list(&[format!("i{index}")]))
    })
    .await;
    let begun = Instant::now();
    let mut watcher = fake.registry().watch("stock").await.unwrap();
    watcher.next().await.unwrap();
    sleep(Duration::from_secs(3)).await; // what is measured
    let most = 200 + 5 * begun.elapsed().as_millis() as usize / 1_000 + 2;
    let asked = fake.asked.load(Relaxed);
    assert!((50..=most).contains(&asked), "{asked} requests in {:?}", begun.elapsed());
    // The watcher returns the newest state.
    let answer = watcher.next().await.unwrap();
    let newest = turn.load(Relaxed) - 1;
    let ids = ids_of(&answer).join(",");
    let answer: u64 = ids.trim_start_matches("n/i").parse().unwrap();
    assert!(answer + 1 >= newest, "{answer} of {newest}");
}
