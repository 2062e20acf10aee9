//! The settings of the admin surface.
use std::{fmt, num::NonZeroUsize, path::PathBuf, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The `admin` table: who may read, and the limits. Its listeners are `listen.admin` and `listen.probes`.
///
/// ```
/// let config = chassis_admin::AdminConfig::default();
/// assert_eq!((config.token_file, config.max_connections.get()), (None, 64));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// A file with the token for reading: 16 to 4096 visible ASCII characters, sent as `Authorization: Bearer …`. A new
    /// content applies within a second. While the file can't be read, no token is right. Default: none; then only peers
    /// on this machine may read.
    pub token_file: Option<PathBuf>,
    /// Names that requests may have in `Host`, besides IP addresses, `localhost` and `service.advertise`:
    /// `orders.example`, or `*.shop.svc` for all below it. Default none.
    #[cfg_attr(feature = "schema", schemars(with = "Vec<String>"))]
    pub hosts: Vec<HostPattern>,
    /// Connections at once, for each of the two listeners. At the limit, a new one closes the one that has been without a
    /// request for longest. Default 64.
    pub max_connections: NonZeroUsize,
}

/// A host name, or `*.` and the end of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern(String);

// === impl AdminConfig ===

impl Default for AdminConfig {
    fn default() -> Self {
        let max_connections = NonZeroUsize::new(64).expect("64 is not 0");
        AdminConfig { token_file: None, hosts: Vec::new(), max_connections }
    }
}

// === impl HostPattern ===

impl HostPattern {
    /// Whether `host`, without a port, is meant.
    pub fn matches(&self, host: &str) -> bool {
        match self.0.strip_prefix('*') {
            // `*.example` is not `.example`.
            Some(end) => host.len() > end.len() && host.to_ascii_lowercase().ends_with(end),
            None => host.eq_ignore_ascii_case(&self.0),
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        match !name.is_empty() && name.chars().all(is_name) && !name.starts_with('.') {
            true => Ok(HostPattern(text.to_ascii_lowercase())),
            false => Err(format!(
                "`{text}` is no name of a host; write orders.example or *.example, without a port"
            )),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for HostPattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_names_and_what_is_below() {
        let matches = |pattern: &str, host| pattern.parse::<HostPattern>().map(|it| it.matches(host));
        assert_eq!(matches("Orders.example", "orders.Example"), Ok(true));
        assert_eq!(matches("orders.example", "a.orders.example"), Ok(false));
        assert_eq!(matches("*.shop.svc", "orders.shop.SVC"), Ok(true));
        assert_eq!(matches("*.shop.svc", "shop.svc"), Ok(false));
        assert_eq!(matches("*.shop.svc", ".shop.svc"), Ok(false));
        assert_eq!(matches("*.shop.svc", "evilshop.svc"), Ok(false));
        for wrong in ["", "*", "*.", "a:80", "http://a", ".a", "a*"] {
            assert!(wrong.parse::<HostPattern>().is_err(), "{wrong}");
        }
    }
}
