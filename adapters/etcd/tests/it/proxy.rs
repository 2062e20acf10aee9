//! A connection to a server that can be cut.
use std::sync::{Arc, Mutex};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// Forwards connections to a server until it is cut.
pub(crate) struct Proxy {
    pub(crate) address: String,
    open: watch::Sender<bool>,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Proxy {
    pub(crate) async fn start(to: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, is_open) = watch::channel(true);
        let connections = Arc::new(Mutex::new(Vec::<AbortHandle>::new()));
        let (all, to) = (connections.clone(), to.to_owned());
        tokio::spawn(async move {
            loop {
                let (mut from, _) = listener.accept().await.unwrap();
                if !*is_open.borrow() {
                    continue; // closed at once
                }
                let to = to.clone();
                let connection = tokio::spawn(async move {
                    let mut to = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut from, &mut to).await
                });
                all.lock().unwrap().push(connection.abort_handle());
            }
        });
        Proxy { address, open, connections }
    }

    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
        self.connections.lock().unwrap().drain(..).for_each(|connection| connection.abort());
    }

    pub(crate) fn heal(&self) {
        self.open.send_replace(true);
    }
}
