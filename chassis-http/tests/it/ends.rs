//! HTTP/2 connections that end in good order, silently, or during calls that were not sent.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{
    Body, Connection, Reason,
    protocol::Leaf,
    units::{Ratio, Span},
};
use chassis_http::{
    ClientConfig, H2Leaf, ServerConfig,
    connector::{Listener, Stream},
    server::{Answer, Received, ServerBody},
};
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use tokio::{
    io::AsyncWriteExt,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    raw,
    support::{Client, SECOND, World, call, read},
};

fn leaf(world: &World) -> Client<H2Leaf> {
    world.leaf(|link, connector, config| H2Leaf::new(link, connector, config, true), ClientConfig::default())
}

fn ok(stream: u32) -> Vec<u8> {
    raw::headers(stream, &[(":status", "200")], true)
}

/// Serves each connection with `serve`, which gets its number from 0.
fn serve<F>(world: &World, serve: impl Fn(usize, Stream) -> F + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut listener = world.memory.listen("stock").unwrap();
    let tasks = world.tasks.clone();
    world.tasks.spawn(async move {
        for n in 0.. {
            tasks.spawn(serve(n, listener.accept().await.unwrap()));
        }
    });
}

/// Answers calls, and sends GOAWAY to a connection that had none for `idle`.
async fn until_idle(idle: Duration, mut stream: Stream) {
    raw::greet(&mut stream, &[]).await;
    let mut last = 0;
    while let Ok(frame) = timeout(idle, raw::read_until(&mut stream, raw::HEADERS)).await {
        let Some(frame) = frame else { return };
        last = frame.stream;
        stream.write_all(&ok(last)).await.unwrap();
    }
    let _ = stream.write_all(&raw::goaway(last, 0)).await;
    while raw::read(&mut stream).await.is_some() {}
}

/// As many servers do that limit the idle time of a connection.
#[tokio::test(start_paused = true)]
async fn an_orderly_goodbye_to_an_idle_connection_is_no_failure() {
    for millis in [100, 1_000, 5_000] {
        let idle = Duration::from_millis(millis);
        let world = World::new();
        serve(&world, move |_, stream| until_idle(idle, stream));
        let mut client = leaf(&world);
        for round in 1..=5 {
            client = client.ready().await;
            assert_eq!(client.get("/x").await.unwrap(), "200 ", "{idle:?}");
            let begun = Instant::now();
            while begun.elapsed() < 10 * idle {
                let _ = timeout(10 * idle - begun.elapsed(), client.link.changed()).await;
                assert_ne!(client.link.connection(), Connection::TransientFailure, "{idle:?}");
            }
            // Without calls the reconnect is not urgent.
            assert_eq!(client.link.connection(), Connection::Idle, "{idle:?}");
            assert_eq!(world.memory.connections("stock"), round, "{idle:?}");
            let begun = Instant::now();
            client = client.ready().await;
            assert_eq!(begun.elapsed(), Duration::ZERO, "no back-off");
        }
    }
}

/// An unused connection that ends is no failure either, unless it ended at once.
#[tokio::test(start_paused = true)]
async fn an_orderly_goodbye_to_an_unused_connection_is_no_failure() {
    let world = World::new();
    serve(&world, |_, stream| until_idle(2 * SECOND, stream));
    let mut client = leaf(&world);
    for _ in 0..5 {
        client = client.ready().await;
        client.until(Connection::Idle).await;
    }
    assert_eq!(client.ready().await.get("/x").await.unwrap(), "200 ");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sends_everybody_away_is_left_alone_for_longer_and_longer() {
    for begun in [false, true] {
        let world = World::new();
        serve(&world, move |_, mut stream| async move {
            raw::greet(&mut stream, &[]).await;
            if begun {
                raw::read_until(&mut stream, raw::HEADERS).await;
            }
            let _ = stream.write_all(&raw::goaway(0, 0)).await;
        });
        let client = leaf(&world);
        let waiting = async {
            loop {
                client.leaf.wake();
                if client.link.connection() == Connection::Ready {
                    assert!(client.get("/x").await.unwrap_err().unsent());
                }
                client.link.changed().await;
            }
        };
        assert!(timeout(300 * SECOND, waiting).await.is_err());
        let tries = world.memory.connections("stock");
        assert!((5..=20).contains(&tries), "{tries}");
    }
}

/// A short `max_age` moves calls to the next connection; calls in flight continue to their end.
#[tokio::test(start_paused = true)]
async fn a_stream_outlives_the_age_of_its_connection() {
    let world = World::new();
    let config =
        ServerConfig { max_age: Span(SECOND), max_age_jitter: Ratio::percent(10), ..ServerConfig::default() };
    let service = |request: Request<Received>| -> Answer {
        Box::pin(async move {
            if request.uri().path() == "/long" {
                sleep(500 * SECOND).await;
            }
            Response::new(ServerBody::from("done"))
        })
    };
    let _server = world.serve(config, service);
    let client = Arc::new(leaf(&world).ready().await);
    let long = tokio::spawn({
        let client = client.clone();
        async move { client.get("/long").await }
    });
    let mut answered = 0;
    for n in 0..400 {
        // Frequent calls first, then occasional ones.
        sleep(if n < 200 { SECOND / 20 } else { 2 * SECOND }).await;
        assert_ne!(client.link.connection(), Connection::TransientFailure);
        client.leaf.wake();
        client.until(Connection::Ready).await;
        match client.get("/short").await {
            Ok(answer) => {
                assert_eq!(answer, "200 done");
                answered += 1;
            }
            // The call was in transmission when the server sent GOAWAY: it was not executed, and may be resent.
            Err(error) => assert!(error.unsent(), "{error:?}"),
        }
    }
    assert!(answered >= 380, "{answered}");
    assert_eq!(long.await.unwrap().unwrap(), "200 done");
}

/// Answers calls, but after the first `calls` of connection 0 it neither reads nor writes any more.
fn serve_until_silent(world: &World, calls: usize) {
    serve(world, move |n, mut stream| async move {
        raw::greet(&mut stream, &[]).await;
        for call in 0.. {
            if n == 0 && call == calls {
                return std::future::pending().await;
            }
            let Some(frame) = raw::read_until(&mut stream, raw::HEADERS).await else { return };
            stream.write_all(&ok(frame.stream)).await.unwrap();
        }
    });
}

/// Long before a ping would be due.
#[tokio::test(start_paused = true)]
async fn a_silent_death_costs_one_call_its_time() {
    let world = World::new();
    serve_until_silent(&world, 1);
    let client = leaf(&world).ready().await;
    client.get("/x").await.unwrap();
    sleep(3 * SECOND).await;
    assert!(timeout(Duration::from_millis(300), client.get("/dead")).await.is_err());
    let begun = Instant::now();
    // No call is sent here until it is known which connection is alive.
    assert_eq!(client.link.connection(), Connection::Connecting);
    client.until(Connection::Ready).await;
    assert_eq!(client.get("/x").await.unwrap(), "200 ");
    assert!(begun.elapsed() <= Duration::from_millis(300), "{:?}", begun.elapsed());
    assert_eq!(world.memory.connections("stock"), 2);
}

/// A call that arrives while the connection is doubted waits for a live connection.
#[tokio::test(start_paused = true)]
async fn a_call_that_comes_in_doubt_waits() {
    let world = World::new();
    serve_until_silent(&world, 1);
    let client = leaf(&world).ready().await;
    client.get("/x").await.unwrap();
    sleep(SECOND).await;
    assert!(timeout(Duration::from_millis(300), client.get("/dead")).await.is_err());
    let begun = Instant::now();
    assert_eq!(client.get("/x").await.unwrap(), "200 ");
    assert!(begun.elapsed() <= Duration::from_millis(300), "{:?}", begun.elapsed());
}

/// A slow handler is no dead connection: the peer answers pings.
#[tokio::test(start_paused = true)]
async fn a_peer_that_answers_pings_keeps_its_connection() {
    let world = World::new();
    serve(&world, |_, mut stream| async move {
        raw::greet(&mut stream, &[]).await;
        while let Some(frame) = raw::read_until(&mut stream, raw::HEADERS).await {
            // The third call is slow.
            if frame.stream != 5 {
                stream.write_all(&ok(frame.stream)).await.unwrap();
            }
        }
    });
    let client = leaf(&world).ready().await;
    client.get("/x").await.unwrap();
    client.get("/x").await.unwrap();
    sleep(SECOND).await;
    assert!(timeout(Duration::from_millis(300), client.get("/slow")).await.is_err());
    let begun = Instant::now();
    client.until(Connection::Ready).await;
    assert_eq!(client.get("/x").await.unwrap(), "200 ");
    assert!(begun.elapsed() <= Duration::from_millis(1), "{:?}", begun.elapsed());
    sleep(20 * SECOND).await;
    assert_eq!(world.memory.connections("stock"), 1);
}

/// A caller that cancels before an answer is possible gives no information about the connection.
#[tokio::test(start_paused = true)]
async fn an_impatient_caller_makes_no_connection_suspect() {
    let world = World::new();
    serve_until_silent(&world, 1);
    let client = leaf(&world).ready().await;
    client.get("/x").await.unwrap();
    sleep(SECOND).await;
    assert!(timeout(Duration::from_millis(50), client.get("/soon")).await.is_err());
    assert_eq!(client.link.connection(), Connection::Ready);
}

/// A body that is forwarded from an upstream that vanished ends with an error.
#[tokio::test(start_paused = true)]
async fn an_answer_whose_server_vanished_ends() {
    let world = World::new();
    serve(&world, |_, mut stream| async move {
        raw::greet(&mut stream, &[]).await;
        raw::read_until(&mut stream, raw::HEADERS).await.unwrap();
        let head = raw::headers(1, &[(":status", "200")], false);
        stream.write_all(&[head, raw::frame(raw::DATA, 0, 1, b"some")].concat()).await.unwrap();
        std::future::pending().await
    });
    let client = leaf(&world).ready().await;
    let begun = Instant::now();
    let error = client.get("/feed").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
    assert!(begun.elapsed() <= 16 * SECOND, "{:?}", begun.elapsed());
}

/// Calls in flight on a doubted connection continue: the peer may only have been busy.
#[tokio::test(start_paused = true)]
async fn a_stream_of_a_connection_in_doubt_goes_on() {
    let world = World::new();
    serve(&world, |_, mut stream| async move {
        raw::greet(&mut stream, &[]).await;
        raw::read_until(&mut stream, raw::HEADERS).await.unwrap();
        let head = raw::headers(1, &[(":status", "200")], false);
        stream.write_all(&[head, raw::frame(raw::DATA, 0, 1, b"one")].concat()).await.unwrap();
        // The peer is busy for longer than a doubt lasts, and for less than a ping may take.
        sleep(4 * SECOND).await;
        stream.write_all(&raw::frame(raw::DATA, raw::END_STREAM, 1, b"two")).await.unwrap();
        while raw::read(&mut stream).await.is_some() {}
    });
    let client = leaf(&world).ready().await;
    let reply = client.leaf.call(call(Method::GET, "/feed", Body::empty())).await.unwrap();
    let feed = tokio::spawn(read(reply));
    sleep(SECOND).await;
    assert!(timeout(SECOND, client.get("/dead")).await.is_err());
    client.until(Connection::Ready).await;
    assert_eq!(world.memory.connections("stock"), 2);
    assert_eq!(feed.await.unwrap().unwrap(), "200 onetwo");
}

/// If a head was not sent when the connection ends, the server has not received it.
#[tokio::test(start_paused = true)]
async fn a_call_that_had_not_left_was_not_executed() {
    let rude = raw::frame(raw::DATA, 0, 0, b"x");
    for (words, left) in [(rude.clone(), false), (vec![], false), (rude, true), (vec![], true)] {
        let world = World::new();
        let mut listener = world.memory.listen("stock").unwrap();
        let client = Arc::new(leaf(&world));
        client.leaf.wake();
        let mut stream = listener.accept().await.unwrap();
        raw::greet(&mut stream, &[]).await;
        client.until(Connection::Ready).await;
        let call = {
            let client = client.clone();
            async move { client.post("/order", "one").await.unwrap_err() }
        };
        let end = async |mut stream: Stream| {
            stream.write_all(&words).await.unwrap();
            drop(stream);
        };
        let error = match left {
            // The connection's task reads before it writes.
            false => {
                end(stream).await;
                call.await
            }
            true => {
                let call = tokio::spawn(call);
                raw::read_until(&mut stream, raw::DATA).await.unwrap();
                end(stream).await;
                call.await.unwrap()
            }
        };
        assert_eq!(error.maybe_executed(), left, "{words:?} {error:?}");
        assert_eq!(error.unsent(), !left);
    }
}

/// With several threads a connection may end between its last check and the begin of the call: the call is
/// returned complete, because otherwise it cannot be resent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_loses_no_call_that_is_just_handed_over() {
    let world = World::new();
    let (seen, mut received) = mpsc::unbounded_channel();
    serve(&world, move |_, mut stream| {
        let seen = seen.clone();
        async move {
            raw::greet(&mut stream, &[]).await;
            let mut last = 0;
            for _ in 0..20 {
                let Some(frame) = raw::read_until(&mut stream, raw::HEADERS).await else { return };
                last = frame.stream;
                let _ = seen.send(());
                stream.write_all(&ok(last)).await.unwrap();
            }
            let _ = stream.write_all(&raw::goaway(last, 0)).await;
            while raw::read(&mut stream).await.is_some() {}
        }
    });
    let client = Arc::new(leaf(&world).ready().await);
    let answered = Arc::new(AtomicUsize::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (client, answered) = (client.clone(), answered.clone());
            tokio::spawn(async move {
                while answered.load(SeqCst) < 2_000 {
                    match client.get("/x").await {
                        Ok(_) => drop(answered.fetch_add(1, SeqCst)),
                        Err(mut error) => {
                            assert!(error.unsent(), "{error:?}");
                            // It was sent and refused by GOAWAY, or it was returned unsent.
                            let refused = error.reason() == Reason::StreamRefused;
                            assert!(refused || error.take_unsent().is_some(), "{error:?}");
                            client.leaf.wake();
                            let _ = timeout(Duration::from_millis(20), client.until(Connection::Ready)).await;
                        }
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    let mut executed = 0;
    while received.try_recv().is_ok() {
        executed += 1;
    }
    assert_eq!(executed, answered.load(SeqCst));
}

/// The body of an answer is read to its end after its connection received GOAWAY.
#[tokio::test(start_paused = true)]
async fn an_answer_goes_on_after_the_goodbye() {
    let world = World::new();
    serve(&world, |_, mut stream| async move {
        raw::greet(&mut stream, &[]).await;
        raw::read_until(&mut stream, raw::HEADERS).await.unwrap();
        let head = raw::headers(1, &[(":status", "200")], false);
        stream.write_all(&[head, raw::goaway(1, 0)].concat()).await.unwrap();
        let _ = timeout(100 * SECOND, raw::read_until(&mut stream, raw::HEADERS)).await;
        stream.write_all(&raw::frame(raw::DATA, raw::END_STREAM, 1, b"late")).await.unwrap();
        while raw::read(&mut stream).await.is_some() {}
    });
    let client = leaf(&world).ready().await;
    let reply = client.leaf.call(call(Method::GET, "/feed", Body::empty())).await.unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "late");
}
