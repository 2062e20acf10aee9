//! Peers that send frames that cause work and are no calls: each is cut off, with a reason.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use chassis_core::{Connection, Reason, Runtime, protocol::Leaf};
use chassis_http::{
    ClientConfig, H2Leaf, ServerConfig,
    connector::{Connector, Network, Stream},
    server::{Answer, HttpService, Mux, Received, Server, ServerBody},
};
use http::{Request, Response};
use tokio::{
    io::{AsyncWriteExt, split},
    time::{Instant, timeout},
};

use crate::{
    raw::{
        ACK, CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, GOAWAY, HEADERS, PING, PRIORITY,
        RESET, SETTINGS, WINDOW_UPDATE, frame, goodbye, open, receive, settings, stream,
    },
    support::{SECOND, World},
};

const ENHANCE_YOUR_CALM: u32 = 11;

/// A server on loopback, and its counters.
struct Victim {
    runtime: Runtime,
    _server: Server,
    network: Network,
    address: String,
}

impl Victim {
    async fn new(service: impl HttpService) -> Self {
        let runtime = Runtime::builder("victim").build().unwrap();
        let server = Server::new(ServerConfig::default(), runtime.tasks(), runtime.random().clone());
        let server = server.metrics(runtime.metrics().clone());
        let network = Network::default();
        let listener = network.bind("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        server.serve("http", listener, Mux { http: Some(Arc::new(service)), grpc: None }, None);
        Victim { runtime, _server: server, network, address }
    }

    async fn connect(&self) -> Stream {
        let mut stream = self.network.connect(&self.address).await.unwrap();
        open(&mut stream, &[]).await;
        stream
    }

    /// Sends `pieces` until all are sent or the connection is over; returns the code of its GOAWAY.
    async fn send(&self, pieces: impl IntoIterator<Item = Vec<u8>>) -> Option<u32> {
        let (mut from, mut to) = split(self.connect().await);
        let sending = async {
            for piece in pieces {
                if to.write_all(&piece).await.is_err() {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            code = goodbye(&mut from) => code,
            () = sending => unreachable!("it does not end"),
            () = tokio::time::sleep(10 * SECOND) => None,
        }
    }

    /// The number of closed connections, by reason.
    fn closed(&self) -> Vec<(String, u64)> {
        let families = self.runtime.metrics().registry().gather();
        let family = families.iter().find(|family| family.name() == "chassis_connections_closed_total");
        let all = family.into_iter().flat_map(|family| family.get_metric());
        all.map(|one| (one.get_label()[0].value().to_owned(), one.get_counter().get_value() as u64)).collect()
    }
}

/// A handler that never ends, and the number of its starts.
fn silent() -> (impl HttpService, Arc<AtomicUsize>) {
    let begun = Arc::new(AtomicUsize::new(0));
    let count = begun.clone();
    let service = move |_: Request<Received>| -> Answer {
        count.fetch_add(1, SeqCst);
        Box::pin(std::future::pending())
    };
    (service, begun)
}

fn begin(call: usize) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream(call), &GET)
}

fn cancel(call: usize) -> Vec<u8> {
    frame(RESET, 0, stream(call), &CANCEL)
}

/// 627,000 streams were begun and reset on one connection in three seconds, and as many handlers started.
async fn rapid_reset(head: Vec<u8>) {
    let (service, begun) = silent();
    let victim = Victim::new(service).await;
    let (mut from, mut to) = split(victim.connect().await);
    let sent = Arc::new(AtomicUsize::new(0));
    let sending = {
        let sent = sent.clone();
        async move {
            for batch in 0..1_000 {
                let calls = (100 * batch..).take(100);
                let begin = |call| frame(HEADERS, END_HEADERS | END_STREAM, stream(call), &head);
                let bytes = calls.flat_map(|call| [begin(call), cancel(call)]).flatten().collect::<Vec<_>>();
                if to.write_all(&bytes).await.is_err() {
                    break;
                }
                sent.fetch_add(100, SeqCst);
            }
        }
    };
    let started = Instant::now();
    let sending = tokio::spawn(sending);
    let code = timeout(10 * SECOND, goodbye(&mut from)).await.expect("it is cut off");
    let (took, handlers) = (started.elapsed(), begun.load(SeqCst));
    sending.abort();
    println!("{handlers} handlers, {} streams sent, closed after {took:?}", sent.load(SeqCst));
    assert_eq!(code, Some(ENHANCE_YOUR_CALM));
    assert!(handlers <= 1_100, "{handlers} handlers were started");
    assert_eq!(victim.closed(), [("premature_resets".to_owned(), 1)]);
    // Other peers are not affected.
    let mut other = victim.connect().await;
    other.write_all(&frame(PING, 0, 0, b"are you?")).await.unwrap();
    loop {
        let received = receive(&mut other).await.unwrap();
        if received.kind == PING {
            assert_eq!((received.flags, received.stream), (ACK, 0));
            break;
        }
    }
}

/// A short head, and one as long as that of a usual call: fewer of the latter fit into one read.
fn heads() -> [Vec<u8>; 2] {
    let (path, value) = ([b'/'; 40], [b'x'; 60]);
    [GET.to_vec(), [b"\x82\x86\x04\x28", &path[..], b"\x00\x06x-some\x3c", &value[..]].concat()]
}

#[tokio::test]
async fn rapid_reset_is_cut_off() {
    for head in heads() {
        rapid_reset(head).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_reset_is_cut_off_on_many_threads() {
    for head in heads() {
        rapid_reset(head).await;
    }
}

/// Sends `calls`, each reset at once; returns the time until they are read, or `None` if the connection was
/// closed before.
async fn until_read(stream: &mut Stream, calls: std::ops::Range<usize>, head: &[u8]) -> Option<Duration> {
    let begun = Instant::now();
    let one = |call: usize| [begin_with(call, head), cancel(call)].concat();
    stream.write_all(&calls.flat_map(one).collect::<Vec<_>>()).await.unwrap();
    ping(stream).await.map(|()| begun.elapsed())
}

/// Waits for the answer to a PING. `None`: the connection is closed before.
async fn ping(stream: &mut Stream) -> Option<()> {
    stream.write_all(&frame(PING, 0, 0, b"are you?")).await.ok()?;
    loop {
        let received = receive(stream).await?;
        match received.kind {
            PING if received.flags == ACK => return Some(()),
            GOAWAY => return None,
            _ => {}
        }
    }
}

fn begin_with(call: usize, head: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream(call), head)
}

/// Connections that flood were always ready, and tokio polled I/O for all others nine times a second.
#[tokio::test(start_paused = true)]
async fn resets_in_haste_are_read_little_by_little() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), silent().0);
    let [_, head] = heads();
    let mut stream = world.raw().await;
    open(&mut stream, &[]).await;
    // The first turn reads 8 KiB of these 57 KB, each later one 2 KiB; each pause takes at least 1 ms of virtual time.
    let took = until_read(&mut stream, 0..450, &head).await.expect("they are too few to cut it off");
    assert!((10..=100).contains(&took.as_millis()), "{took:?}");
    // Reading is fast again once one turn contains fewer resets.
    let took = until_read(&mut stream, 450..451, &head).await.expect("the connection is kept");
    assert!(took.as_millis() <= 2, "{took:?}");
    let begun = Instant::now();
    assert_eq!(until_read(&mut stream, 451..2_000, &head).await, None);
    assert!(begun.elapsed() <= SECOND / 10, "{:?}", begun.elapsed());
}

/// Only reading pauses: answers are written meanwhile.
#[tokio::test(start_paused = true)]
async fn a_call_beside_resets_is_answered_during_a_pause() {
    let service = |request: Request<Received>| -> Answer {
        Box::pin(async move {
            if request.uri().path() != "/" {
                std::future::pending::<()>().await;
            }
            Response::new(ServerBody::from("well"))
        })
    };
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), service);
    let [_, head] = heads();
    let mut stream = world.raw().await;
    open(&mut stream, &[]).await;
    let resets = (1..40).flat_map(|call| [begin_with(call, &head), cancel(call)].concat());
    let bytes: Vec<u8> = begin(0).into_iter().chain(resets).collect();
    let begun = Instant::now();
    stream.write_all(&bytes).await.unwrap();
    loop {
        let received = receive(&mut stream).await.expect("the connection is kept");
        if received.stream == 1 && received.flags & END_STREAM > 0 {
            break;
        }
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// Callers that cancel after 20 ms are not hasty: handlers ran for them.
#[tokio::test(start_paused = true)]
async fn callers_of_little_patience_are_read_at_once() {
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), silent().0);
    let [_, head] = heads();
    let mut stream = world.raw().await;
    open(&mut stream, &[]).await;
    for round in 0..7 {
        let calls = || (64 * round..).take(64);
        let begin: Vec<u8> = calls().flat_map(|call| begin_with(call, &head)).collect();
        for bytes in [begin, calls().flat_map(cancel).collect()] {
            let sent = Instant::now();
            stream.write_all(&bytes).await.unwrap();
            // A pause would follow the poll after the one that reads the resets.
            for _ in 0..3 {
                ping(&mut stream).await.expect("the connection is kept");
            }
            assert_eq!(sent.elapsed(), Duration::ZERO);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The peer continues to send after it received GOAWAY.
#[tokio::test(start_paused = true)]
async fn a_peer_that_is_cut_off_is_kept_waiting() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), silent().0);
    let (mut from, mut to) = split(world.raw().await);
    to.write_all(&[&crate::raw::PREFACE[..], &settings(&[])].concat()).await.unwrap();
    let flood = frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]).repeat(1_000);
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while to.write_all(&flood).await.is_ok() {
            sent += flood.len();
        }
        sent
    });
    assert_eq!(goodbye(&mut from).await, Some(ENHANCE_YOUR_CALM));
    let begun = Instant::now();
    let sent = timeout(10 * SECOND, sending).await.expect("the connection is closed").unwrap();
    let took = begun.elapsed();
    assert!(sent < 4 << 20, "{sent}");
    assert!((100..=1_100).contains(&took.as_millis()), "{took:?}");
    assert_eq!(server.connections(), 0);
}

/// Each handler has started before its stream is reset, so h2 counts none of the resets.
#[tokio::test]
async fn resets_of_streams_that_were_accepted_count() {
    let (service, begun) = silent();
    let victim = Victim::new(service).await;
    let (mut from, mut to) = split(victim.connect().await);
    let received = tokio::spawn(async move { goodbye(&mut from).await });
    for batch in 0..50 {
        let calls = || (100 * batch..).take(100);
        if to.write_all(&calls().flat_map(begin).collect::<Vec<_>>()).await.is_err() {
            break;
        }
        // Each batch runs before it is reset.
        let ran = async {
            while begun.load(SeqCst) < 100 * (batch + 1) && !received.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        timeout(10 * SECOND, ran).await.expect("handlers run");
        if to.write_all(&calls().flat_map(cancel).collect::<Vec<_>>()).await.is_err() {
            break;
        }
    }
    assert_eq!(
        timeout(10 * SECOND, received).await.expect("it is cut off").unwrap(),
        Some(ENHANCE_YOUR_CALM)
    );
    let handlers = begun.load(SeqCst);
    assert!((500..=700).contains(&handlers), "{handlers}");
    assert_eq!(victim.closed(), [("premature_resets".to_owned(), 1)]);
}

/// Streams that this side resets, because the peer has violated HTTP/2 on them (CVE-2025-8671).
#[tokio::test]
async fn resets_that_the_peer_provokes_count() {
    let (service, begun) = silent();
    let victim = Victim::new(service).await;
    let too_much = |call| frame(WINDOW_UPDATE, 0, stream(call), &[0x7f, 0xff, 0xff, 0xff]);
    let code = victim.send((0..20_000).map(|call| [begin(call), too_much(call)].concat())).await;
    assert_eq!(code, Some(ENHANCE_YOUR_CALM));
    assert!(begun.load(SeqCst) <= 1_100, "{}", begun.load(SeqCst));
    assert_eq!(victim.closed().len(), 1);
}

/// No task of a stream runs before much more data has arrived.
#[tokio::test]
async fn handlers_do_not_pile_up_behind_resets() {
    let (service, begun) = silent();
    let victim = Victim::new(service).await;
    let mut stream = victim.connect().await;
    for batch in 0..40 {
        let calls = (100 * batch..).take(100);
        let bytes = calls.flat_map(|call| [begin(call), cancel(call)]).flatten().collect::<Vec<_>>();
        if stream.write_all(&bytes).await.is_err() {
            break;
        }
    }
    assert_eq!(timeout(10 * SECOND, goodbye(&mut stream)).await.unwrap(), Some(ENHANCE_YOUR_CALM));
    assert!(begun.load(SeqCst) <= 1_024);
}

#[tokio::test]
async fn frames_that_belong_to_no_call_have_a_budget() {
    let four = |n: u32| n.to_be_bytes();
    let floods: [(&str, Vec<u8>, &str); 10] = [
        ("PING", frame(PING, 0, 0, &[7; 8]), "ping_flood"),
        ("PING with ACK", frame(PING, ACK, 0, &[7; 8]), "ping_flood"),
        ("SETTINGS", settings(&[]), "settings_flood"),
        ("SETTINGS of substance", settings(&[(4, 65_535), (3, 7)]), "settings_flood"),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &four(1)), "window_update_flood"),
        ("WINDOW_UPDATE of a stream", frame(WINDOW_UPDATE, 0, 1, &four(1)), "window_update_flood"),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16]), "priority_flood"),
        ("unknown", frame(0x42, 0, 0, b"what?"), "unknown_frame_flood"),
        ("RST_STREAM of a stream that is over", frame(RESET, 0, 1, &CANCEL), "reset_flood"),
        ("empty DATA", frame(DATA, 0, 1, b""), "frame_limits"),
    ];
    for (name, one, reason) in floods {
        let victim = Victim::new(silent().0).await;
        let first = frame(HEADERS, END_HEADERS, 1, &GET);
        let more = std::iter::repeat_n(one.repeat(500), 100);
        let begun = Instant::now();
        let code = victim.send(std::iter::once(first).chain(more)).await;
        assert_eq!(code, Some(ENHANCE_YOUR_CALM), "{name}");
        assert!(begun.elapsed() < 2 * SECOND, "{name}: {:?}", begun.elapsed());
        assert_eq!(victim.closed(), [(reason.to_owned(), 1)], "{name}");
    }
}

#[tokio::test]
async fn a_list_of_headers_does_not_go_on_for_ever() {
    let victim = Victim::new(silent().0).await;
    let first = frame(HEADERS, 0, 1, &GET);
    let more = std::iter::repeat_n(frame(CONTINUATION, 0, 1, b""), 10_000);
    assert_eq!(victim.send(std::iter::once(first).chain(more)).await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(victim.closed(), [("frame_limits".to_owned(), 1)]);
}

/// The peer reads nothing, so the GOAWAY cannot be written.
#[tokio::test(start_paused = true)]
async fn a_flood_whose_peer_does_not_read_ends_too() {
    let world = World::new();
    let server = world.serve(ServerConfig::default(), silent().0);
    let mut stream = world.raw().await;
    open(&mut stream, &[]).await;
    let begun = Instant::now();
    // Pings are answered until the return path is full; then no more are read.
    let flood = frame(PING, 0, 0, &[7; 8]).repeat(100);
    let sending = async { while stream.write_all(&flood).await.is_ok() {} };
    timeout(60 * SECOND, sending).await.expect("it is cut off");
    assert!(begun.elapsed() <= 40 * SECOND, "{:?}", begun.elapsed());
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(server.connections(), 0);
}

/// Callers that cancel half of their calls, all on one connection: no other call is lost.
#[tokio::test(start_paused = true)]
async fn a_client_that_cancels_half_of_its_calls_keeps_its_connection() {
    let service = |request: Request<Received>| -> Answer {
        Box::pin(async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            Response::new(ServerBody::from("well"))
        })
    };
    let world = World::new();
    let _server = world.serve(ServerConfig::default(), service);
    let client = world
        .leaf(|link, connector, config| H2Leaf::new(link, connector, config, true), ClientConfig::default());
    let client = Arc::new(client.ready().await);
    let callers = (0..64).map(|_| {
        let client = client.clone();
        tokio::spawn(async move {
            for _ in 0..20 {
                let cancelled = timeout(Duration::from_millis(50), client.get("/slow")).await;
                assert!(cancelled.is_err(), "{cancelled:?}");
                assert_eq!(client.get("/x").await.unwrap(), "200 well");
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(world.memory.connections("stock"), 1);
}

/// All calls exceed their timeouts before the server handles them, as after a stall. The callers had sent their
/// timeouts.
#[tokio::test]
async fn calls_that_are_over_their_time_are_no_attack() {
    let victim = Victim::new(silent().0).await;
    let timeout_header = b"\x00\x14x-request-timeout-ms\x0220";
    let head = [&GET[..], timeout_header].concat();
    let given_up =
        |call| [frame(HEADERS, END_HEADERS | END_STREAM, stream(call), &head), cancel(call)].concat();
    let mut connection = victim.connect().await;
    connection.write_all(&(0..3_000).flat_map(given_up).collect::<Vec<_>>()).await.unwrap();
    connection.write_all(&frame(PING, 0, 0, b"are you?")).await.unwrap();
    loop {
        let received = receive(&mut connection).await.expect("the connection is kept");
        if received.kind == PING && received.flags == ACK {
            break;
        }
    }
    assert_eq!(victim.closed(), []);
    // A sent timeout does not remove the limit.
    let many = (0..50_000).map(given_up);
    assert_eq!(victim.send(many).await, Some(ENHANCE_YOUR_CALM));
    assert_eq!(victim.closed(), [("reset_rate".to_owned(), 1)]);
}

/// The same floods, from a server to our client.
#[tokio::test]
async fn a_server_that_floods_its_client_is_given_up() {
    let head = frame(HEADERS, END_HEADERS, 1, &[0x08, 0x03, b'1', b'0', b'3']);
    let floods = [
        ("PING", frame(PING, 0, 0, &[7; 8])),
        ("SETTINGS", settings(&[])),
        ("WINDOW_UPDATE", frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("PRIORITY", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 16])),
        ("unknown", frame(0x42, 0, 0, b"what?")),
        ("103 Early Hints", head),
    ];
    for (name, one) in floods {
        let world = World::new();
        let network = Network::default();
        let mut listener = network.bind("127.0.0.1:0").await.unwrap();
        let link = chassis_core::Link::detached(
            "stock",
            &listener.address(),
            world.tasks.clone(),
            world.random.clone(),
        );
        let flood = tokio::spawn(async move {
            let (mut from, mut to) = split(listener.accept().await.unwrap());
            tokio::io::AsyncReadExt::read_exact(&mut from, &mut [0; 24]).await.unwrap();
            to.write_all(&[settings(&[]), frame(SETTINGS, ACK, 0, b"")].concat()).await.unwrap();
            while receive(&mut from).await.unwrap().kind != HEADERS {}
            let reading = tokio::spawn(async move { while receive(&mut from).await.is_some() {} });
            let mut sent = 0;
            while sent < 100_000 && to.write_all(&one.repeat(100)).await.is_ok() {
                sent += 100;
            }
            reading.abort();
            sent
        });
        let leaf = H2Leaf::new(link.clone(), Arc::new(network), ClientConfig::default(), true);
        let client = crate::support::Client { leaf, link }.ready().await;
        let error = timeout(10 * SECOND, client.get("/x")).await.expect(name).unwrap_err();
        assert_eq!(error.reason(), Reason::ConnectionLost, "{name}");
        assert!(flood.await.unwrap() < 100_000, "{name}");
        client.leaf.close();
        assert_ne!(client.link.connection(), Connection::Ready);
    }
}
