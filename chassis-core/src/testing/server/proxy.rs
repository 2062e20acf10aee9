//! A connection to a server that can be cut.
use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// Forwards TCP connections to a server on loopback until it is cut.
pub struct Proxy {
    address: String,
    open: watch::Sender<bool>,
    connections: Connections,
}

#[derive(Clone, Default)]
struct Connections(Arc<Mutex<Vec<AbortHandle>>>);

// === impl Proxy ===

impl Proxy {
    /// Forwards to the server at `to`.
    ///
    /// # Errors
    /// There is no free port.
    pub async fn start(to: &str) -> io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (open, is_open) = watch::channel(true);
        let connections = Connections::default();
        let (all, to) = (connections.clone(), to.to_owned());
        tokio::spawn(async move {
            while let Ok((mut from, _)) = listener.accept().await {
                if !*is_open.borrow() {
                    continue; // closed at once
                }
                let to = to.clone();
                let connection = tokio::spawn(async move {
                    let mut to = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut from, &mut to).await
                });
                all.lock().push(connection.abort_handle());
            }
        });
        Ok(Proxy { address, open, connections })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Closes all connections, and new ones as soon as they are accepted.
    pub fn cut(&self) {
        self.open.send_replace(false);
        self.connections.lock().drain(..).for_each(|connection| connection.abort());
    }

    /// Forwards again.
    pub fn heal(&self) {
        self.open.send_replace(true);
    }
}

// === impl Connections ===

impl Connections {
    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn lock(&self) -> MutexGuard<'_, Vec<AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
