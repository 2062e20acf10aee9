//! The HTTP/1.1 pool: reuse, bounds, and connections that the endpoint closes.
use std::{future::poll_fn, pin::pin, sync::Arc, task::Poll, time::Duration};

use chassis_core::{Body, Connection, Reason, protocol::Leaf, units::PositiveSpan};
use chassis_http::{
    ClientConfig, H1Leaf, ServerConfig,
    connector::{Fate, Listener, MemoryListener, Stream},
    server::{Answer, Received, ServerBody},
};
use http::{Method, Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use crate::{
    rest::client_with,
    support::{Client, SECOND, World, call, echo, hello, read},
};

fn leaf(world: &World, config: ClientConfig) -> Client<H1Leaf> {
    world.leaf(H1Leaf::new, config)
}

#[tokio::test(start_paused = true)]
async fn uses_one_connection_for_calls_in_turn() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    for _ in 0..100 {
        assert_eq!(client.get("/x").await.unwrap(), "200 x");
        assert_eq!(client.post("/y", "body").await.unwrap(), "200 y");
    }
    assert_eq!(world.memory.connections("stock"), 1);
}

#[tokio::test(start_paused = true)]
async fn connects_for_a_call_that_comes_first() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default());
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn waits_when_all_connections_are_in_use() {
    let world = World::new();
    let service = |_: Request<Received>| -> Answer {
        Box::pin(async {
            sleep(SECOND).await;
            Response::new(ServerBody::from("done"))
        })
    };
    let _server = world.serve(ServerConfig::default(), service);
    let config = ClientConfig { pool: 2.try_into().unwrap(), ..ClientConfig::default() };
    let client = Arc::new(leaf(&world, config).ready().await);
    let begun = Instant::now();
    let calls = (0..6).map(|_| {
        let client = client.clone();
        tokio::spawn(async move { client.get("/x").await })
    });
    for task in calls.collect::<Vec<_>>() {
        assert_eq!(task.await.unwrap().unwrap(), "200 done");
    }
    assert_eq!(begun.elapsed(), 3 * SECOND);
    assert_eq!(world.memory.connections("stock"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_connection_closed_while_idle_costs_no_call() {
    let world = World::new();
    let config = ServerConfig {
        idle_timeout: PositiveSpan::from_millis(1_000),
        header_timeout: PositiveSpan::from_millis(1_000),
        ..ServerConfig::default()
    };
    let _server = world.serve(config, hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    for i in 0..500 {
        assert_eq!(client.post("/x", "once").await.unwrap(), "200 x", "call {i}");
        sleep(Duration::from_millis(900 + i)).await;
    }
    assert!(world.memory.connections("stock") > 100);
}

/// The endpoint closes each connection shortly after its answer, without announcing it. Before, a call that was
/// sent in this interval was lost with its connection: every second one.
#[tokio::test(start_paused = true)]
async fn an_endpoint_that_closes_silently_after_each_answer_loses_one_call() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    tokio::spawn(async move {
        loop {
            let mut stream = listener.accept().await.unwrap();
            tokio::spawn(async move {
                answer(&mut stream, 200).await;
                sleep(Duration::from_millis(1)).await;
            });
        }
    });
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let mut lost = 0;
    for _ in 0..100 {
        lost += usize::from(client.post("/order", "once").await.is_err());
    }
    assert_eq!(lost, 1);
}

/// This does not apply to an endpoint that closes connections occasionally.
#[tokio::test(start_paused = true)]
async fn connections_are_kept_again_once_one_of_them_was_of_use() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    let client = leaf(&world, ClientConfig::default());
    let serving = async {
        // One connection that is closed under its second call, then one that stays.
        let mut stream = listener.accept().await.unwrap();
        answer(&mut stream, 200).await;
        let _ = stream.read(&mut [0; 1024]).await;
        drop(stream);
        let mut stream = listener.accept().await.unwrap();
        for _ in 0..10 {
            answer(&mut stream, 200).await;
        }
    };
    let calling = async {
        assert!(client.get("/x").await.is_ok());
        assert!(client.get("/x").await.is_err());
        assert!(client.get("/x").await.is_ok());
        sleep(SECOND).await;
        for _ in 0..9 {
            assert!(client.get("/x").await.is_ok());
        }
    };
    tokio::join!(serving, calling);
    assert_eq!(world.memory.connections("stock"), 2);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_before_the_server_does() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    client.get("/x").await.unwrap();
    sleep(49 * SECOND).await;
    assert_eq!(server.connections(), 1);
    sleep(25 * SECOND).await;
    assert_eq!(server.connections(), 0);
    assert_eq!(client.get("/x").await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn is_refused_at_once_and_recovers_by_itself() {
    let world = World::new();
    let client = leaf(&world, ClientConfig::default());
    client.leaf.wake();
    client.until(Connection::TransientFailure).await;
    let mut error = client.post("/x", "once").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectFailed, false));
    let back = error.take_unsent().expect("it never left");
    let _server = world.serve(ServerConfig::default(), hello());
    client.until(Connection::Ready).await;
    assert_eq!(read(client.leaf.call(back).await.unwrap()).await.unwrap(), "200 x");
}

#[tokio::test(start_paused = true)]
async fn a_failure_on_the_way_of_a_call_is_told() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), hello());
    let client = leaf(&world, ClientConfig::default()).ready().await;
    client.get("/x").await.unwrap();
    assert_eq!(server.drain(SECOND).await, 0);
    let error = client.get("/x").await.unwrap_err();
    assert_eq!(error.reason(), Reason::ConnectFailed);
    assert_eq!(client.link.connection(), Connection::TransientFailure);
}

#[tokio::test(start_paused = true)]
async fn gives_up_connecting_in_time() {
    let world = World::new();
    world.memory.faults("stock", |_| Fate::Hang);
    let client = leaf(&world, ClientConfig::default());
    let begun = Instant::now();
    let error = client.get("/x").await.unwrap_err();
    assert_eq!((error.reason(), begun.elapsed()), (Reason::ConnectFailed, SECOND));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_off_is_no_success() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
        }
    });
    let client = leaf(&world, ClientConfig::default());
    let error = client.get("/x").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::ConnectionLost, true));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_http_is_malformed() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    world.tasks.spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream.write_all(b"220 mail.example.org ESMTP\r\n\r\n").await.unwrap();
        }
    });
    let client = leaf(&world, ClientConfig::default());
    let error = client.post("/x", "once").await.unwrap_err();
    assert_eq!((error.reason(), error.maybe_executed()), (Reason::Malformed, true));
}

#[tokio::test(start_paused = true)]
async fn large_bodies_go_both_ways() {
    let world = World::new();
    let service = echo(|_, body| String::from_utf8_lossy(&body).into_owned());
    let _server = world.serve(ServerConfig::default(), service);
    let client = leaf(&world, ClientConfig::default()).ready().await;
    let large = "x".repeat(3_000_000);
    for _ in 0..3 {
        let reply = client.leaf.call(call(Method::POST, "/echo", Body::full(large.clone()))).await.unwrap();
        assert_eq!(read(reply).await.unwrap(), format!("200 {large}"));
    }
    assert_eq!(world.memory.connections("stock"), 1);
}

/// Nothing else closes it here: the server waits longer, and the pool's task is asleep.
#[tokio::test(start_paused = true)]
async fn a_connection_that_was_idle_for_too_long_is_not_taken() {
    for (idle, connections) in [(49, 1), (51, 2)] {
        let world = World::new();
        let server = world.serve(ServerConfig::default(), hello());
        let client = leaf(&world, ClientConfig::default());
        assert_eq!(client.get("/x").await.unwrap(), "200 x");
        sleep(idle * SECOND).await;
        assert_eq!(server.connections(), 1);
        assert_eq!(client.get("/y").await.unwrap(), "200 y");
        assert_eq!(world.memory.connections("stock"), connections, "{idle} s");
    }
}

/// Answers the next request.
async fn answer(stream: &mut Stream, status: u16) {
    assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0, "the client is still there");
    let words = format!("HTTP/1.1 {status} As Requested\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(words.as_bytes()).await.unwrap();
}

/// A client with `count` idle connections, and their other ends. The last one is used next.
async fn idle<const COUNT: usize>(world: &World) -> (Arc<Client<H1Leaf>>, MemoryListener, [Stream; COUNT]) {
    let mut listener = world.memory.listen("stock").unwrap();
    let client = Arc::new(leaf(world, ClientConfig::default()));
    let mut begun = Vec::new();
    for _ in 0..COUNT {
        let client = client.clone();
        let call = tokio::spawn(async move { client.get("/first").await.unwrap() });
        begun.push((call, listener.accept().await.unwrap()));
    }
    let mut streams = Vec::new();
    for (call, mut stream) in begun {
        answer(&mut stream, 200).await;
        call.await.unwrap();
        sleep(SECOND).await;
        streams.push(stream);
    }
    assert_eq!(world.memory.connections("stock"), COUNT as u64);
    (client, listener, streams.try_into().unwrap_or_else(|_| unreachable!("`COUNT` streams")))
}

/// Two of three are closed, so that a client which tries only one of them opens a new connection.
#[tokio::test(start_paused = true)]
async fn the_next_idle_connection_is_tried_where_one_turns_out_to_be_closed() {
    let world = World::new();
    let (client, _listener, [mut oldest, middle, newest]) = idle(&world).await;
    // The client has not noticed yet, so it tries this one.
    drop(newest);
    let mut calling = pin!(client.post("/order", "once"));
    assert!(poll_fn(|cx| Poll::Ready(calling.as_mut().poll(cx).is_pending())).await);
    // The client notices that this one is closed, but not yet that the next one is.
    yield_now().await;
    drop(middle);
    let called = async { tokio::join!(calling, answer(&mut oldest, 201)).0 };
    let called = timeout(SECOND, called).await.expect("the call goes to the oldest");
    assert_eq!(called.unwrap(), "201 ");
    assert_eq!(world.memory.connections("stock"), 3);
}

#[tokio::test(start_paused = true)]
async fn idle_connections_that_are_known_to_be_closed_are_passed_over() {
    let world = World::new();
    let (client, _listener, [mut oldest, middle, newest]) = idle(&world).await;
    drop((middle, newest));
    sleep(SECOND).await;
    let called = async { tokio::join!(client.post("/order", "once"), answer(&mut oldest, 201)).0 };
    let called = timeout(SECOND, called).await.expect("the call goes to the oldest");
    assert_eq!(called.unwrap(), "201 ");
    assert_eq!(world.memory.connections("stock"), 3);
}

#[tokio::test(start_paused = true)]
async fn a_new_connection_is_opened_once_all_idle_ones_turn_out_to_be_closed() {
    let world = World::new();
    let (client, mut listener, streams) = idle::<3>(&world).await;
    drop(streams);
    let called = timeout(SECOND, async {
        tokio::join!(client.post("/order", "once"), async {
            let mut new = listener.accept().await.unwrap();
            answer(&mut new, 201).await;
            new
        })
    });
    let (called, _new) = called.await.expect("a new connection is opened");
    assert_eq!(called.unwrap(), "201 ");
    assert_eq!(world.memory.connections("stock"), 4);
}

/// The cause of a repeated failure may be its connection, and all connections that were opened at that time.
#[tokio::test(start_paused = true)]
async fn a_retried_call_goes_to_a_new_connection_in_place_of_an_idle_one() {
    let world = World::new();
    let mut listener = world.memory.listen("stock").unwrap();
    let client = client_with(&world, ClientConfig { pool: 2.try_into().unwrap(), ..ClientConfig::default() });
    let begin = || {
        let client = client.clone();
        tokio::spawn(async move { client.get("/orders/1").send().await.unwrap().status().as_u16() })
    };
    let one = begin();
    let mut eldest = listener.accept().await.unwrap();
    sleep(SECOND).await;
    let two = begin();
    let mut youngest = listener.accept().await.unwrap();
    answer(&mut eldest, 200).await;
    assert_eq!(one.await.unwrap(), 200);
    answer(&mut youngest, 200).await;
    assert_eq!(two.await.unwrap(), 200);
    sleep(SECOND).await;
    // Both are idle. The call uses one of them, and is sent again.
    let three = begin();
    answer(&mut youngest, 503).await;
    let new = timeout(SECOND, listener.accept()).await;
    let mut new = new.expect("none of those that are idle is taken again").unwrap();
    // The pool has room for two.
    let closed = timeout(SECOND, eldest.read(&mut [0; 8])).await;
    assert_eq!(closed.expect("it made room").unwrap(), 0);
    answer(&mut new, 201).await;
    assert_eq!(three.await.unwrap(), 201);
}

#[tokio::test(start_paused = true)]
async fn one_silent_death_makes_the_others_suspect_that_were_idle_since_before() {
    let world = World::new();
    let (client, mut listener, [first, _second]) = idle(&world).await;
    assert!(timeout(SECOND, client.get("/dead")).await.is_err());
    let (received, _new) = tokio::join!(timeout(SECOND, client.get("/x")), async {
        let mut new = listener.accept().await.unwrap();
        answer(&mut new, 200).await;
        new
    });
    assert_eq!(received.expect("not on the other old one").unwrap(), "200 ");
    drop(first);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_spoke_since_is_not_suspect() {
    let world = World::new();
    let (client, _listener, [mut first, _second]) = idle(&world).await;
    let dead = timeout(SECOND, client.get("/dead"));
    let alive = async {
        sleep(SECOND / 2).await;
        let (received, ()) = tokio::join!(client.get("/x"), answer(&mut first, 200));
        received.unwrap();
    };
    let (dead, ()) = tokio::join!(dead, alive);
    assert!(dead.is_err());
    let (received, ()) = tokio::join!(client.get("/y"), answer(&mut first, 200));
    assert_eq!(received.unwrap(), "200 ");
    assert_eq!(world.memory.connections("stock"), 2);
}

/// A caller that cancels sooner than any answer takes gives no information about the connections.
#[tokio::test(start_paused = true)]
async fn an_impatient_caller_makes_nothing_suspect() {
    let world = World::new();
    let (client, _listener, [mut first, _second]) = idle(&world).await;
    assert!(timeout(Duration::from_millis(50), client.get("/soon")).await.is_err());
    let (received, ()) = tokio::join!(client.get("/x"), answer(&mut first, 200));
    assert_eq!(received.unwrap(), "200 ");
    assert_eq!(world.memory.connections("stock"), 2);
}
