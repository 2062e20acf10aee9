//! Clients that read slowly, or not at all, while data is held for them.
use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use chassis_core::{
    Runtime,
    units::{Size, Switch},
};
use chassis_http::{
    ServerConfig,
    connector::Stream,
    server::{Answer, HttpService, Mux, Received, Server, ServerBody},
};
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, channel::Channel};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    time::{Instant, sleep, timeout},
};

use crate::{
    raw::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, WINDOW_UPDATE, frame, receive, stream},
    support::{SECOND, World},
};

const LARGE: usize = 4 << 20;
/// A window for all of it, and for its end.
const WHOLE: u32 = LARGE as u32 + 1;
static PART: [u8; 64 * 1024] = [b'x'; 64 * 1024];
/// The bytes that a connection may hold, and the part of them for frames that wait for windows.
const HELD: usize = 24 << 20;
const WAITING: usize = HELD / 6;
/// The identifier of the setting for a stream's initial window.
const WINDOW: u16 = 4;
const ENHANCE_YOUR_CALM: [u8; 4] = 11u32.to_be_bytes();

/// `/large` is 4 MiB, `/parts` the same in frames, `/trailers` only trailers, `/silent` a head and then
/// nothing; every other path is five bytes. `asked` counts the frames that were polled of all `/parts`.
fn files(asked: Arc<AtomicUsize>) -> impl HttpService {
    move |request: Request<Received>| -> Answer {
        let asked = asked.clone();
        Box::pin(async move {
            Response::new(match request.uri().path() {
                "/parts" => ServerBody::new(Parts { left: LARGE / PART.len(), asked }),
                "/trailers" => ServerBody::new(Full::new(Bytes::new()).with_trailers(async {
                    Some(Ok(HeaderMap::from_iter([(HeaderName::from_static("sum"), 1.into())])))
                })),
                "/large" => ServerBody::from(Bytes::from(vec![b'x'; LARGE])),
                "/silent" => {
                    let (sender, body) = Channel::<Bytes, Infallible>::new(1);
                    tokio::spawn(async move {
                        sleep(3_600 * SECOND).await;
                        drop(sender);
                    });
                    ServerBody::new(body)
                }
                _ => ServerBody::from("small"),
            })
        })
    }
}

/// A body with this many further frames.
struct Parts {
    left: usize,
    asked: Arc<AtomicUsize>,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        self.asked.fetch_add(PART.len(), SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&PART)))))
    }
}

struct Library {
    world: World,
    asked: Arc<AtomicUsize>,
    runtime: Runtime,
    server: Server,
}

impl Library {
    fn new(config: ServerConfig) -> Self {
        let (world, runtime) = (World::new(), Runtime::builder("library").build().unwrap());
        let server = Server::new(config, &world.tasks, world.random.clone());
        let server = server.metrics(runtime.metrics().clone());
        let listener = Box::new(world.memory.listen("stock").unwrap());
        let asked = Arc::<AtomicUsize>::default();
        let files = Arc::new(files(asked.clone()));
        server.serve("http", listener, Mux { http: Some(files), grpc: None }, None);
        Library { world, asked, runtime, server }
    }

    /// The number of slow readers that were ended: streams, connections.
    fn too_slow(&self) -> (u64, u64) {
        let families = self.runtime.metrics().registry().gather();
        let count = |name: &str| {
            let family = families.iter().find(|family| family.name() == name);
            family.map_or(0, |family| family.get_metric()[0].get_counter().get_value() as u64)
        };
        (count("chassis_streams_reset_total"), count("chassis_connections_closed_total"))
    }

    async fn connect(&self, window: u32) -> Stream {
        let mut stream = self.world.raw().await;
        raw::open(&mut stream, &[(WINDOW, window)]).await;
        stream
    }
}

fn ask(call: usize, path: &str) -> Vec<u8> {
    let block = [&b"\x82\x86\x04"[..], &[path.len() as u8], path.as_bytes()].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, stream(call), &block)
}

fn more(stream: u32, bytes: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

/// The time at which the stream of `path` is reset if its reader grants `grant` bytes each second, within
/// `bound` seconds.
async fn reset_after(library: &Library, path: &str, window: u32, grant: u32, bound: u64) -> Option<u64> {
    let (mut from, mut to) = split(library.connect(window).await);
    to.write_all(&ask(0, path)).await.unwrap();
    let begun = Instant::now();
    let granting = async {
        loop {
            sleep(SECOND).await;
            let mut bytes = frame(PING, 0, 0, b"I live!!");
            if grant > 0 {
                bytes.extend([more(0, grant), more(1, grant)].concat());
            }
            if to.write_all(&bytes).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let reset = async {
        loop {
            let frame = receive(&mut from).await.expect("the connection is kept");
            if frame.kind == RESET {
                assert_eq!((frame.stream, &frame.payload[..]), (1, &ENHANCE_YOUR_CALM[..]));
                return;
            }
        }
    };
    tokio::select! {
        () = reset => Some(begun.elapsed().as_secs()),
        () = granting => unreachable!("it does not end"),
        () = sleep(Duration::from_secs(bound)) => None,
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_is_reset() {
    for path in ["/large", "/small"] {
        let library = Library::new(ServerConfig::default());
        assert_eq!(reset_after(&library, path, 0, 0, 600).await, Some(30), "{path}, a window of nothing");
        assert_eq!(library.too_slow(), (1, 0));
    }
    for grant in [0, 1, 200] {
        let library = Library::new(ServerConfig::default());
        assert_eq!(reset_after(&library, "/large", 65_535, grant, 600).await, Some(30), "{grant} a second");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_read_slowly_is_kept() {
    let library = Library::new(ServerConfig::default());
    assert_eq!(reset_after(&library, "/large", 0, 300, 600).await, None);
    // No data is held: the handler sends none.
    assert_eq!(reset_after(&library, "/silent", 0, 0, 600).await, None);
    assert_eq!(library.too_slow(), (0, 0));
    let library = Library::new(ServerConfig { min_write_rate: Switch::Off, ..ServerConfig::default() });
    assert_eq!(reset_after(&library, "/large", 0, 0, 600).await, None);
}

/// Other streams of the connection continue.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_ends_alone() {
    let library = Library::new(ServerConfig::default());
    let mut connection = library.connect(1_000).await;
    connection.write_all(&[ask(0, "/large"), ask(1, "/large")].concat()).await.unwrap();
    connection.write_all(&[more(0, LARGE as u32), more(3, LARGE as u32)].concat()).await.unwrap();
    let (mut read, mut is_reset) = (0, false);
    let both = async {
        while read < LARGE || !is_reset {
            let frame = raw::read(&mut connection).await.expect("the connection is kept");
            match (frame.kind, frame.stream) {
                (DATA, 3) => read += frame.payload.len(),
                (RESET, 1) => is_reset = true,
                (RESET, id) => panic!("stream {id} is reset"),
                _ => {}
            }
        }
    };
    // Pings keep the connection open.
    let ended = timeout(60 * SECOND, both).await;
    assert!(ended.is_ok(), "{read} bytes are read of one stream; the other is reset: {is_reset}");
    connection.write_all(&ask(2, "/small")).await.unwrap();
    while raw::read(&mut connection).await.expect("the connection is kept").stream != 5 {}
}

/// All windows are open, but the connection's bytes are not read.
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_read_is_closed() {
    let library = Library::new(ServerConfig::default());
    let mut connection = library.connect(i32::MAX as u32).await;
    connection.write_all(&more(0, 1 << 30)).await.unwrap();
    connection.write_all(&ask(0, "/large")).await.unwrap();
    let begun = Instant::now();
    sleep(SECOND).await;
    while library.server.connections() > 0 {
        sleep(SECOND).await;
        let _ = timeout(SECOND / 10, connection.write_all(&frame(PING, 0, 0, b"I live!!"))).await;
        assert!(begun.elapsed() < 60 * SECOND);
    }
    assert!(begun.elapsed() >= 29 * SECOND, "{:?}", begun.elapsed());
}

/// A connection on which `streams` request `/parts`, all without a window: each may hold a frame, and there is
/// room for 64.
async fn without_windows(library: &Library, streams: usize) -> Stream {
    let mut connection = library.connect(0).await;
    let asks: Vec<u8> = (0..streams).flat_map(|call| ask(call, "/parts")).collect();
    connection.write_all(&asks).await.unwrap();
    for _ in 0..streams {
        raw::read_until(&mut connection, HEADERS).await.unwrap();
    }
    sleep(SECOND).await;
    connection
}

/// Reads until `stream` ends; returns the number of its bytes. The others send none.
async fn read_to_end(connection: &mut Stream, stream: u32) -> usize {
    let mut read = 0;
    loop {
        let frame = raw::read(connection).await.expect("the connection is kept");
        assert!(frame.kind != RESET && (frame.kind != DATA || frame.stream == stream), "{frame:?}");
        read += if frame.kind == DATA { frame.payload.len() } else { 0 };
        if frame.stream == stream && frame.flags & END_STREAM > 0 {
            return read;
        }
    }
}

/// One stream for each that the peer may have: 16 MiB would wait without a bound.
#[tokio::test(start_paused = true)]
async fn streams_without_windows_hold_so_much_together() {
    let library = Library::new(ServerConfig::default());
    let _connection = without_windows(&library, 256).await;
    assert_eq!(library.asked.load(SeqCst), WAITING);
}

/// The first streams hold data; the last has none, and a window.
#[tokio::test(start_paused = true)]
async fn a_stream_with_a_window_goes_on_beside_those_that_wait() {
    let library = Library::new(ServerConfig::default());
    let mut connection = without_windows(&library, 200).await;
    let last = stream(199);
    connection.write_all(&[more(0, LARGE as u32), more(last, WHOLE)].concat()).await.unwrap();
    assert_eq!(read_to_end(&mut connection, last).await, LARGE);
    assert_eq!(library.asked.load(SeqCst), WAITING + LARGE);
    // And a new stream, which begins with a window.
    let window = raw::settings(&[(WINDOW, 0)]);
    connection.write_all(&[window, ask(200, "/large"), more(0, LARGE as u32)].concat()).await.unwrap();
    connection.write_all(&more(stream(200), LARGE as u32)).await.unwrap();
    assert_eq!(read_to_end(&mut connection, stream(200)).await, LARGE);
}

/// It gets little at a time, for longer than the other streams may block anything.
#[tokio::test(start_paused = true)]
async fn a_slow_reader_goes_on_beside_those_that_wait() {
    let library = Library::new(ServerConfig::default());
    let mut connection = without_windows(&library, 200).await;
    let (slow, mut read, mut resets) = (stream(199), 0, 0);
    for _ in 0..100 {
        connection.write_all(&[more(0, 1_000), more(slow, 1_000)].concat()).await.unwrap();
        let mut come = 0;
        while come < 1_000 {
            let frame = raw::read(&mut connection).await.expect("the connection is kept");
            match frame.kind {
                DATA => {
                    assert_eq!(frame.stream, slow);
                    come += frame.payload.len();
                }
                RESET => {
                    assert_ne!(frame.stream, slow);
                    resets += 1;
                }
                _ => {}
            }
        }
        read += come;
        sleep(SECOND).await;
    }
    // 64 wait for 30 seconds, then the next ones, which had no room before.
    assert_eq!((read, resets), (100_000, 3 * 64));
}

/// It needs no window, only its turn.
#[tokio::test(start_paused = true)]
async fn a_stream_that_only_ends_goes_on_once_there_is_room() {
    let library = Library::new(ServerConfig::default());
    let mut connection = without_windows(&library, 64).await;
    connection.write_all(&ask(64, "/trailers")).await.unwrap();
    raw::read_until(&mut connection, HEADERS).await.unwrap();
    sleep(SECOND).await;
    connection.write_all(&raw::reset(stream(0), 8)).await.unwrap();
    let end = timeout(SECOND, raw::read_until(&mut connection, HEADERS)).await.unwrap().unwrap();
    assert_eq!((end.stream, end.flags & END_STREAM), (stream(64), END_STREAM));
}

/// All windows are open, but the connection's bytes are not read. Once they are, everything is sent.
#[tokio::test(start_paused = true)]
async fn streams_with_windows_hold_so_much_together() {
    const STREAMS: usize = 16;
    let library = Library::new(ServerConfig::default());
    let mut connection = library.connect(i32::MAX as u32).await;
    let asks: Vec<u8> = (0..STREAMS).flat_map(|call| ask(call, "/parts")).collect();
    connection.write_all(&[more(0, 1 << 30), asks].concat()).await.unwrap();
    sleep(SECOND).await;
    let asked = library.asked.load(SeqCst);
    assert!(asked <= HELD / 2, "{asked}");
    let (mut read, mut ended) = (0, 0);
    while ended < STREAMS {
        let frame = raw::read(&mut connection).await.expect("the connection is kept");
        assert_ne!(frame.kind, RESET);
        read += if frame.kind == DATA { frame.payload.len() } else { 0 };
        ended += usize::from(frame.stream > 0 && frame.flags & END_STREAM > 0);
    }
    assert_eq!(read, STREAMS * LARGE);
}

/// One frame exceeds the bound.
#[tokio::test(start_paused = true)]
async fn with_a_buffer_of_almost_nothing_streams_go_on() {
    let library = Library::new(ServerConfig { send_buffer: Size::from_kib(1), ..ServerConfig::default() });
    let mut connection = without_windows(&library, 100).await;
    assert_eq!(library.asked.load(SeqCst), PART.len());
    connection.write_all(&[more(0, LARGE as u32), more(3, WHOLE)].concat()).await.unwrap();
    assert_eq!(read_to_end(&mut connection, 3).await, LARGE);
}

/// The time for which a client over HTTP/1.1 that reads `bytes` each second is served, at most 120 seconds.
async fn served(config: ServerConfig, bytes: usize) -> (Duration, (u64, u64)) {
    let library = Library::new(config);
    let mut connection = library.world.raw().await;
    connection.write_all(b"GET /large HTTP/1.1\r\nhost: stock\r\n\r\n").await.unwrap();
    let (begun, mut buffer) = (Instant::now(), vec![0; bytes]);
    sleep(SECOND).await;
    while begun.elapsed() < 120 * SECOND && library.server.connections() > 0 {
        sleep(SECOND).await;
        if bytes > 0 {
            let _ = timeout(SECOND / 10, connection.read_exact(&mut buffer)).await;
        }
    }
    (begun.elapsed(), library.too_slow())
}

#[tokio::test(start_paused = true)]
async fn a_client_over_http1_that_does_not_read_is_closed() {
    let (took, too_slow) = served(ServerConfig::default(), 0).await;
    assert!((30..=32).contains(&took.as_secs()), "{took:?}");
    assert_eq!(too_slow, (0, 1));
    let (took, too_slow) = served(ServerConfig::default(), 100).await;
    assert!((30..=36).contains(&took.as_secs()), "{took:?}");
    assert_eq!(too_slow, (0, 1));
    let (took, too_slow) = served(ServerConfig::default(), 1_000).await;
    assert!(took.as_secs() >= 120, "{took:?}");
    assert_eq!(too_slow, (0, 0));
    let off = ServerConfig { min_write_rate: Switch::Off, ..ServerConfig::default() };
    assert!(served(off, 0).await.0.as_secs() >= 120);
}
