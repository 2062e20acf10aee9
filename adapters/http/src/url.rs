//! The URL of a document, taken apart.
use chassis_core::registry::Instance;
use chassis_http::connector::TlsConfig;
use http::{HeaderValue, Uri, uri::PathAndQuery};

/// A document on one server.
#[derive(Clone, Debug)]
pub(crate) struct Url {
    /// For messages: as it is written.
    pub(crate) text: String,
    /// `host:port`.
    pub(crate) address: String,
    /// The host with the port, if that is not the default one: the `host` header.
    pub(crate) host: HeaderValue,
    pub(crate) path: PathAndQuery,
}

const PORT: u16 = 80;
const TLS_PORT: u16 = 443;

// === impl Url ===

impl Url {
    /// # Errors
    /// The fault of it. A user in it is refused, for it would be in every log line.
    pub(crate) fn parse(text: &str, tls: Option<&TlsConfig>) -> Result<Self, String> {
        if text.contains('#') {
            return Err("a fragment is never sent to a server; leave it out".to_owned());
        }
        let uri: Uri = text.parse().map_err(|error| format!("it is no URL: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err("write http://host:port/path".to_owned());
        }
        TlsConfig::without_scheme(tls, text)?;
        let usual = if tls.is_some() { TLS_PORT } else { PORT };
        let authority = uri.authority().ok_or("write http://host:port/path")?;
        if authority.as_str().contains('@') {
            return Err(
                "a user has no place in it; set `user` and `password_file`, or `token_file`".to_owned()
            );
        }
        let (host, port) = (authority.host(), uri.port_u16().unwrap_or(usual));
        let address = format!("{host}:{port}");
        let server = Instance::new("center", "center").with_address("http", address.as_str());
        server.check().map_err(|error| error.to_string())?;
        let header = if port == usual { host } else { &address };
        let host = HeaderValue::from_str(header).map_err(|error| error.to_string())?;
        let path = uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
        Ok(Url { text: text.to_owned(), address, host, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        for (text, address, host, path) in [
            ("http://a", "a:80", "a", "/"),
            ("http://a:80/x.yaml", "a:80", "a", "/x.yaml"),
            ("http://a.b:8080/x/y%20z?q=1&r={2}", "a.b:8080", "a.b:8080", "/x/y%20z?q=1&r={2}"),
            ("http://[::1]:9/x", "[::1]:9", "[::1]:9", "/x"),
        ] {
            let url = Url::parse(text, None).unwrap();
            assert_eq!((url.address.as_str(), url.host.to_str().unwrap()), (address, host), "{text}");
            assert_eq!(url.path.as_str(), path, "{text}");
        }
        for wrong in [
            "",
            "a",
            "a:80",
            "/x",
            "ftp://a/x",
            "https://a/x",
            "http://u:p@a/x",
            "http://a:0/x",
            "http://a/x#y",
        ] {
            assert!(Url::parse(wrong, None).is_err(), "{wrong}");
        }
    }
}
