//! The default streams: TCP, Unix sockets, and streams within the process.
use std::{io, time::Duration};

use async_trait::async_trait;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream, lookup_host};

use super::{Connector, Listener, MemoryNetwork, Peer, Stream, eyeballs};

/// Connects and listens by the form of the address: `host:port`, `unix:/path` or `memory:name`.
///
/// The addresses of a name are tried with alternating families, the next one after 250 ms, or sooner if the
/// time would not suffice for all (RFC 8305). A TCP connection whose peer has vanished without closing ends
/// within half a minute, also while nothing is sent.
///
/// Clones share the in-memory part; two networks that were created separately have separate ones.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// use chassis_http::connector::{Connector, Network};
///
/// let network = Network::default();
/// let mut listener = network.bind("memory:stock").await?;
/// let client = network.connect("memory:stock").await?;
/// assert_eq!(listener.accept().await?.peer().to_string(), "memory:stock");
/// # drop(client);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Network {
    memory: MemoryNetwork,
}

/// The kind of an address.
enum Address<'a> {
    Tcp(&'a str),
    Unix(&'a str),
    Memory(&'a str),
}

struct Tcp(TcpListener);

struct Unix {
    listener: UnixListener,
    path: String,
}

// === impl Network ===

impl Network {
    /// Uses the given in-memory part, which other networks may share.
    pub fn with_memory(memory: MemoryNetwork) -> Self {
        Network { memory }
    }

    /// The in-memory part.
    pub fn memory(&self) -> &MemoryNetwork {
        &self.memory
    }

    /// Listens at `address`; port 0 selects a free one. A Unix socket without a listener is replaced.
    pub async fn bind(&self, address: &str) -> io::Result<Box<dyn Listener>> {
        Ok(match Address::of(address) {
            Address::Tcp(address) => Box::new(Tcp(TcpListener::bind(address).await?)),
            Address::Unix(path) => Box::new(Unix::bind(path).await?),
            Address::Memory(name) => Box::new(self.memory.listen(name)?),
        })
    }
}

#[async_trait]
impl Connector for Network {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        match Address::of(address) {
            Address::Tcp(address) => connect(address, Duration::MAX).await,
            Address::Unix(path) => Ok(Stream::unix(UnixStream::connect(path).await?)),
            Address::Memory(name) => self.memory.connect(name).await,
        }
    }

    async fn connect_within(&self, address: &str, budget: Duration) -> io::Result<Stream> {
        match Address::of(address) {
            Address::Tcp(address) => connect(address, budget).await,
            Address::Unix(_) | Address::Memory(_) => self.connect(address).await,
        }
    }
}

async fn connect(address: &str, budget: Duration) -> io::Result<Stream> {
    let begun = tokio::time::Instant::now();
    let addresses = eyeballs::by_turns(lookup_host(address).await?.collect());
    let budget = budget.saturating_sub(begun.elapsed());
    let pause = eyeballs::pause(addresses.len(), budget);
    let stream = eyeballs::first(addresses, pause, TcpStream::connect).await?;
    tcp(stream)
}

/// Lets the kernel detect a vanished peer. If a system does not support it, the connection is used without it.
///
/// There is no bound on the time that sent data may be unacknowledged (TCP_USER_TIMEOUT): on Linux it would
/// also end connections whose peers are alive and read slowly.
fn watch(stream: &TcpStream) {
    let alive = TcpKeepalive::new().with_time(ASK_AFTER).with_interval(ASK_EVERY);
    #[cfg(not(target_os = "openbsd"))]
    let alive = alive.with_retries(ASK_TIMES);
    let _ = SockRef::from(stream).set_tcp_keepalive(&alive);
}

/// The kernel probes a peer after this time without data.
const ASK_AFTER: Duration = Duration::from_secs(15);
/// The interval of further probes, while it does not answer.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// The number of probes.
const ASK_TIMES: u32 = 3;

// === impl Address ===

impl<'a> Address<'a> {
    fn of(address: &'a str) -> Self {
        if let Some(path) = address.strip_prefix("unix:") {
            Address::Unix(path)
        } else if let Some(name) = address.strip_prefix("memory:") {
            Address::Memory(name)
        } else {
            Address::Tcp(address)
        }
    }
}

/// Calls are small and wait for each other, so sending must not wait for more data.
fn tcp(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    watch(&stream);
    let peer = Peer::Tcp(stream.peer_addr()?);
    Ok(Stream::tcp(stream, peer))
}

// === impl Tcp ===

#[async_trait]
impl Listener for Tcp {
    async fn accept(&mut self) -> io::Result<Stream> {
        tcp(self.0.accept().await?.0)
    }

    fn address(&self) -> String {
        self.0.local_addr().map_or_else(|_| String::from("unknown"), |address| address.to_string())
    }
}

// === impl Unix ===

impl Unix {
    async fn bind(path: &str) -> io::Result<Self> {
        let bound = match UnixListener::bind(path) {
            Err(taken) if taken.kind() == io::ErrorKind::AddrInUse => match UnixStream::connect(path).await {
                Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)
                }
                _ => Err(taken),
            },
            bound => bound,
        };
        Ok(Unix { listener: bound?, path: path.to_owned() })
    }
}

#[async_trait]
impl Listener for Unix {
    async fn accept(&mut self) -> io::Result<Stream> {
        Ok(Stream::unix(self.listener.accept().await?.0))
    }

    fn address(&self) -> String {
        format!("unix:{}", self.path)
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn check(address: &str) {
        let network = Network::default();
        let mut listener = network.bind(address).await.unwrap();
        let mut client = network.connect(&listener.address()).await.unwrap();
        let mut server = listener.accept().await.unwrap();
        client.write_all(b"ping").await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "ping");
    }

    #[tokio::test]
    async fn carries_bytes_by_tcp_unix_and_memory() {
        let folder = tempfile::tempdir().unwrap();
        check("127.0.0.1:0").await;
        check(&format!("unix:{}", folder.path().join("socket").display())).await;
        check("memory:stock").await;
    }

    #[tokio::test]
    async fn the_kernel_looks_after_peers_that_vanish() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        watch(&stream);
        let (accepted, _) = listener.accept().await.unwrap();
        for stream in [stream, accepted] {
            watch(&stream);
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            #[cfg(target_os = "linux")]
            {
                let set = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
                assert_eq!(set, (ASK_AFTER, ASK_EVERY));
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), ASK_TIMES);
            }
        }
    }

    #[tokio::test]
    async fn a_dead_unix_socket_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let address = format!("unix:{}", path.display());
        let network = Network::default();
        let live = network.bind(&address).await.unwrap();
        let taken = network.bind(&address).await.err().unwrap();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(live);
        assert!(!path.exists());
    }
}
