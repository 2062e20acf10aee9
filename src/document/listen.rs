//! The addresses that a service listens at.
use std::{collections::BTreeMap, fmt, path::PathBuf, str::FromStr};

use chassis_config::Finding;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The `listen` table: an address by the name of what is served there; `grpc` and `http` are the usual names.
///
/// Several names may have one address: they share the port. Default none.
///
/// Two names are chassis' own: `admin`, the admin surface (default: `127.0.0.1:9900`, or the next free port; `off` for
/// none), and `probes`, the part of it that every peer may read (default `off`). They share no port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Listen(
    #[cfg_attr(feature = "cli", schemars(with = "BTreeMap<String, String>"))] pub BTreeMap<String, Address>,
);

/// An address to listen at: `host:port`, `[v6]:port`, `unix:/path`, or `memory:name` within the process. Port 0
/// means any free port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A host, or an interface's address, and a port.
    Tcp {
        /// Without the brackets of IPv6.
        host: String,
        /// 0 means any free port.
        port: u16,
    },
    /// A Unix socket.
    Unix(PathBuf),
    /// A name within the process: for tests, and for services that share one process.
    Memory(String),
    /// Nothing listens: `off`, for `admin` and `probes`.
    Off,
}

/// The listeners of the admin surface, which programs serve nothing at.
pub(crate) const OWN: [&str; 2] = ["admin", "probes"];

// === impl Listen ===

impl Listen {
    /// Reports addresses that can't be bound together.
    pub fn check(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut earlier: Vec<(&String, &Address)> = Vec::new();
        for (name, address) in &self.0 {
            let is_own = |name: &str| OWN.contains(&name);
            if *address == Address::Off && !is_own(name) {
                let message = "only `admin` and `probes` can be `off`; leave the name out";
                found.push(Finding::error(format!("listen.{name}"), message));
            }
            let shares = |(other, theirs): &&(&String, &Address)| {
                *theirs == address && address.is_one() && (is_own(name) || is_own(other))
            };
            if let Some((other, _)) = earlier.iter().find(shares) {
                let message = format!("this is the address of `{other}`; `admin` and `probes` share no port");
                found.push(Finding::error(format!("listen.{name}"), message));
            }
            if let Some((other, theirs)) = earlier.iter().find(|(_, theirs)| address.overlaps(theirs)) {
                let message = format!(
                    "this and `{theirs}` of `{other}` are two values for one address; write the same for both, \
                     or another port"
                );
                found.push(Finding::error(format!("listen.{name}"), message));
            }
            earlier.push((name, address));
        }
        found
    }
}

// === impl Address ===

impl Address {
    /// Whether it stands for one place, where only one listener can be.
    fn is_one(&self) -> bool {
        !matches!(self, Address::Tcp { port: 0, .. } | Address::Off)
    }

    /// Whether one of them is all interfaces and the other one an interface, on the same port.
    fn overlaps(&self, other: &Address) -> bool {
        let (Address::Tcp { host: a, port: p }, Address::Tcp { host: b, port: q }) = (self, other) else {
            return false;
        };
        let all = |host: &str| matches!(host, "0.0.0.0" | "::");
        p == q && *p != 0 && a != b && (all(a) || all(b))
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // YAML 1.1 reads `off` as `false`.
        if matches!(text, "off" | "false") {
            return Ok(Address::Off);
        }
        if let Some(path) = text.strip_prefix("unix:").or_else(|| text.starts_with('/').then_some(text)) {
            return match path.is_empty() {
                true => Err(format!("`{text}` has no path; write unix:/run/orders.sock")),
                false => Ok(Address::Unix(path.into())),
            };
        }
        if let Some(name) = text.strip_prefix("memory:") {
            return match name.is_empty() {
                true => Err(format!("`{text}` has no name; write memory:orders")),
                false => Ok(Address::Memory(name.into())),
            };
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(match text.parse::<u16>() {
                Ok(port) => format!("`{text}` has no host; write 0.0.0.0:{port} or 127.0.0.1:{port}"),
                Err(_) => format!("`{text}` has no port; write {text}:8080"),
            });
        };
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let Ok(port) = port.parse() else {
            return Err(format!("`{port}` is no port; they go from 1 to 65535, and 0 is any free one"));
        };
        match inner.unwrap_or(host) {
            "" => Err(format!("`{text}` has no host; write 0.0.0.0:{port} or 127.0.0.1:{port}")),
            v6 if inner.is_none() && v6.contains(':') => {
                Err(format!("an IPv6 address stands in brackets: [{v6}]:{port}"))
            }
            host if host.contains(char::is_whitespace) => Err(format!("`{host}` is no host")),
            host => Ok(Address::Tcp { host: host.into(), port }),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Memory(name) => write!(f, "memory:{name}"),
            Address::Off => f.write_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for text in ["0.0.0.0:8080", "[::1]:0", "localhost:1", "unix:/run/a.sock", "memory:orders-1", "off"] {
            assert_eq!(text.parse::<Address>().map(|a| a.to_string()), Ok(text.to_string()));
        }
        for (text, why) in [
            ("8080", "`8080` has no host; write 0.0.0.0:8080 or 127.0.0.1:8080"),
            (":8080", "`:8080` has no host; write 0.0.0.0:8080 or 127.0.0.1:8080"),
            ("localhost", "`localhost` has no port; write localhost:8080"),
            ("a:70000", "`70000` is no port; they go from 1 to 65535, and 0 is any free one"),
            ("::1:80", "an IPv6 address stands in brackets: [::1]:80"),
            ("unix:", "`unix:` has no path; write unix:/run/orders.sock"),
            ("memory:", "`memory:` has no name; write memory:orders"),
        ] {
            assert_eq!(text.parse::<Address>(), Err(why.to_string()));
        }
    }

    #[track_caller]
    fn check(addresses: &[&str], findings: usize) {
        let address = |(i, a): (usize, &&str)| (i.to_string(), a.parse().expect("it is one"));
        assert_eq!(Listen(addresses.iter().enumerate().map(address).collect()).check().len(), findings);
    }

    #[test]
    fn one_port_is_shared_by_one_address_only() {
        check(&["0.0.0.0:80", "0.0.0.0:80"], 0);
        check(&["10.0.0.1:80", "10.0.0.2:80"], 0);
        check(&["0.0.0.0:0", "127.0.0.1:0"], 0);
        check(&["0.0.0.0:80", "127.0.0.1:80"], 1);
        check(&["[::]:80", "127.0.0.1:80", "127.0.0.1:81"], 1);
    }

    #[test]
    fn the_admin_surface_shares_no_port_and_can_be_off() {
        let found = |of: &[(&str, &str)]| {
            let address =
                |(name, address): &(&str, &str)| ((*name).to_owned(), address.parse().expect("it is one"));
            Listen(of.iter().map(address).collect()).check().len()
        };
        assert_eq!(found(&[("admin", "off"), ("probes", "off"), ("http", "a:80")]), 0);
        assert_eq!(found(&[("http", "off")]), 1);
        assert_eq!(found(&[("admin", "a:80"), ("http", "a:80")]), 1);
        assert_eq!(found(&[("admin", "a:80"), ("probes", "a:80")]), 1);
        assert_eq!(found(&[("admin", "a:0"), ("probes", "a:0"), ("http", "a:0")]), 0);
        assert_eq!(found(&[("admin", "memory:a"), ("http", "memory:a")]), 1);
    }
}
