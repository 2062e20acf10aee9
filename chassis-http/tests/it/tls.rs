//! TLS to servers: certificates that are trusted and others, files that are replaced, both versions of HTTP.
use std::{fs, io, path::Path, sync::Arc};

use chassis_core::{
    Body, Link,
    protocol::{Leaf, Transport},
};
use chassis_core::{Random, tasks::Tasks};
use chassis_http::{
    ClientConfig, HttpTransport, HttpVersion, ServerConfig,
    connector::{Acceptor, Connector, Listener, Network, Pem, Stream, TlsConfig, contract::connector},
    server::{Answer, Mux, Received, Server, ServerBody},
};
use http::{Method, Request, Response};
use rustls::{
    RootCertStore, ServerConfig as Rustls,
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::AbortHandle};
use tokio_rustls::TlsAcceptor;

use crate::{
    certificates::{Authority, Identity},
    support::{Client, call},
};

/// The server's side of TLS.
struct Tls(TlsAcceptor);

/// Accepts streams with their handshakes in the background.
struct TlsListener {
    address: String,
    accepted: mpsc::UnboundedReceiver<Stream>,
    task: AbortHandle,
}

impl Tls {
    /// Shows `identity`. With `clients`, a client has to show a certificate of that authority.
    fn new(identity: &Identity, alpn: &[&str], clients: Option<&Path>) -> Self {
        let provider = Arc::new(default_provider());
        let builder =
            Rustls::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(ca) => {
                let mut roots = RootCertStore::empty();
                roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let chain = vec![CertificateDer::from_pem_file(&identity.cert).unwrap()];
        let mut config =
            builder.with_single_cert(chain, PrivateKeyDer::from_pem_file(&identity.key).unwrap()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Tls(TlsAcceptor::from(Arc::new(config)))
    }

    async fn listen(self) -> TlsListener {
        let mut listener = Network::default().bind("127.0.0.1:0").await.unwrap();
        let address = listener.address();
        let (to, accepted) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            let tls = Arc::new(self);
            while let Ok(stream) = listener.accept().await {
                let (tls, to) = (tls.clone(), to.clone());
                tokio::spawn(async move {
                    if let Ok(stream) = tls.accept(stream).await {
                        let _ = to.send(stream);
                    }
                });
            }
        });
        TlsListener { address, accepted, task: task.abort_handle() }
    }
}

#[async_trait::async_trait]
impl Acceptor for Tls {
    async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let peer = stream.peer().clone();
        Ok(Stream::new(self.0.accept(stream).await?, peer))
    }
}

#[async_trait::async_trait]
impl Listener for TlsListener {
    async fn accept(&mut self) -> io::Result<Stream> {
        self.accepted.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    fn address(&self) -> String {
        self.address.clone()
    }
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An authority, and a server of it that speaks both versions of HTTP.
struct World {
    folder: TempDir,
    authority: Authority,
    server: Identity,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "authority");
        let server = authority.server("server");
        World { folder, authority, server }
    }

    fn config(&self) -> TlsConfig {
        TlsConfig::new(&self.authority.ca)
    }

    async fn listen(&self) -> TlsListener {
        Tls::new(&self.server, &["h2", "http/1.1"], None).listen().await
    }
}

fn over(config: &TlsConfig, version: HttpVersion) -> Arc<dyn Connector> {
    config.connector(version, Arc::new(Network::default())).unwrap()
}

/// The error of a connection.
async fn refused(config: &TlsConfig, address: &str) -> String {
    over(config, HttpVersion::One).connect(address).await.unwrap_err().to_string()
}

#[tokio::test]
async fn tls_is_a_connector() {
    let world = World::new();
    for version in [HttpVersion::One, HttpVersion::Two] {
        connector(&*over(&world.config(), version), Box::new(world.listen().await)).await;
    }
    assert!(rustls::crypto::CryptoProvider::get_default().is_none(), "the process has no provider by us");
}

#[tokio::test]
async fn errors_name_the_file_and_the_cause() {
    let world = World::new();
    let listener = world.listen().await;
    let at = listener.address();
    let stranger = Authority::new(world.folder.path(), "stranger");
    let check = |error: String, words: &[&str]| {
        for word in words {
            assert!(error.contains(word), "{word} is not in: {error}");
        }
    };
    check(refused(&TlsConfig::new(&stranger.ca), &at).await, &["UnknownIssuer", "stranger.pem"]);
    check(refused(&TlsConfig::new("/no/such.pem"), &at).await, &["/no/such.pem", "No such file"]);
    check(refused(&TlsConfig::new(&world.server.key), &at).await, &["server.key", "no certificate"]);
    let named = |name: &str| TlsConfig { server_name: Some(name.to_owned()), ..world.config() };
    check(refused(&named("orders"), &at).await, &["orders", "tls.server_name"]);
    assert!(over(&named("localhost"), HttpVersion::One).connect(&at).await.is_ok());
    let client = world.authority.client("client", &[]);
    let mixed = world.config().with_identity(&client.cert, &world.server.key);
    check(refused(&mixed, &at).await, &["client.crt", "server.key"]);
    let swapped = world.config().with_identity(&client.cert, &client.cert);
    check(refused(&swapped, &at).await, &["client.crt", "no private key"]);
    check(refused(&world.config(), "unix:/no/socket").await, &["tls.server_name"]);

    let expired = Tls::new(&world.authority.expired("expired"), &[], None).listen().await;
    check(refused(&world.config(), &expired.address()).await, &["xpired"]);
    let plain = Network::default().bind("127.0.0.1:0").await.unwrap();
    let address = plain.address();
    tokio::spawn(async move {
        let mut plain = plain;
        while let Ok(mut stream) = plain.accept().await {
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    check(refused(&world.config(), &address).await, &["TLS: "]);
    let old = Tls::new(&world.server, &["http/1.1"], None).listen().await;
    let two = over(&world.config(), HttpVersion::Two).connect(&old.address()).await.unwrap_err().to_string();
    check(two, &["TLS: "]);
}

#[tokio::test]
async fn files_are_read_anew_for_each_connection() {
    let world = World::new();
    let ca = world.folder.path().join("ca.pem");
    fs::copy(&world.authority.ca, &ca).unwrap();
    let (first, old) = (world.listen().await, over(&TlsConfig::new(&ca), HttpVersion::Two));
    assert!(old.connect(&first.address()).await.is_ok());

    // Files that are half written leave the last certificates in place.
    for broken in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n"] {
        fs::write(&ca, broken).unwrap();
        assert!(old.connect(&first.address()).await.is_ok(), "{broken:?}");
    }
    let next = Authority::new(world.folder.path(), "next");
    let second = Tls::new(&next.server("second"), &["h2"], None).listen().await;
    assert!(old.connect(&second.address()).await.is_err());
    fs::copy(&next.ca, &ca).unwrap();
    assert!(old.connect(&second.address()).await.is_ok());
    assert!(old.connect(&first.address()).await.is_err(), "the old authority is no longer trusted");
}

#[tokio::test]
async fn a_text_stands_for_a_file_and_is_not_shown() {
    let world = World::new();
    let text = |path: &Path| Some(Pem::Text(fs::read_to_string(path).unwrap().into()));
    let client = world.authority.client("client", &[]);
    let config = TlsConfig {
        ca: text(&world.authority.ca),
        cert: text(&client.cert),
        key: text(&client.key),
        server_name: None,
    };
    let listener = Tls::new(&world.server, &["h2"], Some(&world.authority.ca)).listen().await;
    assert!(over(&config, HttpVersion::Two).connect(&listener.address()).await.is_ok());
    assert!(!format!("{config:?}").contains("BEGIN"));
}

/// Answers with the scheme of the request.
async fn serve(world: &World, clients: bool, tasks: &Tasks) -> String {
    let listener = Network::default().bind("127.0.0.1:0").await.unwrap();
    let address = listener.address();
    let tls = Tls::new(&world.server, &["h2", "http/1.1"], clients.then_some(&*world.authority.ca));
    let service = |request: Request<Received>| -> Answer {
        let scheme = request.uri().scheme_str().unwrap_or("none").to_owned();
        Box::pin(async move { Response::new(ServerBody::from(scheme)) })
    };
    let server = Server::new(ServerConfig::default(), tasks, Random::seeded(1));
    let mux = Mux { http: Some(Arc::new(service)), grpc: None };
    server.serve("https", listener, mux, Some(Arc::new(tls)));
    address
}

fn client(config: &TlsConfig, version: HttpVersion, address: &str, tasks: &Tasks) -> Client<impl Leaf> {
    let settings = ClientConfig { http_version: version, ..ClientConfig::default() };
    let link = Link::detached("stock", address, tasks.clone(), Random::seeded(1));
    let leaf = HttpTransport::new(over(config, version), settings).leaf(link.clone());
    Client { leaf, link }
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_over_tls() {
    let (world, tasks) = (World::new(), Tasks::new());
    let at = serve(&world, false, &tasks).await;
    for (version, scheme) in [(HttpVersion::One, "none"), (HttpVersion::Two, "https")] {
        let client = client(&world.config(), version, &at, &tasks).ready().await;
        assert_eq!(client.get("/scheme").await.unwrap(), format!("200 {scheme}"));
    }
    tasks.end(crate::support::SECOND).await;
}

#[tokio::test]
async fn a_server_asks_for_a_certificate() {
    let (world, tasks) = (World::new(), Tasks::new());
    let at = serve(&world, true, &tasks).await;
    let mine = world.authority.client("client", &[]);
    let shown = world.config().with_identity(&mine.cert, &mine.key);
    for version in [HttpVersion::One, HttpVersion::Two] {
        let good = client(&shown, version, &at, &tasks).ready().await;
        assert!(good.get("/scheme").await.is_ok());
    }
    let leaf = client(&world.config(), HttpVersion::One, &at, &tasks).leaf;
    let failed = leaf.call(call(Method::GET, "/scheme", Body::empty())).await.err().unwrap();
    let why = format!("{:?}", failed.into_error());
    assert!(why.contains("CertificateRequired"), "{why}");
    tasks.end(crate::support::SECOND).await;
}
