//! The chassis client calls grpc-go's interop server: the fourteen cases of gRPC's
//! `doc/interop-test-descriptions.md`, and many deadlines that both sides enforce.
use std::{collections::BTreeMap, time::Duration};

use chassis::{Channel, Chassis};
use chassis_protos::interop::{
    EchoStatus, Empty, PayloadType, ResponseParameters, SimpleRequest, SimpleResponse,
    StreamingInputCallRequest, StreamingOutputCallRequest, StreamingOutputCallResponse,
    test_service_client::TestServiceClient, unimplemented_service_client::UnimplementedServiceClient,
};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Status,
    metadata::{BinaryMetadataValue, MetadataMap, MetadataValue},
};

use crate::{
    interop::{INITIAL, TRAILING, zeros},
    ours::{self, Parts, counted},
    peer::{self, Peer},
    trials::{NotRun, Ran},
};

trials! {
    empty_unary
    large_unary
    client_streaming
    server_streaming
    ping_pong
    empty_stream
    cancel_after_begin
    cancel_after_first_response
    timeout_on_sleeping_server
    timeouts_that_the_server_notices_first
    timeouts_that_the_server_notices_first_open_the_circuit
    status_code_and_message
    special_status_message
    custom_metadata
    unimplemented_method
    unimplemented_service
}

/// The server, and a caller.
struct World {
    app: Chassis,
    _server: Peer,
}

const REQUEST_SIZES: [i32; 4] = [27182, 8, 1828, 45904];
const REPLY_SIZES: [i32; 4] = [31415, 9, 2653, 58979];
const SPECIAL_MESSAGE: &str = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
const INITIAL_VALUE: &str = "test_initial_metadata_value";
const TRAILING_VALUE: &[u8] = b"\xab\xab\xab";

impl World {
    async fn new() -> Result<Self, NotRun> {
        Self::with(json!({})).await
    }

    async fn with(settings: Value) -> Result<Self, NotRun> {
        let (_server, address) = peer::go_server().await?;
        let app = ours::caller(&address, settings).await;
        Ok(World { app, _server })
    }

    fn stub(&self) -> TestServiceClient<Channel> {
        TestServiceClient::new(self.app.grpc("peer"))
    }

    /// The number of calls that ended with `code`, in the metrics, once no call is in flight.
    fn ended_with(&self, code: &str) -> u64 {
        let nodes = self.app.runtime().inspect().services.into_iter().flat_map(|service| service.nodes);
        assert_eq!(nodes.map(|node| node.in_flight).sum::<u32>(), 0, "calls under way");
        counted(self.app.runtime(), "rpc_client_call_duration_seconds", &[("rpc_status_code", code)])
    }
}

/// A request for replies of these sizes.
fn wants(sizes: &[i32]) -> StreamingOutputCallRequest {
    let response_parameters =
        sizes.iter().map(|&size| ResponseParameters { size, ..ResponseParameters::default() }).collect();
    StreamingOutputCallRequest { response_parameters, ..StreamingOutputCallRequest::default() }
}

/// The status that the server is asked to answer with.
fn status(message: &str) -> Option<EchoStatus> {
    Some(EchoStatus { code: Code::Unknown.into(), message: message.to_owned() })
}

#[track_caller]
fn check_reply(reply: Option<StreamingOutputCallResponse>, size: i32) {
    let payload = reply.unwrap().payload.unwrap();
    assert_eq!((payload.r#type(), payload.body.len()), (PayloadType::Compressable, size as usize));
}

#[track_caller]
fn check_status(status: &Status, code: Code, message: &str) {
    assert_eq!((status.code(), status.message()), (code, message));
}

async fn empty_unary() -> Ran {
    let world = World::new().await?;
    assert_eq!(world.stub().empty_call(Empty {}).await.unwrap().into_inner(), Empty {});
    Ok(())
}

async fn large_unary() -> Ran {
    let world = World::new().await?;
    let request = SimpleRequest { response_size: 314159, payload: zeros(271828), ..SimpleRequest::default() };
    let payload = world.stub().unary_call(request).await.unwrap().into_inner().payload.unwrap();
    assert_eq!((payload.r#type(), payload.body), (PayloadType::Compressable, vec![0; 314159]));
    Ok(())
}

async fn client_streaming() -> Ran {
    let world = World::new().await?;
    let request = |size| StreamingInputCallRequest { payload: zeros(size), expect_compressed: None };
    let reply = world.stub().streaming_input_call(tokio_stream::iter(REQUEST_SIZES.map(request))).await;
    assert_eq!(reply.unwrap().into_inner().aggregated_payload_size, 74922);
    Ok(())
}

async fn server_streaming() -> Ran {
    let world = World::new().await?;
    let mut replies = world.stub().streaming_output_call(wants(&REPLY_SIZES)).await.unwrap().into_inner();
    for size in REPLY_SIZES {
        check_reply(replies.message().await.unwrap(), size);
    }
    assert_eq!(replies.message().await.unwrap(), None, "exactly four");
    Ok(())
}

async fn ping_pong() -> Ran {
    let world = World::new().await?;
    let (send, requests) = mpsc::channel(1);
    let mut turns = REQUEST_SIZES.into_iter().zip(REPLY_SIZES);
    let mut request = || {
        let (size, reply_size) = turns.next()?;
        Some(StreamingOutputCallRequest { payload: zeros(size), ..wants(&[reply_size]) })
    };
    send.send(request().unwrap()).await.unwrap(); // the server's head comes with its first reply
    let mut replies =
        world.stub().full_duplex_call(ReceiverStream::new(requests)).await.unwrap().into_inner();
    for reply_size in REPLY_SIZES {
        check_reply(replies.message().await.unwrap(), reply_size);
        if let Some(next) = request() {
            send.send(next).await.unwrap();
        }
    }
    drop(send);
    assert_eq!(replies.message().await.unwrap(), None, "exactly four");
    Ok(())
}

async fn empty_stream() -> Ran {
    let world = World::new().await?;
    let mut replies = world.stub().full_duplex_call(tokio_stream::empty()).await.unwrap().into_inner();
    assert_eq!(replies.message().await.unwrap(), None);
    Ok(())
}

async fn cancel_after_begin() -> Ran {
    let world = World::new().await?;
    world.stub().empty_call(Empty {}).await.unwrap(); // so that the next call is sent at once
    let (send, requests) = mpsc::channel(1);
    let mut stub = world.stub();
    let call = stub.streaming_input_call(ReceiverStream::new(requests));
    // The server waits for the end of the requests: so this cancels once the call has arrived.
    timeout(Duration::from_millis(100), call).await.unwrap_err();
    send.closed().await;
    assert_eq!(world.ended_with("CANCELLED"), 1);
    world.stub().empty_call(Empty {}).await.unwrap();
    Ok(())
}

async fn cancel_after_first_response() -> Ran {
    let world = World::new().await?;
    let (send, requests) = mpsc::channel(1);
    send.send(StreamingOutputCallRequest { payload: zeros(27182), ..wants(&[31415]) }).await.unwrap();
    let mut replies =
        world.stub().full_duplex_call(ReceiverStream::new(requests)).await.unwrap().into_inner();
    check_reply(replies.message().await.unwrap(), 31415);
    drop(replies);
    send.closed().await;
    assert_eq!(world.ended_with("CANCELLED"), 1);
    world.stub().empty_call(Empty {}).await.unwrap();
    Ok(())
}

async fn timeout_on_sleeping_server() -> Ran {
    let world = World::new().await?;
    let (send, requests) = mpsc::channel(1);
    send.send(StreamingOutputCallRequest { payload: zeros(27182), ..wants(&[]) }).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(requests));
    request.set_timeout(Duration::from_millis(1));
    // With or without a head: the call may not have reached the server yet.
    let status = match world.stub().full_duplex_call(request).await {
        Ok(replies) => replies.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    send.closed().await;
    Ok(())
}

/// grpc-go ends a call at the same deadline, with a reset that may arrive before the local timer has fired.
/// Up to 100 ms `grpc-timeout` is sent in nanoseconds, above in microseconds.
async fn timeouts_that_the_server_notices_first() -> Ran {
    let world = World::with(json!({ "outbound": { "defaults": { "breaker": "off" } } })).await?;
    world.stub().empty_call(Empty {}).await.unwrap(); // so that the next call is sent at once
    let mut codes = BTreeMap::new();
    for millis in (5..50).step_by(3).chain((101..146).step_by(3)) {
        let one = timed_out(world.stub(), millis, &[]);
        let two = timed_out(world.stub(), millis, &[1]);
        let (one, two) = tokio::join!(one, two);
        for code in [one, two] {
            *codes.entry(format!("{code:?}")).or_insert(0) += 1;
        }
    }
    assert_eq!(codes, BTreeMap::from([("DeadlineExceeded".to_owned(), 60)]));
    assert_eq!(world.ended_with("DEADLINE_EXCEEDED"), 60);
    Ok(())
}

/// The circuit of a server that is too slow opens, no matter which side notices the deadline first.
async fn timeouts_that_the_server_notices_first_open_the_circuit() -> Ran {
    let world = World::new().await?;
    world.stub().empty_call(Empty {}).await.unwrap(); // waiting for a connection is no failure of the server
    let mut late = 0;
    loop {
        match timed_out(world.stub(), 20, &[]).await {
            Code::DeadlineExceeded => late += 1,
            code => break assert_eq!(code, Code::Unavailable, "after {late} that were late"),
        }
        assert!(late < 100, "the circuit is still closed");
    }
    assert!(late >= 19, "{late}, and one that went well, are fewer than `min_calls`");
    Ok(())
}

/// The code of a call that the server answers with `sizes` at once, and with another reply in a minute.
async fn timed_out(mut stub: TestServiceClient<Channel>, millis: u64, sizes: &[i32]) -> Code {
    let late = ResponseParameters { size: 1, interval_us: 60_000_000, ..ResponseParameters::default() };
    let mut wanted = wants(sizes);
    wanted.response_parameters.push(late);
    let mut request = Request::new(wanted);
    request.set_timeout(Duration::from_millis(millis));
    let mut replies = match stub.streaming_output_call(request).await {
        Ok(replies) => replies.into_inner(),
        Err(status) => return status.code(),
    };
    loop {
        if let Err(status) = replies.message().await.map(|reply| reply.unwrap()) {
            return status.code();
        }
    }
}

async fn status_code_and_message() -> Ran {
    let world = World::new().await?;
    let message = "test status message";
    let request = SimpleRequest { response_status: status(message), ..SimpleRequest::default() };
    check_status(&world.stub().unary_call(request).await.unwrap_err(), Code::Unknown, message);

    let request = StreamingOutputCallRequest { response_status: status(message), ..wants(&[]) };
    let status = match world.stub().full_duplex_call(tokio_stream::once(request)).await {
        Ok(replies) => replies.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    check_status(&status, Code::Unknown, message);
    Ok(())
}

async fn special_status_message() -> Ran {
    let world = World::new().await?;
    let request = SimpleRequest { response_status: status(SPECIAL_MESSAGE), ..SimpleRequest::default() };
    check_status(&world.stub().unary_call(request).await.unwrap_err(), Code::Unknown, SPECIAL_MESSAGE);
    Ok(())
}

async fn custom_metadata() -> Ran {
    let world = World::new().await?;
    let request = SimpleRequest { response_size: 1, payload: zeros(1), ..SimpleRequest::default() };
    let path = "/grpc.testing.TestService/UnaryCall";
    check_echoes(ours::call::<_, SimpleResponse>(world.app.grpc("peer"), path, with_metadata(request)).await);

    let request = StreamingOutputCallRequest { payload: zeros(1), ..wants(&[1]) };
    let path = "/grpc.testing.TestService/FullDuplexCall";
    let replies =
        ours::call::<_, StreamingOutputCallResponse>(world.app.grpc("peer"), path, with_metadata(request));
    check_echoes(replies.await);
    Ok(())
}

fn with_metadata<T>(request: T) -> Request<T> {
    let mut request = Request::new(request);
    request.metadata_mut().insert(INITIAL, MetadataValue::from_static(INITIAL_VALUE));
    request.metadata_mut().insert_bin(TRAILING, BinaryMetadataValue::from_bytes(TRAILING_VALUE));
    request
}

#[track_caller]
fn check_echoes<R>(answer: Parts<R>) {
    assert_eq!(answer.head.get_all(INITIAL).iter().collect::<Vec<_>>(), [INITIAL_VALUE]);
    let trailing = |metadata: &MetadataMap| -> Vec<_> {
        metadata.get_all_bin(TRAILING).iter().map(|value| value.to_bytes().unwrap()).collect()
    };
    assert_eq!(trailing(&answer.trailers), [TRAILING_VALUE]);
    assert!(trailing(&answer.head).is_empty() && answer.trailers.get(INITIAL).is_none());
    assert_eq!(answer.replies.len(), 1);
}

async fn unimplemented_method() -> Ran {
    let world = World::new().await?;
    let status = world.stub().unimplemented_call(Empty {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    Ok(())
}

async fn unimplemented_service() -> Ran {
    let world = World::new().await?;
    let mut stub = UnimplementedServiceClient::new(world.app.grpc("peer"));
    let status = stub.unimplemented_call(Empty {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented, "{status:?}");
    Ok(())
}
