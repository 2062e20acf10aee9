//! One HTTP/2 connection: how it is opened, what is known of it, and how it is found out to be dead.
//!
//! It is `h2`'s own rather than hyper's, whose dispatch of a call to its connection costs as much again
//! as the whole pipeline: a channel there and back, and a task for each call.
use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::*},
    },
};

use bytes::Bytes;
use chassis_core::{BoxError, tasks::caught};
use h2::client::{Builder, SendRequest};
use tokio::{sync::oneshot, time::timeout};

use super::endpoint::Endpoint;
use crate::{
    ClientConfig,
    connector::Stream,
    frames::{ENHANCE_YOUR_CALM, Seen, Watched},
    silence::Silence,
    turns::Turns,
};

pub(super) type Sender = SendRequest<Bytes>;

/// An open connection.
pub(super) struct Connection {
    sender: Sender,
    health: Arc<Health>,
    streams: AtomicUsize,
    served: AtomicBool,
    used: AtomicBool,
}

/// What its stream of bytes says of a connection.
struct Health {
    over: AtomicBool,
    told_to_go: AtomicBool,
    /// A ping was not answered in time. Set before the streams hear of it.
    silent: AtomicBool,
    /// How many streams the server allows, or we do.
    max_streams: AtomicUsize,
    silence: Silence,
}

/// Opens a connection, within the connect timeout: it is there once the server has sent its settings.
pub(super) async fn open(endpoint: &Arc<Endpoint>) -> Result<Connection, BoxError> {
    let limit = endpoint.config.connect_timeout.get();
    let connecting = async {
        // A connector may be the user's: its panic is a connection that failed, and is tried again.
        let stream = caught(async { endpoint.connector.connect(endpoint.link.address()).await }).await??;
        handshake(endpoint, stream).await
    };
    match timeout(limit, connecting).await {
        Ok(opened) => opened,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("not connected in {limit:?}")).into()),
    }
}

async fn handshake(endpoint: &Arc<Endpoint>, stream: Stream) -> Result<Connection, BoxError> {
    let config = &endpoint.config;
    let health = Arc::new(Health::new(config.max_streams.get()));
    let (tell, told) = oneshot::channel();
    let turns = Turns::default();
    let stream = Watched::new(stream, listener(endpoint.clone(), health.clone(), tell), turns.clone());
    let (sender, mut connection) = builder(config).handshake(stream).await?;
    let interval = config.keep_alive_interval.0 * endpoint.ping_factor.load(Acquire);
    let bound = config.keep_alive_timeout.get();
    let (ended, watched, ping) = (endpoint.clone(), health.clone(), connection.ping_pong());
    endpoint.link.tasks().spawn(async move {
        let silent = async {
            watched.silence.lasts(ping, interval, bound).await;
            watched.silent.store(true, Release);
        };
        let mut connection = pin!(connection);
        let driven = poll_fn(|cx| {
            turns.begin();
            connection.as_mut().poll(cx)
        });
        tokio::select! {
            biased;
            _ = driven => {}
            () = silent => {}
        }
        watched.over.store(true, Release);
        ended.lost();
    });
    match told.await {
        Ok(true) => Ok(Connection::new(sender, health)),
        Ok(false) => Err("what answers does not speak HTTP/2".into()),
        Err(_) => Err("the connection closed before the server said anything".into()),
    }
}

fn builder(config: &ClientConfig) -> Builder {
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        .max_header_list_size(config.max_header_list.as_u32())
        .initial_window_size(config.stream_window.as_u32())
        .initial_connection_window_size(config.connection_window.as_u32())
        // Answers may cross with our giving up on them. What h2 remembers to have reset it ignores for a
        // second; anything else it counts as an error, and closes the connection after 1,024 of these.
        .max_concurrent_reset_streams(config.max_streams.get());
    builder
}

/// Hears what the frames say; `tell` whether the first was one of HTTP/2.
fn listener(
    endpoint: Arc<Endpoint>,
    health: Arc<Health>,
    tell: oneshot::Sender<bool>,
) -> impl FnMut(Seen) + Send + 'static {
    let mut tell = Some(tell);
    move |seen| match seen {
        Seen::Bytes => health.silence.break_now(),
        Seen::Settings { max_streams } => {
            if let Some(most) = max_streams {
                let most = usize::try_from(most).unwrap_or(usize::MAX);
                health.max_streams.store(most.min(endpoint.config.max_streams.get()), Release);
            }
            if let Some(tell) = tell.take() {
                let _ = tell.send(true);
            }
        }
        Seen::GoAway { code } => {
            if code == ENHANCE_YOUR_CALM {
                endpoint.calm_down();
            }
            health.told_to_go.store(true, Release);
            health.over.store(true, Release);
            endpoint.lost();
        }
        Seen::NotHttp2 => {
            if let Some(tell) = tell.take() {
                let _ = tell.send(false);
            }
        }
    }
}

// === impl Connection ===

impl Connection {
    fn new(sender: Sender, health: Arc<Health>) -> Self {
        let (streams, served, used) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicBool::new(true));
        Connection { sender, health, streams, served, used }
    }

    /// Takes one more stream, unless all are in use.
    pub(super) fn take_stream(&self) -> bool {
        let most = self.health.max_streams.load(Acquire);
        let taken = self.streams.fetch_update(AcqRel, Acquire, |n| (n < most).then_some(n + 1)).is_ok();
        set(&self.used);
        taken
    }

    /// Gives a stream back.
    pub(super) fn give_stream(&self) {
        self.streams.fetch_sub(1, AcqRel);
    }

    /// It has served a call.
    pub(super) fn set_served(&self) {
        set(&self.served);
    }

    /// No more calls on it.
    pub(super) fn retire(&self) {
        self.health.over.store(true, Release);
    }

    /// Was it used since this was asked last, or is it now?
    pub(super) fn take_used(&self) -> bool {
        self.used.swap(false, AcqRel) || self.streams() > 0
    }

    pub(super) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Acquire)
    }

    pub(super) fn free_streams(&self) -> usize {
        self.health.max_streams.load(Acquire).saturating_sub(self.streams())
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.health.over.load(Acquire)
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.load(Acquire) || self.streams() > 0
    }

    pub(super) fn has_served(&self) -> bool {
        self.served.load(Acquire)
    }

    /// Is it over because the server no longer answered pings?
    pub(super) fn is_silent(&self) -> bool {
        self.health.silent.load(Acquire)
    }

    pub(super) fn was_told_to_go(&self) -> bool {
        self.health.told_to_go.load(Acquire)
    }
}

/// Sets a flag, and leaves its cache line alone if it is set already.
fn set(flag: &AtomicBool) {
    if !flag.load(Relaxed) {
        flag.store(true, Release);
    }
}

// === impl Health ===

impl Health {
    fn new(max_streams: usize) -> Self {
        Health {
            over: AtomicBool::new(false),
            told_to_go: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            max_streams: AtomicUsize::new(max_streams),
            silence: Silence::new(),
        }
    }
}
