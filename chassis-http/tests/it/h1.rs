//! The HTTP/1.1 pool: reuse, bounds, and what becomes of connections that are closed over there.
use std::{sync::Arc, time::Duration};

use chassis_core::{Reason, call::Body, cluster::Connection, protocol::Leaf, units::PositiveSpan};
use chassis_http::{
    ClientConfig, H1Leaf, ServerConfig,
    connector::{Fate, Listener},
    server::{Answer, Received, ServerBody},
};
use http::{Method, Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep},
};

use crate::support::{Client, SECOND, World, call, echo, hello, read};

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
