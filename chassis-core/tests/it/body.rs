//! Bodies pass unchanged: chunks in order, trailers at the end, nothing added, nothing lost.
use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use chassis_core::{
    Body, Error, Invocation, Reason, Replay, Stage, Stages,
    testing::{Answer, Feed, STATUS, Upstream, feed},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Body as _;
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use proptest::prelude::*;
use serde_json::json;

use crate::support::*;

#[tokio::test(start_paused = true)]
async fn both_directions_stream_at_once() {
    // An echo: each chunk returns before the next one is sent.
    for attempts in [1, 2] {
        let (up, request) = feed();
        let mut stages = Stages::default();
        stages.add_fn(Stage::Node, "echo", None, |mut call: Invocation, _| async {
            let request = std::mem::take(&mut call.body);
            Ok(call.answered(http::StatusCode::OK, HeaderMap::new(), request))
        });
        let bench = Bench::build(Upstream::new(|_| Answer::hang()), |builder| builder.stages(stages));
        bench.registry.put("stock", ["a"]);
        bench.stock(json!({ "retry": { "attempts": attempts } }));
        let reply = bench.send(post().streaming(request)).await.unwrap();
        let mut down = reply.into_body();
        for chunk in ["one", "two", "three"] {
            up.send(chunk);
            assert_eq!(frame(&mut down).await.unwrap().unwrap().unwrap(), chunk);
        }
        let trailers = HeaderMap::from_iter([(STATUS, HeaderValue::from(0u16))]);
        up.end_with(trailers.clone());
        assert_eq!(frame(&mut down).await.unwrap().unwrap().unwrap_err(), trailers);
        assert!(frame(&mut down).await.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_without_a_reader_ends_the_request_too() {
    let (up, request) = feed();
    let (request, abort) = Body::stream(request, |e| e).abortable();
    let mut call = post().build();
    call.set_request_abort(abort.unwrap());
    let pipe = tokio::spawn(drain(request));
    up.send("one");
    settle().await;
    let (_down, body) = feed();
    let reply = call.answered(http::StatusCode::OK, HeaderMap::new(), body);
    assert!(!up.is_closed());
    drop(reply);
    settle().await;
    assert!(up.is_closed());
    assert_eq!(pipe.await.unwrap().unwrap_err().reason(), Reason::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn what_is_ready_is_taken_and_the_rest_follows() {
    // Chunks that are available, then a wait, then more: in all ways a body can be read.
    for ready in 0..4 {
        for eager in [true, false] {
            let (fed, body) = feed();
            let chunks = ["a", "b", "c", "d"];
            chunks[..ready].iter().for_each(|chunk| assert!(fed.send(*chunk)));
            let mut body = match eager {
                true => Body::eager(body, |e| e),
                false => Body::stream(body, |e| e),
            };
            body.prefetch();
            chunks[ready..].iter().for_each(|chunk| assert!(fed.send(*chunk)));
            fed.end_with(HeaderMap::from_iter([(STATUS, HeaderValue::from(3u16))]));
            let (bytes, trailers) = drain(body).await.unwrap();
            assert_eq!((&bytes[..], &trailers.unwrap()[STATUS]), (&b"abcd"[..], &HeaderValue::from(3u16)));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_known_size_stays_exact() {
    let sized = || Full::new(Bytes::from_static(b"0123456789")).map_err(|never| match never {});
    let mut body = Body::stream(sized(), |e: Error| e);
    assert_eq!(body.size_hint().exact(), Some(10));
    body.prefetch(); // counts each chunk once
    assert_eq!(body.size_hint().exact(), Some(10));
    let replay = Replay::new(Body::stream(sized(), |e: Error| e), 1_000);
    let (attempt, _) = replay.attempt().unwrap();
    assert_eq!(attempt.size_hint().exact(), Some(10));
    drop(attempt);
    assert_eq!(replay.attempt().unwrap().0.size_hint().exact(), Some(10));
    let (_fed, unsized_body) = feed();
    assert_eq!(unsized_body.size_hint().exact(), None);
}

/// Reads one frame that is available.
fn now(body: &mut Body) -> Option<Bytes> {
    match Pin::new(body).poll_frame(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(frame) => frame.map(|frame| frame.unwrap().into_data().unwrap()),
        Poll::Pending => None,
    }
}

/// Reads all frames that are available.
fn all_now(body: &mut Body) -> Vec<Bytes> {
    std::iter::from_fn(|| now(body)).collect()
}

#[tokio::test(start_paused = true)]
async fn attempts_read_one_body_one_after_another_up_to_the_cap() {
    let (fed, body) = feed();
    let replay = Replay::new(body, 6);
    let (mut first, reader) = replay.attempt().unwrap();
    fed.send("abc");
    assert_eq!(all_now(&mut first), ["abc"]);
    assert!(replay.abandon(reader));
    let error = drain(first).await.unwrap_err();
    assert_eq!(error.message(), "the attempt is over", "also where a transport still holds it");
    let (mut second, reader) = replay.attempt().unwrap();
    fed.send("def");
    assert_eq!(all_now(&mut second), ["abc", "def"]);
    assert!(replay.abandon(reader));
    drop(second);
    let (mut third, reader) = replay.attempt().unwrap();
    assert_eq!(all_now(&mut third), ["abc", "def"]);
    fed.send("g");
    assert_eq!(all_now(&mut third), ["g"]); // one byte too many to keep, but the body continues
    fed.send("h");
    assert_eq!(all_now(&mut third), ["h"]);
    assert!(!replay.is_possible() && !replay.abandon(reader) && replay.attempt().is_none());
    fed.send("i");
    assert_eq!(all_now(&mut third), ["i"], "an attempt that none can follow is not cut off");
    drop(third);
    assert!(!fed.send("j"), "what can't be sent again is not kept");
}

#[tokio::test(start_paused = true)]
async fn attempts_read_one_body_at_the_same_time() {
    let (fed, body) = feed();
    let replay = Replay::new(body, 100);
    let read = |body: Body| tokio::spawn(drain(body));
    fed.send("a");
    let one = read(replay.attempt().unwrap().0);
    settle().await;
    let two = read(replay.attempt().unwrap().0);
    // It polled last and is dropped: the readers that polled before are still woken.
    let three = read(replay.attempt().unwrap().0);
    settle().await;
    three.abort();
    settle().await;
    // This one polled once and polls no more, like a transport without room to send.
    let mut four = replay.attempt().unwrap().0;
    assert_eq!(all_now(&mut four), ["a"]);
    fed.send("b");
    drop(fed);
    for read in [one, two] {
        assert_eq!(read.await.unwrap().unwrap().0, b"ab");
    }
    assert_eq!(all_now(&mut four), ["b"]);
}

/// As in gRFC A6: where the body exceeds the replay limit, the attempt that is ahead continues.
#[tokio::test(start_paused = true)]
async fn above_the_cap_the_attempt_that_is_ahead_goes_on_alone() {
    let (fed, body) = feed();
    let replay = Replay::new(body, 3);
    let (mut ahead, mut behind) = (replay.attempt().unwrap().0, replay.attempt().unwrap().0);
    fed.send("ab");
    assert_eq!(all_now(&mut ahead), ["ab"]);
    fed.send("cd");
    assert_eq!(all_now(&mut ahead), ["cd"]);
    assert!(poll_fn(|cx| Pin::new(&mut behind).poll_frame(cx)).await.unwrap().is_err());
    drop(fed);
    assert_eq!(drain(ahead).await.unwrap().0, b"");
}

#[tokio::test(start_paused = true)]
async fn what_was_kept_is_freed_as_soon_as_an_attempt_has_won() {
    let (fed, body) = feed();
    let replay = Replay::new(body, 100);
    let (mut lost, (mut won, winner)) = (replay.attempt().unwrap().0, replay.attempt().unwrap());
    let chunks: Vec<_> = ["a", "b", "c"]
        .map(|text| {
            let (chunk, weak) = watched(text);
            fed.send(chunk);
            weak
        })
        .into();
    let alive = || chunks.iter().filter(|chunk| chunk.strong_count() > 0).count();
    assert_eq!(all_now(&mut lost).len(), 3);
    assert_eq!(now(&mut won).unwrap(), "a");
    assert_eq!(alive(), 3, "for further attempts");
    replay.commit(winner);
    assert_eq!(alive(), 2, "what the winner has not read yet");
    assert!(poll_fn(|cx| Pin::new(&mut lost).poll_frame(cx)).await.unwrap().is_err());
    assert_eq!(now(&mut won).unwrap(), "b");
    assert_eq!(alive(), 1);
    fed.send("d");
    assert_eq!(all_now(&mut won), ["c", "d"]);
    assert_eq!(alive(), 0);
    drop((lost, won));
    assert!(fed.is_closed());
}

/// A body holds the waker of its reader: that waker must not hold the body in turn.
#[tokio::test(start_paused = true)]
async fn a_body_that_no_attempt_wants_any_more_is_dropped() {
    for wins in [true, false] {
        let (fed, body) = feed();
        let replay = Replay::new(body, 100);
        let (body, reader) = replay.attempt().unwrap();
        let reading = tokio::spawn(drain(body));
        settle().await;
        match wins {
            true => replay.commit(reader),
            false => drop(replay),
        }
        settle().await;
        assert_eq!(fed.is_closed(), !wins, "without a winner all attempts are over");
        reading.abort();
        settle().await;
        assert!(fed.is_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_repeats_trailers_and_the_end() {
    let (fed, body) = feed();
    fed.send("a");
    fed.end_with(HeaderMap::from_iter([(STATUS, HeaderValue::from(0u16))]));
    let replay = Replay::new(body, 100);
    for _ in 0..3 {
        let (bytes, trailers) = drain(replay.attempt().unwrap().0).await.unwrap();
        assert_eq!((&bytes[..], trailers.unwrap().len()), (&b"a"[..], 1));
    }
    // Half of the replay limit, then all of it, at the end.
    let mut half = replay.attempt().unwrap().0;
    now(&mut half);
    drop(half);
    assert_eq!(drain(replay.attempt().unwrap().0).await.unwrap().0, b"a");
}

#[tokio::test(start_paused = true)]
async fn a_broken_body_cannot_be_replayed() {
    let (fed, body) = feed();
    fed.send("a");
    fed.fail(Error::remote(Reason::ConnectionLost, "reset"));
    let replay = Replay::new(body, 100);
    let beside = replay.attempt().unwrap().0;
    for body in [replay.attempt().unwrap().0, beside] {
        assert_eq!(drain(body).await.unwrap_err().reason(), Reason::ConnectionLost);
    }
    assert!(!replay.is_possible() && replay.attempt().is_none());
}

fn headers() -> impl Strategy<Value = HeaderMap> {
    let name = "x-[a-z]{1,8}(-bin)?";
    let value = proptest::collection::vec(prop_oneof![Just(b'\t'), 32u8..=126, 128u8..=255], 0..24);
    proptest::collection::vec((name, value), 0..12).prop_map(|all| {
        let mut headers = HeaderMap::new();
        for (name, value) in all {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(&value).unwrap()); // names repeat
        }
        headers
    })
}

/// Every name with its values, in the order of arrival.
fn listed(headers: &HeaderMap) -> Vec<(String, Vec<Vec<u8>>)> {
    let mut all: Vec<_> = headers
        .keys()
        .filter(|name| name.as_str() != STATUS.as_str() && name.as_str() != "x-chassis-caller")
        .filter(|name| !matches!(name.as_str(), "x-request-timeout-ms" | "x-chassis-attempt"))
        .map(|n| (n.to_string(), headers.get_all(n).iter().map(|v| v.as_bytes().to_vec()).collect()))
        .collect();
    all.sort();
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Request and answer, with and without a retry: headers repeated and binary, chunks, trailers.
    #[test]
    fn nothing_is_lost_on_the_way(
        metadata in headers(),
        trailers in headers(),
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..64), 0..8),
        ready in any::<bool>(),
        fail_first in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (back, behind, parts) = (metadata.clone(), trailers.clone(), chunks.clone());
            let bench = Bench::new(move |arrival| {
                if fail_first && arrival.nth == 0 {
                    return Answer::lost();
                }
                let frames = parts.iter().map(|chunk| Frame::data(Bytes::from(chunk.clone())));
                let stream = Frames(frames.chain([Frame::trailers(behind.clone())]).collect());
                let body = if ready { Body::eager(stream, |e| e) } else { Body::stream(stream, |e| e) };
                let mut answer = Answer::streaming(body);
                for (name, value) in &back {
                    answer = answer.with(name.clone(), value.clone());
                }
                answer
            });
            let (fed, request): (Feed, Body) = feed();
            chunks.iter().for_each(|chunk| assert!(fed.send(chunk.clone())));
            drop(fed);
            let mut call = get().streaming(request).build();
            call.metadata = metadata.clone();
            let reply = tower_service::Service::call(&mut bench.pipeline.clone(), call).await.unwrap();
            let answered = read(reply).await.unwrap();
            let sent: Vec<u8> = chunks.concat();
            let arrived = bench.upstream.last();
            assert_eq!(listed(&arrived.metadata), listed(&metadata));
            assert_eq!(arrived.body, sent);
            assert_eq!(listed(&answered.metadata), listed(&metadata));
            assert_eq!(listed(&answered.trailers.unwrap()), listed(&trailers));
            assert_eq!(answered.body, sent);
        });
    }
}

/// A stream of frames that are all available.
struct Frames(VecDeque<Frame<Bytes>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}
