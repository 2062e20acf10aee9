//! The chassis client calls grpcio: `tests/foreign/grpc_server.py`.
use std::time::Duration;

use chassis::{Channel, Chassis, Reason};
use chassis_protos::echo::{EchoReply, EchoRequest, echo_client::EchoClient};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request,
    metadata::{BinaryMetadataValue, MetadataMap},
};
use tonic_types::StatusExt;

use crate::{
    echo::says,
    ours,
    peer::{self, PATIENCE, Peer},
    trials::{NotRun, Ran},
};

trials! {
    unary
    server_stream
    client_stream
    bidi
    the_server_sees_the_deadline
    metadata
    the_server_sees_a_cancellation
    errors_with_details
    a_server_that_is_gone_never_saw_the_call
}

/// The server, and a caller.
struct World {
    app: Chassis,
    server: Peer,
}

/// Metadata that the server echoes in the head of an answer: text and bytes.
const ECHO: (&str, &str) = ("x-echo-text", "x-echo-raw-bin");
/// Metadata that it echoes in the trailers.
const TRAIL: (&str, &str) = ("x-trail-text", "x-trail-raw-bin");

impl World {
    async fn new() -> Result<Self, NotRun> {
        let (server, address) = peer::grpcio_server().await?;
        let app = ours::caller(&address, json!({ "outbound": { "defaults": { "timeout": "30s" } } })).await;
        Ok(World { app, server })
    }

    fn stub(&self) -> EchoClient<Channel> {
        EchoClient::new(self.app.grpc("peer"))
    }
}

/// A request whose answer comes after every deadline.
fn slow() -> EchoRequest {
    EchoRequest { delay_ms: 60_000, ..says("slow") }
}

/// A request for more replies than any test reads.
fn endless() -> EchoRequest {
    EchoRequest { repeat: 1_000_000, payload: every_byte(), ..says("") }
}

fn every_byte() -> Vec<u8> {
    (0..=255).collect()
}

async fn unary() -> Ran {
    let world = World::new().await?;
    let request = EchoRequest { payload: every_byte(), ..says("grüß dich") };
    let reply = world.stub().call(request.clone()).await.unwrap().into_inner();
    assert_eq!(
        (reply.message, reply.payload, reply.instance),
        (request.message, request.payload, "python".into())
    );
    let payload = every_byte().repeat(4096); // 1 MiB: many frames, and more than a window
    let reply = world.stub().safe(EchoRequest { payload: payload.clone(), ..says("") }).await.unwrap();
    assert!(reply.into_inner().payload == payload);
    Ok(())
}

async fn server_stream() -> Ran {
    let world = World::new().await?;
    let request = EchoRequest { repeat: 100, ..says("again") };
    let mut replies = world.stub().download(request).await.unwrap().into_inner();
    for count in 1..=100 {
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!((reply.count, reply.message.as_str()), (count, "again"));
    }
    assert!(replies.message().await.unwrap().is_none());
    let mut replies = world.stub().download(says("none")).await.unwrap().into_inner();
    assert!(replies.message().await.unwrap().is_none());
    Ok(())
}

async fn client_stream() -> Ran {
    let world = World::new().await?;
    let requests = (0..100).map(|n| EchoRequest { payload: every_byte(), ..says(&(n % 10).to_string()) });
    let reply = world.stub().upload(tokio_stream::iter(requests)).await.unwrap().into_inner();
    assert_eq!((reply.count, reply.message), (100, "0123456789".repeat(10)));
    assert!(reply.payload == every_byte().repeat(100));
    let reply = world.stub().upload(tokio_stream::empty()).await.unwrap().into_inner();
    assert_eq!(reply.count, 0);
    Ok(())
}

async fn bidi() -> Ran {
    let world = World::new().await?;
    let (send, requests) = mpsc::channel(1);
    let mut replies = world.stub().chat(ReceiverStream::new(requests)).await.unwrap().into_inner();
    for count in 1..=50 {
        send.send(says(&format!("line {count}"))).await.unwrap();
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!((reply.count, reply.message), (count, format!("line {count}")));
    }
    drop(send);
    assert!(replies.message().await.unwrap().is_none());
    Ok(())
}

async fn the_server_sees_the_deadline() -> Ran {
    let mut world = World::new().await?;
    let mut request = Request::new(says(""));
    request.set_timeout(Duration::from_secs(5));
    let remaining = world.stub().call(request).await.unwrap().into_inner().remaining_ms;
    assert!((1..=5000).contains(&remaining), "{remaining} ms");

    let mut request = Request::new(slow());
    request.set_timeout(Duration::from_millis(300));
    assert_eq!(world.stub().call(request).await.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(world.server.line().await, "cancelled Call");

    // It covers a stream to its end.
    let mut request = Request::new(endless());
    request.set_timeout(Duration::from_millis(300));
    let mut replies = world.stub().download(request).await.unwrap().into_inner();
    let status = loop {
        match replies.message().await {
            Ok(reply) => assert!(reply.is_some()),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert_eq!(world.server.line().await, "cancelled Download");
    Ok(())
}

async fn metadata() -> Ran {
    let world = World::new().await?;
    for (path, repeat) in [("/chassis.test.v1.Echo/Call", 1), ("/chassis.test.v1.Echo/Download", 3)] {
        let mut request = Request::new(EchoRequest { repeat, ..says("") });
        let sent = request.metadata_mut();
        for (text_key, raw_key) in [ECHO, TRAIL] {
            for text in ["one", "two"] {
                sent.append(text_key, text.parse().unwrap());
            }
            for bytes in [&every_byte()[..], b"", b"\xff"] {
                sent.append_bin(raw_key, BinaryMetadataValue::from_bytes(bytes));
            }
        }
        let sent = sent.clone();
        let answer = ours::call::<_, EchoReply>(world.app.grpc("peer"), path, request).await;
        assert_eq!(answer.replies.len(), repeat as usize);
        let (head, trailers) = (&answer.head, &answer.trailers);
        for (keys, came, other) in [(ECHO, head, trailers), (TRAIL, trailers, head)] {
            assert_eq!(values(came, keys), values(&sent, keys), "{path} {keys:?}");
            assert_eq!(values(other, keys), (vec![], vec![]), "{path} {keys:?}");
        }
    }
    Ok(())
}

/// The text and the bytes under these names, in order.
fn values(metadata: &MetadataMap, keys: (&str, &str)) -> (Vec<String>, Vec<Vec<u8>>) {
    let (text, bytes) = (metadata.get_all(keys.0), metadata.get_all_bin(keys.1));
    let text = text.iter().map(|value| value.to_str().unwrap().to_owned());
    (text.collect(), bytes.iter().map(|value| value.to_bytes().unwrap().to_vec()).collect())
}

async fn the_server_sees_a_cancellation() -> Ran {
    let mut world = World::new().await?;
    world.stub().call(says("connect")).await.unwrap();
    timeout(Duration::from_millis(100), world.stub().call(slow())).await.unwrap_err();
    assert_eq!(world.server.line().await, "cancelled Call");

    let mut replies = world.stub().download(endless()).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap().unwrap().count, 1);
    drop(replies);
    assert_eq!(world.server.line().await, "cancelled Download");

    let (send, requests) = mpsc::channel(1);
    let mut replies = world.stub().chat(ReceiverStream::new(requests)).await.unwrap().into_inner();
    send.send(says("hello")).await.unwrap();
    assert_eq!(replies.message().await.unwrap().unwrap().message, "hello");
    drop(replies);
    timeout(PATIENCE, send.closed()).await.unwrap();
    world.stub().call(says("the connection outlives it all")).await.unwrap();
    Ok(())
}

async fn errors_with_details() -> Ran {
    let world = World::new().await?;
    let message = "déjà vu: 100 %\t☂\n";
    for code in (1..=16).map(Code::from_i32) {
        let fail_code = i32::from(code).try_into().unwrap();
        let request = EchoRequest { fail_code, fail_message: message.to_owned(), ..says("") };
        let status = world.stub().call(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.domain, "python", "{code:?}");
        assert!(chassis::grpc::error(&status).is_none(), "no chassis said so");
    }

    let request = EchoRequest { repeat: 2, fail_code: 5, fail_message: "no more".into(), ..says("") };
    let mut replies = world.stub().download(request).await.unwrap().into_inner();
    for count in [1, 2] {
        assert_eq!(replies.message().await.unwrap().unwrap().count, count);
    }
    let status = replies.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no more"));
    assert_eq!(status.get_details_error_info().unwrap().reason, "NOT_FOUND");
    Ok(())
}

async fn a_server_that_is_gone_never_saw_the_call() -> Ran {
    let world = World::new().await?;
    let World { app, server } = world;
    let mut stub = EchoClient::new(app.grpc("peer"));
    stub.call(says("connect")).await.unwrap();
    drop(server);
    // The first call may have been in flight when the server was killed; after it connecting fails.
    let _ = stub.call(says("")).await;
    let status = stub.call(says("")).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    let error = chassis::grpc::error(&status).unwrap();
    assert!(!error.maybe_executed(), "{error:?}");
    assert!(matches!(error.reason(), Reason::NoEndpoint | Reason::ConnectFailed), "{error:?}");
    Ok(())
}
