//! The connector: TLS by rustls, with aws-lc-rs, which is passed explicitly and never made the default of the process.
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::files;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::{Pem, TlsConfig};
use crate::{
    HttpVersion,
    net::{Connector, Stream},
};

/// Speaks TLS on the streams of another connector.
struct TlsConnector {
    config: TlsConfig,
    version: HttpVersion,
    inner: Arc<dyn Connector>,
    kept: Mutex<Kept>,
}

/// The files of the last connection.
#[derive(Default)]
struct Kept {
    loaded: Option<Loaded>,
    /// The last reason why they could not be read, which is logged once.
    failed: Option<String>,
    /// The failed handshakes: a call only states that there is no connection.
    refused: Refused,
}

/// The last failure of each address, which is logged once.
#[derive(Default)]
struct Refused(BTreeMap<String, String>);

#[derive(Clone)]
struct Loaded {
    pems: Pems,
    client: Arc<ClientConfig>,
}

/// The contents of the files.
#[derive(Clone, PartialEq, Eq)]
struct Pems {
    ca: Vec<u8>,
    identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Failures are remembered for so many addresses.
const MAX_REFUSED: usize = 256;
/// A larger file is refused.
const MAX_FILE: u64 = 4 << 20;

/// Can this build do it?
pub(super) fn check() -> Result<(), String> {
    Ok(())
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    name_of(name).map(drop)
}

pub(super) fn connector(
    config: TlsConfig,
    version: HttpVersion,
    inner: Arc<dyn Connector>,
) -> Arc<dyn Connector> {
    Arc::new(TlsConnector { config, version, inner, kept: Mutex::default() })
}

/// The host of `host:port`.
fn host_of(address: &str) -> &str {
    let host =
        address.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn name_of(name: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(name.to_owned()).map_err(|_| format!("`{name}` is neither a name nor an address"))
}

// === impl TlsConnector ===

#[async_trait]
impl Connector for TlsConnector {
    async fn connect(&self, address: &str) -> io::Result<Stream> {
        self.connect_within(address, Duration::MAX).await
    }

    async fn connect_within(&self, address: &str, budget: Duration) -> io::Result<Stream> {
        let name = match &self.config.server_name {
            Some(name) => name_of(name),
            None if address.starts_with("unix:") || address.starts_with("memory:") => {
                Err(format!("`{address}` has no name that a certificate could have: set `tls.server_name`"))
            }
            None => name_of(host_of(address)),
        };
        let name = name.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        let client = self.client().await.inspect_err(|error| self.log(address, error))?;
        let stream = self.inner.connect_within(address, budget).await?;
        let stream = self.shake(client, name, stream).await.inspect_err(|error| self.log(address, error))?;
        self.kept().refused.0.remove(address);
        Ok(stream)
    }

    fn is_secure(&self) -> bool {
        true
    }
}

impl TlsConnector {
    /// The settings of rustls, from the files as they are now.
    async fn client(&self) -> io::Result<Arc<ClientConfig>> {
        let config = self.config.clone();
        let read = tokio::task::spawn_blocking(move || Pems::read(&config)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        let mut kept = self.kept();
        if let (Ok(pems), Some(loaded)) = (&read, &kept.loaded)
            && loaded.pems == *pems
        {
            let client = loaded.client.clone();
            kept.failed = None;
            return Ok(client);
        }
        let loaded = read.and_then(|pems| {
            let client = Arc::new(pems.client(&self.config, self.version)?);
            Ok(Loaded { pems, client })
        });
        match (loaded, &kept.loaded) {
            (Ok(loaded), _) => {
                let client = loaded.client.clone();
                (kept.loaded, kept.failed) = (Some(loaded), None);
                Ok(client)
            }
            (Err(why), Some(last)) => {
                let client = last.client.clone();
                if kept.failed.as_ref() != Some(&why) {
                    tracing::warn!(target: "chassis", why, "TLS goes on with the last certificates");
                    kept.failed = Some(why);
                }
                Ok(client)
            }
            (Err(why), None) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("TLS: {why}"))),
        }
    }

    async fn shake(
        &self,
        client: Arc<ClientConfig>,
        name: ServerName<'static>,
        stream: Stream,
    ) -> io::Result<Stream> {
        let peer = stream.peer().clone();
        let shaken = tokio_rustls::TlsConnector::from(client).connect(name, stream).await;
        let stream = shaken.map_err(|error| self.explain(error))?;
        let chosen = stream.get_ref().1.alpn_protocol();
        // Without a choice it is HTTP/1.1.
        if self.version == HttpVersion::Two && chosen != Some(b"h2") {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "TLS: the server does not speak HTTP/2"));
        }
        Ok(Stream::new(stream, peer))
    }

    fn log(&self, address: &str, error: &io::Error) {
        let why = format!("{address}: {error}");
        if self.kept().refused.is_new(address, &why) {
            tracing::warn!(target: "chassis", why, "no connection by TLS");
        }
    }

    /// Adds the file, or the setting, that an error of a handshake is about.
    fn explain(&self, error: io::Error) -> io::Error {
        let hint = match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(why)) => match why {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    let ca = self.config.ca.as_ref().map(ToString::to_string).unwrap_or_default();
                    format!("; no authority in {ca} signed it")
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "; `tls.server_name` can name another one".to_owned()
                }
                _ => String::new(),
            },
            Some(rustls::Error::AlertReceived(alert)) => match (alert, &self.config.cert) {
                (AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure, None) => {
                    "; it may want a certificate: set `tls.cert` and `tls.key`".to_owned()
                }
                (_, Some(cert)) => format!("; the certificate of this process is that of {cert}"),
                _ => String::new(),
            },
            _ => String::new(),
        };
        io::Error::new(error.kind(), format!("TLS: {error}{hint}"))
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Refused ===

impl Refused {
    /// Remembers the failure; whether it is another one than the last of this address. Forgets one of another address if
    /// there are too many.
    fn is_new(&mut self, address: &str, why: &str) -> bool {
        if self.0.get(address).is_some_and(|last| last == why) {
            return false;
        }
        if self.0.len() >= MAX_REFUSED && !self.0.contains_key(address) {
            self.0.pop_first();
        }
        self.0.insert(address.to_owned(), why.to_owned());
        true
    }
}

// === impl Pems ===

impl Pems {
    /// Blocks, for a short time.
    fn read(config: &TlsConfig) -> Result<Self, String> {
        let Some(ca) = &config.ca else { return Err("`tls.ca` is not set".to_owned()) };
        let identity = match (&config.cert, &config.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        Ok(Pems { ca: read(ca)?, identity })
    }

    fn client(&self, config: &TlsConfig, version: HttpVersion) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| error.to_string())?;
        let mut roots = RootCertStore::empty();
        for (n, one) in certificates(&self.ca, &config.ca)?.into_iter().enumerate() {
            let added = roots.add(one);
            added.map_err(|error| format!("{}: certificate {}: {error}", name(&config.ca), n + 1))?;
        }
        let builder = builder.with_root_certificates(roots);
        let mut client = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = certificates(cert, &config.cert)?;
                let key = PrivateKeyDer::from_pem_slice(key)
                    .map_err(|error| format!("{}: it holds no private key: {error}", name(&config.key)))?;
                let matched = builder.with_client_auth_cert(chain, key);
                matched
                    .map_err(|error| format!("{} and {}: {error}", name(&config.cert), name(&config.key)))?
            }
        };
        client.alpn_protocols = vec![match version {
            HttpVersion::One => b"http/1.1".to_vec(),
            HttpVersion::Two => b"h2".to_vec(),
        }];
        Ok(client)
    }
}

fn name(pem: &Option<Pem>) -> String {
    pem.as_ref().map(ToString::to_string).unwrap_or_default()
}

fn read(pem: &Pem) -> Result<Vec<u8>, String> {
    let path = match pem {
        Pem::Text(text) => return Ok(text.as_bytes().to_vec()),
        Pem::File(path) => path,
    };
    files::read(path, MAX_FILE).map_err(|error| format!("{pem}: {error}"))
}

/// At least one certificate.
fn certificates(bytes: &[u8], of: &Option<Pem>) -> Result<Vec<CertificateDer<'static>>, String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let all = all.map_err(|error| format!("{}: {error}", name(of)))?;
    if all.is_empty() { Err(format!("{}: it holds no certificate", name(of))) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_server_is_its_host() {
        for (address, host) in [
            ("etcd-0:2379", "etcd-0"),
            ("10.0.0.5:1", "10.0.0.5"),
            ("[::1]:1", "::1"),
            ("[::1]", "::1"),
            ("a", "a"),
        ] {
            assert_eq!(host_of(address), host, "{address}");
            assert!(check_name(host).is_ok(), "{host}");
        }
        assert!(check_name("a b").is_err());
    }

    #[test]
    fn a_failure_is_new_once_for_each_address() {
        let mut refused = Refused::default();
        for is_first in [true, false, false] {
            for address in ["a:1", "b:1", "c:1"] {
                assert_eq!(refused.is_new(address, "expired"), is_first, "{address}");
            }
        }
        assert!(refused.is_new("a:1", "unknown"));
        for n in 0..2 * MAX_REFUSED {
            refused.is_new(&format!("d:{n}"), "expired");
        }
        assert_eq!(refused.0.len(), MAX_REFUSED);
    }

    #[test]
    fn a_file_that_would_block_is_refused() {
        let why = read(&Pem::File("/dev/zero".into())).unwrap_err();
        assert!(why.contains("no regular file"), "{why}");
    }
}
