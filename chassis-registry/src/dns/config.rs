//! The settings: the DNS servers, and the names that belong to each service.
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    str::FromStr,
};

use chassis_core::{
    settings::Problem,
    units::{PositiveSpan, Span},
};
use hickory_resolver::proto::rr::Name;
use serde::Deserialize;

/// The names that are looked up, and how: the `registry` table if its `kind` is `dns`.
///
/// ```yaml
/// registry:
///   kind: dns
///   host: "{service}.shop.svc.cluster.local"  # for every service, with the ports below
///   ports: { grpc: 50051, http: 8080 }
///   services:
///     billing: { srv: { grpc: _grpc._tcp.billing.example.com } }
///     search: { host: search.example.com, ports: { http: 80 } }
/// ```
///
/// `host`, `ports`, `srv` and `services` can change while the process runs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DnsConfig {
    /// Addresses of DNS servers, `ip` or `ip:port`; the port's default is 53. Default none: the servers, the search
    /// list and `ndots` of the system (`/etc/resolv.conf`), which is read again when it changes. With `servers`,
    /// every name is a whole one.
    pub servers: Vec<String>,
    /// The name whose A and AAAA records are the hosts of a service; `{service}` stands for its name. Default
    /// `{service}`.
    pub host: String,
    /// The port of each listener at `host`: `grpc: 50051`. Default none: the hosts of a service are not looked up.
    pub ports: BTreeMap<String, NonZeroU16>,
    /// The name of the SRV records of each listener: `grpc: _grpc._tcp.{service}.example.com`. They contain
    /// port, priority and weight. Default none.
    pub srv: BTreeMap<String, String>,
    /// Services whose names or ports differ. Default none.
    pub services: BTreeMap<String, DnsService>,
    /// The addresses of a host that are used. Default `both`: each of its addresses is an instance.
    pub family: Family,
    /// A name is not looked up more often than this, even if its TTL is shorter. Default `1s`.
    pub min_ttl: PositiveSpan,
    /// A name is looked up again after this time at the latest, even if its TTL is longer. Default `5m`.
    pub max_ttl: PositiveSpan,
    /// A name is looked up again up to this much later than its TTL, at random, so that processes do not query
    /// at the same time. Default `500ms`.
    pub jitter: Span,
    /// The time in which a server must answer. A query is repeated once, to another server if there is one.
    /// Default `2s`.
    pub timeout: PositiveSpan,
}

/// One service of a [`DnsConfig`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DnsService {
    /// The name whose A and AAAA records are its hosts. Default: the `host` of all services.
    pub host: Option<String>,
    /// The port of each listener. Default: the `ports` of all services, unless `srv` is set here.
    pub ports: BTreeMap<String, NonZeroU16>,
    /// The name of the SRV records of each listener. Default: the `srv` of all services, unless `ports` is set here.
    pub srv: BTreeMap<String, String>,
}

/// The addresses of a host that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Family {
    /// A and AAAA records.
    #[default]
    Both,
    /// A records.
    Ipv4,
    /// AAAA records.
    Ipv6,
}

/// The names that are looked up for one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Queries {
    /// The name of its hosts, and the port of each listener there.
    pub(super) hosts: Option<(String, Vec<(String, NonZeroU16)>)>,
    /// The name of the SRV records of each listener.
    pub(super) srv: Vec<(String, String)>,
}

/// The placeholder for the name of a service.
const SERVICE: &str = "{service}";
/// The port of DNS.
const PORT: u16 = 53;

// === impl DnsConfig ===

impl Default for DnsConfig {
    fn default() -> Self {
        DnsConfig {
            servers: Vec::new(),
            host: SERVICE.to_owned(),
            ports: BTreeMap::new(),
            srv: BTreeMap::new(),
            services: BTreeMap::new(),
            family: Family::Both,
            min_ttl: PositiveSpan::from_millis(1_000),
            max_ttl: PositiveSpan::from_millis(300_000),
            jitter: Span(std::time::Duration::from_millis(500)),
            timeout: PositiveSpan::from_millis(2_000),
        }
    }
}

impl DnsConfig {
    /// The names that are looked up for `service`. `None` if there are none, because it has no ports and no SRV
    /// records here, or its name cannot be part of a DNS name.
    pub(super) fn queries(&self, service: &str) -> Option<Queries> {
        let own = self.services.get(service);
        let (ports, srv) = match own {
            Some(own) if !own.ports.is_empty() || !own.srv.is_empty() => (&own.ports, &own.srv),
            _ => (&self.ports, &self.srv),
        };
        let host = own.and_then(|own| own.host.as_ref()).unwrap_or(&self.host);
        let name = |template: &str| {
            // Dots in it would lead to another part of the tree.
            let is_label = |part: &str| !part.is_empty() && !part.contains(['.', '\\', '/', ' ']);
            match template.contains(SERVICE) {
                true if !is_label(service) => None,
                _ => Some(template.replace(SERVICE, service)).filter(|name| Name::from_utf8(name).is_ok()),
            }
        };
        let hosts = match ports.is_empty() {
            true => None,
            false => {
                let ports = ports.iter().map(|(listener, port)| (listener.clone(), *port)).collect();
                Some((name(host)?, ports))
            }
        };
        let srv: Option<Vec<_>> =
            srv.iter().map(|(listener, srv)| Some((listener.clone(), name(srv)?))).collect();
        let queries = Queries { hosts, srv: srv? };
        (queries.hosts.is_some() || !queries.srv.is_empty()).then_some(queries)
    }

    /// The addresses of `servers`, or the index of an invalid one.
    pub(super) fn addresses(&self) -> Result<Vec<SocketAddr>, (usize, String)> {
        let all = self.servers.iter().enumerate();
        all.map(|(at, server)| {
            address(server).ok_or_else(|| (at, format!("`{server}`: write ip or ip:port")))
        })
        .collect()
    }

    pub(super) fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Err((at, why)) = self.addresses() {
            problems.push(Problem::new(format!("servers[{at}]"), why));
        }
        if self.min_ttl > self.max_ttl {
            problems.push(Problem::new("max_ttl", format!("`min_ttl` is longer: {}", self.min_ttl)));
        }
        let mut check_name = |path: String, name: &str| {
            let example = name.replace(SERVICE, "x");
            if example.is_empty() || Name::from_utf8(&example).is_err() {
                problems.push(Problem::new(path, format!("`{name}` is no name of DNS")));
            }
        };
        check_name("host".to_owned(), &self.host);
        self.srv.iter().for_each(|(listener, name)| check_name(format!("srv.{listener}"), name));
        for (service, own) in &self.services {
            if let Some(host) = &own.host {
                check_name(format!("services.{service}.host"), host);
            }
            own.srv.iter().for_each(|(listener, name)| {
                check_name(format!("services.{service}.srv.{listener}"), name);
            });
        }
        if self.ports.is_empty() && self.srv.is_empty() {
            if self.services.is_empty() {
                let message = "no service can be found: set `ports` or `srv`, for all or for some `services`";
                problems.push(Problem::new("", message));
            }
            let without = self.services.iter().filter(|(_, own)| own.ports.is_empty() && own.srv.is_empty());
            problems.extend(without.map(|(service, _)| {
                Problem::new(format!("services.{service}"), "`ports` or `srv` has to be set")
            }));
        }
        problems
    }
}

fn address(server: &str) -> Option<SocketAddr> {
    let ip = server.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(server);
    match IpAddr::from_str(ip) {
        Ok(ip) => Some(SocketAddr::new(ip, PORT)),
        Err(_) => server.parse().ok().filter(|address: &SocketAddr| address.port() != 0),
    }
}

// === impl Family ===

impl Family {
    /// Whether IPv6, and then IPv4 addresses are used.
    pub(super) fn versions(self) -> &'static [IpVersion] {
        match self {
            Family::Both => &[IpVersion::V4, IpVersion::V6],
            Family::Ipv4 => &[IpVersion::V4],
            Family::Ipv6 => &[IpVersion::V6],
        }
    }
}

/// A records or AAAA records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum IpVersion {
    V4,
    V6,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DnsConfig {
        serde_json::from_str(json).unwrap()
    }

    #[track_caller]
    fn check(json: &str, expected: &[&str]) {
        let found: Vec<_> = config(json).check().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{json}");
    }

    #[test]
    fn what_can_not_work_is_refused() {
        check(r#"{ "ports": { "grpc": 1 } }"#, &[]);
        check(r#"{}"#, &[": no service can be found: set `ports` or `srv`, for all or for some `services`"]);
        check(r#"{ "services": { "a": {} } }"#, &["services.a: `ports` or `srv` has to be set"]);
        check(
            r#"{ "servers": ["::1", "[::1]", "[::1]:5", "1.2.3.4", "1.2.3.4:5", "dns.example"], "ports": { "g": 1 } }"#,
            &["servers[5]: `dns.example`: write ip or ip:port"],
        );
        check(r#"{ "ports": { "g": 1 }, "host": "" }"#, &["host: `` is no name of DNS"]);
        check(
            r#"{ "services": { "a": { "host": "a..b", "ports": { "g": 1 } } } }"#,
            &["services.a.host: `a..b` is no name of DNS"],
        );
        check(
            r#"{ "ports": { "g": 1 }, "min_ttl": "2s", "max_ttl": "1s" }"#,
            &["max_ttl: `min_ttl` is longer: 2s"],
        );
        for unknown in [r#"{ "port": 1 }"#, r#"{ "ports": { "g": 0 } }"#, r#"{ "family": "ipv5" }"#] {
            assert!(serde_json::from_str::<DnsConfig>(unknown).is_err(), "{unknown}");
        }
    }

    #[test]
    fn a_service_has_its_own_names_or_those_of_all() {
        let config = config(
            r#"{ "host": "{service}.shop.test", "ports": { "grpc": 1 }, "srv": { "http": "_http._tcp.{service}.test" },
                 "services": { "a": { "host": "b.test" }, "b": { "srv": { "grpc": "_b.test" } },
                               "c d": { "host": "c.test", "ports": { "http": 80 } } } }"#,
        );
        let queries = |service: &str| {
            config.queries(service).map(|queries| {
                let hosts = queries.hosts.map(|(name, ports)| format!("{name} {ports:?}"));
                let srv: Vec<_> =
                    queries.srv.iter().map(|(listener, name)| format!("{listener} {name}")).collect();
                (hosts.unwrap_or_default(), srv.join(", "))
            })
        };
        let found = |hosts: &str, srv: &str| Some((hosts.to_owned(), srv.to_owned()));
        assert_eq!(queries("x"), found(r#"x.shop.test [("grpc", 1)]"#, "http _http._tcp.x.test"));
        assert_eq!(queries("a"), found(r#"b.test [("grpc", 1)]"#, "http _http._tcp.a.test"));
        assert_eq!(queries("b"), found("", "grpc _b.test"));
        assert_eq!(queries("c d"), found(r#"c.test [("http", 80)]"#, ""));
        for odd in ["", "a.b", "..", "a b", "a\\.b", &"x".repeat(64)] {
            assert_eq!(queries(odd), None, "{odd}");
        }
    }
}
