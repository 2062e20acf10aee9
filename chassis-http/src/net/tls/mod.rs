//! TLS for connections to servers: the settings, and the connector that they describe.
//!
//! The settings are always there. Without the feature `tls` they are refused, with the name of the feature: who uses
//! them needs no feature of its own.
#[cfg(feature = "tls")]
mod connect;
#[cfg(not(feature = "tls"))]
mod off;

use std::{fmt, path::PathBuf, sync::Arc};

use chassis_core::settings::Problem;
use serde::Deserialize;

#[cfg(feature = "tls")]
use self::connect as built;
#[cfg(not(feature = "tls"))]
use self::off as built;
use super::{Connector, Network};
use crate::HttpVersion;

/// TLS to a server: the `tls` table beside an address.
///
/// The files are PEM. They are read for every new connection, so that they can be replaced while the process runs.
/// If they can't be read then, or do not match each other, the connection uses the last ones that did.
///
/// ```
/// use chassis_http::connector::TlsConfig;
///
/// let config = TlsConfig::new("/etc/etcd/ca.pem");
/// assert_eq!(TlsConfig::without_scheme(Some(&config), "https://etcd-0:2379"), Ok("etcd-0:2379"));
/// assert!(TlsConfig::without_scheme(None, "https://etcd-0:2379").is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct TlsConfig {
    /// The certificates of the authorities that may sign the server's certificate. Required: the system's
    /// authorities are not used.
    pub ca: Option<Pem>,
    /// The certificate of this process, and those between it and its authority. Default: none is shown.
    pub cert: Option<Pem>,
    /// The private key of `cert`.
    pub key: Option<Pem>,
    /// The name that the server's certificate must have. Default: the host of the address.
    pub server_name: Option<String>,
}

/// Certificates, or a key, in the form of PEM. In settings: the path of a file.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(from = "PathBuf")]
#[non_exhaustive]
pub enum Pem {
    /// A file, which may be replaced.
    File(PathBuf),
    /// The text itself. `Debug` does not show it.
    Text(Arc<str>),
}

// === impl TlsConfig ===

impl TlsConfig {
    /// Trusts the authorities in the file `ca`, and shows no certificate.
    pub fn new(ca: impl Into<PathBuf>) -> Self {
        TlsConfig { ca: Some(Pem::File(ca.into())), ..Self::default() }
    }

    /// The same with a certificate of this process and its key, both files.
    pub fn with_identity(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.cert, self.key) = (Some(Pem::File(cert.into())), Some(Pem::File(key.into())));
        self
    }

    /// The problems of the table, without a look into its files. Their paths begin with `tls`.
    pub fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err(why) = built::check() {
            problems.push(Problem::new("tls", why));
        }
        if self.ca.is_none() {
            problems
                .push(Problem::new("tls.ca", "the file with the certificates of the authorities is needed"));
        }
        if self.cert.is_some() && self.key.is_none() {
            problems.push(Problem::new("tls.cert", "`key` has to be set as well"));
        }
        if self.key.is_some() && self.cert.is_none() {
            problems.push(Problem::new("tls.key", "`cert` has to be set as well"));
        }
        if let Some(Err(why)) = self.server_name.as_deref().map(built::check_name) {
            problems.push(Problem::new("tls.server_name", why));
        }
        problems
    }

    /// The address without its scheme. With `tls` it is encrypted, whether it says `https://` or nothing.
    ///
    /// # Errors
    /// `https://` without `tls`, or `http://` with it.
    pub fn without_scheme<'a>(tls: Option<&TlsConfig>, address: &'a str) -> Result<&'a str, String> {
        match (address.strip_prefix("https://"), address.strip_prefix("http://"), tls) {
            (Some(_), _, None) => Err("`https://` needs the table `tls`, with `ca` at least".to_owned()),
            (_, Some(_), Some(_)) => Err("`tls` is set: write `https://`".to_owned()),
            (Some(rest), ..) | (_, Some(rest), _) => Ok(rest),
            (None, None, _) => Ok(address),
        }
    }

    /// The connector to a server: by the network, with TLS where there is a table.
    ///
    /// # Errors
    /// Those of [`connector`](Self::connector).
    pub fn network(tls: Option<&TlsConfig>, version: HttpVersion) -> Result<Arc<dyn Connector>, String> {
        let network = Arc::new(Network::default());
        match tls {
            Some(tls) => tls.connector(version, network),
            None => Ok(network),
        }
    }

    /// A connector that opens streams by `inner`, and speaks TLS on them for this version of HTTP.
    ///
    /// # Errors
    /// The first problem of [`check`](Self::check). The files are read with each connection, and their errors are
    /// those of the connection.
    pub fn connector(
        &self,
        version: HttpVersion,
        inner: Arc<dyn Connector>,
    ) -> Result<Arc<dyn Connector>, String> {
        match self.check().into_iter().next() {
            Some(problem) => Err(problem.to_string()),
            None => Ok(built::connector(self.clone(), version, inner)),
        }
    }
}

// === impl Pem ===

impl From<PathBuf> for Pem {
    fn from(path: PathBuf) -> Self {
        Pem::File(path)
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => f.debug_tuple("File").field(path).finish(),
            Pem::Text(_) => f.write_str("Text(..)"),
        }
    }
}

/// For messages: the path, or a word for the text.
impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => path.display().fmt(f),
            Pem::Text(_) => f.write_str("the given text"),
        }
    }
}
