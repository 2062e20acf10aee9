//! Clients that read slowly, or not at all, while something is held for them.
use std::time::Duration;

use bytes::Bytes;
use chassis_core::{Runtime, units::Switch};
use chassis_http::{
    ServerConfig,
    connector::Stream,
    server::{Answer, HttpService, Mux, Received, Server, ServerBody},
};
use http::{Request, Response};
use http_body_util::channel::Channel;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, split},
    time::{Instant, sleep, timeout},
};

use crate::{
    raw::{self, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, WINDOW_UPDATE, frame, receive, stream},
    support::{SECOND, World},
};

const LARGE: usize = 4 << 20;
/// Of a stream, to begin with.
const WINDOW: u16 = 4;
const ENHANCE_YOUR_CALM: [u8; 4] = 11u32.to_be_bytes();

/// `/large` is 4 MiB, `/silent` has a head and then nothing, all else is five bytes.
fn files() -> impl HttpService {
    |request: Request<Received>| -> Answer {
        Box::pin(async move {
            Response::new(match request.uri().path() {
                "/large" => ServerBody::from(Bytes::from(vec![b'x'; LARGE])),
                "/silent" => {
                    let (tell, body) = Channel::<Bytes, std::convert::Infallible>::new(1);
                    tokio::spawn(async move {
                        sleep(3_600 * SECOND).await;
                        drop(tell);
                    });
                    ServerBody::new(body)
                }
                _ => ServerBody::from("small"),
            })
        })
    }
}

struct Library {
    world: World,
    runtime: Runtime,
    server: Server,
}

impl Library {
    fn new(config: ServerConfig) -> Self {
        let (world, runtime) = (World::new(), Runtime::builder("library").build().unwrap());
        let server = Server::new(config, &world.tasks, world.random.clone());
        let server = server.metrics(runtime.metrics().clone());
        let listener = Box::new(world.memory.listen("stock").unwrap());
        server.serve("http", listener, Mux { http: Some(std::sync::Arc::new(files())), grpc: None }, None);
        Library { world, runtime, server }
    }

    /// How many were ended since they were too slow: streams, connections.
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

/// When the stream of `path` is reset by whom lets `grant` bytes come each second, within `bound` seconds.
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
    // Nothing is held: its handler has nothing to say.
    assert_eq!(reset_after(&library, "/silent", 0, 0, 600).await, None);
    assert_eq!(library.too_slow(), (0, 0));
    let library = Library::new(ServerConfig { min_write_rate: Switch::Off, ..ServerConfig::default() });
    assert_eq!(reset_after(&library, "/large", 0, 0, 600).await, None);
}

/// The streams beside it go on.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_not_read_ends_alone() {
    let library = Library::new(ServerConfig::default());
    let mut connection = library.connect(1_000).await;
    connection.write_all(&[ask(0, "/large"), ask(1, "/large")].concat()).await.unwrap();
    connection.write_all(&[more(0, LARGE as u32), more(3, LARGE as u32)].concat()).await.unwrap();
    let (mut read, mut is_reset) = (0, false);
    while read < LARGE || !is_reset {
        let frame = raw::read(&mut connection).await.expect("the connection is kept");
        match (frame.kind, frame.stream) {
            (DATA, 3) => read += frame.payload.len(),
            (RESET, 1) => is_reset = true,
            (RESET, id) => panic!("stream {id} is reset"),
            _ => {}
        }
    }
    connection.write_all(&ask(2, "/small")).await.unwrap();
    while raw::read(&mut connection).await.expect("the connection is kept").stream != 5 {}
}

/// Windows are wide open, but nothing is read of the connection's bytes.
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

/// How long a client over HTTP/1.1 that reads `bytes` each second is served, or 120 seconds.
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
