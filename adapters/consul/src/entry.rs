//! How an instance stands in Consul: as a service of the agent, with what other programs read where they look for it.
//!
//! Each part stands where Consul has a place for it: the name, one address, further ones as tagged addresses, the weight, and
//! labels as metadata and as tags. What does not fit stands as JSON in the metadata.
use std::collections::BTreeMap;

use chassis_core::registry::{Instance, RegistryError, Status};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::settings::{Check, ConsulConfig, GrpcCheck, HttpCheck, Warning};

/// An instance, ready to be registered.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    /// Consul's id of the service, which is unique for the agent.
    pub(crate) id: String,
    /// The id of its check.
    pub(crate) check: String,
    /// The status that its process reports: `passing`, or `warning` while it takes no calls.
    pub(crate) status: &'static str,
    /// The body of the registration.
    pub(crate) body: Value,
}

/// An entry of the health API.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Listed {
    node: ListedNode,
    service: ListedService,
    #[serde(default)]
    checks: Option<Vec<ListedCheck>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedNode {
    #[serde(default)]
    node: String,
    #[serde(default)]
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedService {
    #[serde(rename = "ID")]
    id: String,
    service: String,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    address: String,
    #[serde(default)]
    port: u16,
    #[serde(default)]
    socket_path: String,
    #[serde(default)]
    tagged_addresses: Option<BTreeMap<String, Tagged>>,
    #[serde(default)]
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    weights: Option<Weights>,
    #[serde(default)]
    modify_index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Tagged {
    address: String,
    port: u16,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: u32,
    warning: u32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedCheck {
    status: String,
}

/// The worst of the checks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Passing,
    Warning,
    Critical,
}

/// An instance that was read, and its place among others of the same id.
pub(crate) struct Read {
    pub(crate) instance: Instance,
    /// Of two with the same id, the later one counts.
    pub(crate) modified: u64,
}

/// The bytes that stand in a name unchanged.
const ESCAPED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Metadata: the id of the instance. An entry that has it was written by chassis.
const ID: &str = "chassis-id";
/// Metadata: the registration that an entry is of.
pub(crate) const OWNER: &str = "chassis-owner";
/// Metadata: JSON of what has no other place; continued in `chassis-more-1` and so on.
const MORE: &str = "chassis-more";
/// Fields of an instance that stand in the metadata by their names.
const FIELDS: [&str; 6] = ["version", "zone", "region", "hostname", "app", "environment"];
/// The bounds that Consul sets to metadata.
const MAX_KEY: usize = 128;
const MAX_VALUE: usize = 512;
/// Consul takes 64 keys; those of chassis itself are among the rest.
const MAX_LABELS: usize = 40;
/// So many keys may continue what has no other place.
const MAX_MORE: usize = 16;
/// The weights that Consul takes.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=65_535;
/// Tagged addresses that Consul makes itself.
const OWN_ADDRESSES: [&str; 8] =
    ["lan", "lan_ipv4", "lan_ipv6", "wan", "wan_ipv4", "wan_ipv6", "virtual", "consul-virtual"];

/// The name in Consul of `service`. Names of letters, digits, `-`, `_` and `.` stand as they are.
pub(crate) fn name(service: &str) -> String {
    match service.bytes().all(|byte| byte == b'.') {
        true => service.replace('.', "%2E"), // it would lead elsewhere in a path
        false => utf8_percent_encode(service, &ESCAPED).to_string(),
    }
}

/// The service of a name in Consul.
pub(crate) fn service_of(name: &str) -> Option<String> {
    percent_decode_str(name).decode_utf8().ok().map(|name| name.into_owned())
}

// === impl Definition ===

impl Definition {
    /// `instance`, as `owner` registers it.
    ///
    /// # Errors
    /// It does not fit into Consul's metadata, or has no address that the check needs.
    pub(crate) fn new(
        instance: &Instance,
        owner: &str,
        config: &ConsulConfig,
    ) -> Result<Self, RegistryError> {
        let wrong = |why: String| RegistryError::new(format!("instance `{}`: {why}", instance.id));
        let name = name(&instance.service);
        let id = format!("{name}:{}", utf8_percent_encode(&instance.id, &ESCAPED));
        let check = format!("chassis:{id}");
        let Ok(Value::Object(mut rest)) = serde_json::to_value(instance) else {
            return Err(wrong("it can't be written as JSON".to_owned()));
        };
        rest.remove("id");
        rest.remove("service");
        let mut meta = Map::new();
        let mut put = |key: &str, value: &str| meta.insert(key.to_owned(), value.into());
        put(ID, &instance.id);
        put(OWNER, owner);
        if instance.id.len() > MAX_VALUE {
            return Err(wrong(format!("an id has at most {MAX_VALUE} bytes in Consul")));
        }
        for field in FIELDS {
            if let Some(Value::String(value)) = rest.get(field)
                && value.len() <= MAX_VALUE
            {
                put(field, value);
                rest.remove(field);
            }
        }

        let mut tags = config.tags.clone();
        if let Some(Value::Object(labels)) = rest.get_mut("labels") {
            let mut room = MAX_LABELS;
            labels.retain(|label, value| {
                let value = value.as_str().unwrap_or_default();
                if room == 0 || !is_plain(label) || value.len() > MAX_VALUE {
                    return true;
                }
                room -= 1;
                put(label, value);
                tags.push(format!("{label}={value}"));
                false
            });
        }

        let mut tagged = Map::new();
        let mut first: Option<(usize, String, u16)> = None;
        if let Some(Value::Object(addresses)) = rest.get_mut("addresses") {
            addresses.retain(|listener, address| {
                let Some((host, port)) = address.as_str().and_then(split) else { return true };
                if OWN_ADDRESSES.contains(&listener.as_str()) {
                    return true;
                }
                // What a program uses that looks for one address: HTTP rather than gRPC, and others last.
                let rank = ["http", "grpc"].iter().position(|it| it == listener).unwrap_or(2);
                if first.as_ref().is_none_or(|(other, ..)| rank < *other) {
                    first = Some((rank, host.to_owned(), port));
                }
                tagged.insert(listener.clone(), json!({ "Address": host, "Port": port }));
                false
            });
        }
        rest.retain(|_, value| !value.as_object().is_some_and(Map::is_empty));

        let weight = u64::from(instance.weight);
        if WEIGHTS.contains(&weight) {
            rest.remove("weight");
        }
        let passing = weight.clamp(*WEIGHTS.start(), *WEIGHTS.end());
        // Others that look for services see by it that this one takes no calls; it is there, so not critical.
        let is_up = *instance.status() == Status::Up;
        let status = if is_up { "passing" } else { "warning" };
        if !rest.is_empty() {
            let more = Value::Object(rest).to_string();
            let pieces = pieces(&more);
            if pieces.len() > MAX_MORE {
                return Err(wrong(format!("{} bytes of it have no place in Consul's metadata", more.len())));
            }
            for (n, piece) in pieces.into_iter().enumerate() {
                meta.insert(more_key(n), piece.into());
            }
        }
        let mut body = json!({
            "ID": id,
            "Name": name,
            "Tags": tags,
            "TaggedAddresses": tagged,
            "Meta": meta,
            "Weights": { "Passing": passing, "Warning": if is_up { 1 } else { passing } },
            "Check": of_check(instance, &check, status, config).map_err(wrong)?,
        });
        if let Some((_, host, port)) = first {
            body["Address"] = host.into();
            body["Port"] = port.into();
        }
        Ok(Definition { id, check, status, body })
    }
}

/// The definition of the check.
fn of_check(instance: &Instance, id: &str, status: &str, config: &ConsulConfig) -> Result<Value, String> {
    let address = |listener: &str| {
        let address = instance.addresses.get(listener).filter(|address| split(address).is_some());
        address.ok_or_else(|| format!("its check needs a TCP address of the listener `{listener}`"))
    };
    let seconds = |span: std::time::Duration| format!("{}ms", span.as_millis());
    let mut check = match &config.check {
        Check::Ttl(ttl) => json!({ "TTL": seconds(ttl.get()) }),
        Check::Http(HttpCheck { path, interval, timeout }) => json!({
            "HTTP": format!("http://{}{path}", address("http")?),
            "Interval": seconds(interval.get()),
            "Timeout": seconds(timeout.get()),
        }),
        Check::Grpc(GrpcCheck { service, interval, timeout }) => json!({
            "GRPC": match service.is_empty() {
                true => address("grpc")?.to_owned(),
                false => format!("{}/{service}", address("grpc")?),
            },
            "Interval": seconds(interval.get()),
            "Timeout": seconds(timeout.get()),
        }),
    };
    check["CheckID"] = id.into();
    check["Name"] = "chassis".into();
    // A process registers once it serves.
    check["Status"] = status.into();
    if !config.deregister_after.0.is_zero() {
        check["DeregisterCriticalServiceAfter"] = seconds(config.deregister_after.0).into();
    }
    Ok(check)
}

/// Can a label stand in the metadata by its name?
fn is_plain(label: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=MAX_KEY).contains(&label.len())
        && label.bytes().all(is_word)
        && !FIELDS.contains(&label)
        && !["chassis-", "consul-"].iter().any(|own| label.starts_with(own))
}

/// Host and port of a TCP address that is written in the usual way. Consul has IPv6 addresses without brackets.
fn split(address: &str) -> Option<(&str, u16)> {
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (join(host, port) == address).then_some((host, port))
}

fn join(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// `text` in pieces that fit into one value of the metadata each.
fn pieces(text: &str) -> Vec<&str> {
    let (mut rest, mut pieces) = (text, Vec::new());
    while !rest.is_empty() {
        let end = (0..=rest.len().min(MAX_VALUE)).rev().find(|end| rest.is_char_boundary(*end));
        let (piece, after) = rest.split_at(end.unwrap_or(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

fn more_key(n: usize) -> String {
    match n {
        0 => MORE.to_owned(),
        n => format!("{MORE}-{n}"),
    }
}

// === impl Listed ===

impl Listed {
    /// Its name for messages: the node and the id there.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.node.node, self.service.id).escape_debug().to_string()
    }

    /// The instance of `service`. `None`: its checks say that it is not to be called, or its name is another one.
    ///
    /// # Errors
    /// Why it is none, or can't be called.
    pub(crate) fn read(self, service: &str, config: &ConsulConfig) -> Result<Option<Read>, RegistryError> {
        let health = self.health();
        // Consul compares names without regard to their case.
        if self.service.service != name(service)
            || health == Health::Critical
            || (health == Health::Warning && config.warning == Warning::Skip)
        {
            return Ok(None);
        }
        let modified = self.service.modify_index;
        let mut object = match self.service.meta.as_ref().is_some_and(|meta| meta.contains_key(ID)) {
            true => self.own(health)?,
            false => self.foreign(health, config),
        };
        object.insert("service".to_owned(), service.into());
        let instance: Instance = serde_json::from_value(Value::Object(object))
            .map_err(|error| RegistryError::new(error.to_string()))?;
        instance.check_for(service)?;
        Ok(Some(Read { instance, modified }))
    }

    fn health(&self) -> Health {
        let of = |check: &ListedCheck| match check.status.as_str() {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            _ => Health::Critical, // also maintenance
        };
        self.checks.iter().flatten().map(of).max().unwrap_or(Health::Passing)
    }

    fn weight(&self, health: Health) -> u32 {
        match (&self.service.weights, health) {
            (Some(weights), Health::Warning) => weights.warning,
            (Some(weights), _) => weights.passing,
            (None, _) => 1,
        }
    }

    /// The fields of one that chassis wrote.
    fn own(self, health: Health) -> Result<Map<String, Value>, RegistryError> {
        let weight = self.weight(health);
        let mut meta = self.service.meta.unwrap_or_default();
        let more: String = (0..).map_while(|n| meta.remove(&more_key(n))).collect();
        let mut object = match more.is_empty() {
            true => Map::new(),
            false => serde_json::from_str(&more)
                .map_err(|error| RegistryError::new(format!("the metadata `{MORE}`: {error}")))?,
        };
        if !object.contains_key("weight") {
            object.insert("weight".to_owned(), weight.into());
        }
        object.insert("id".to_owned(), meta.remove(ID).unwrap_or_default().into());
        let is_tagged = |name: &String| !OWN_ADDRESSES.contains(&name.as_str());
        let tagged = self.service.tagged_addresses.unwrap_or_default().into_iter();
        let addresses = tagged.filter(|(name, _)| is_tagged(name));
        extend(&mut object, "addresses", addresses.map(|(name, it)| (name, join(&it.address, it.port))))?;
        take_fields(&mut object, &mut meta);
        meta.retain(|key, _| !key.starts_with("chassis-"));
        extend(&mut object, "labels", meta)?;
        Ok(object)
    }

    /// The fields of one that another program wrote.
    fn foreign(self, health: Health, config: &ConsulConfig) -> Map<String, Value> {
        let (mut object, place) = (Map::new(), self.place());
        object.insert("id".to_owned(), place.into());
        object.insert("weight".to_owned(), self.weight(health).into());
        let ListedService { tags, address, port, socket_path, tagged_addresses, meta, .. } = self.service;
        let tagged = tagged_addresses.unwrap_or_default().into_iter();
        let mut addresses: BTreeMap<String, String> = tagged
            .filter(|(name, _)| config.protocols.contains(name))
            .map(|(name, it)| (name, join(&it.address, it.port)))
            .collect();
        if addresses.is_empty() {
            let address = match (socket_path.is_empty(), address.is_empty()) {
                (false, _) => format!("unix:{socket_path}"),
                (true, false) => join(&address, port),
                (true, true) => join(&self.node.address, port),
            };
            addresses.extend(config.protocols.iter().map(|protocol| (protocol.clone(), address.clone())));
        }
        object.insert("addresses".to_owned(), json!(addresses));
        let mut meta = meta.unwrap_or_default();
        take_fields(&mut object, &mut meta);
        // A tag is a label as well; metadata say more.
        let mut labels = BTreeMap::new();
        for tag in tags.unwrap_or_default() {
            let (name, value) = tag.split_once('=').unwrap_or((&tag, "true"));
            labels.insert(name.to_owned(), value.to_owned());
        }
        labels.extend(meta);
        object.insert("labels".to_owned(), json!(labels));
        object
    }
}

fn take_fields(object: &mut Map<String, Value>, meta: &mut BTreeMap<String, String>) {
    for field in FIELDS {
        if let Some(value) = meta.remove(field) {
            object.insert(field.to_owned(), value.into());
        }
    }
}

/// Adds `all` to the object below `key`.
fn extend(
    object: &mut Map<String, Value>,
    key: &str,
    all: impl IntoIterator<Item = (String, String)>,
) -> Result<(), RegistryError> {
    let below = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
    let below = below.as_object_mut();
    let below =
        below.ok_or_else(|| RegistryError::new(format!("the metadata `{MORE}`: `{key}` is no map")))?;
    below.extend(all.into_iter().map(|(name, value)| (name, value.into())));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entry that Consul lists of a registration.
    fn listed(body: &Value, status: &str) -> Value {
        json!({
            "Node": { "Node": "n1", "Address": "10.0.0.1" },
            "Service": {
                "ID": body["ID"], "Service": body["Name"], "Tags": body["Tags"], "Meta": body["Meta"],
                "Address": body.get("Address").cloned().unwrap_or("".into()),
                "Port": body.get("Port").cloned().unwrap_or(0.into()),
                "TaggedAddresses": body["TaggedAddresses"], "Weights": body["Weights"], "ModifyIndex": 7,
            },
            "Checks": [{ "Status": "passing" }, { "Status": status }],
        })
    }

    fn read(value: Value, service: &str, config: &ConsulConfig) -> Result<Option<Instance>, String> {
        let listed: Listed = serde_json::from_value(value).unwrap();
        let read = listed.read(service, config).map_err(|error| error.to_string())?;
        Ok(read.map(|read| read.instance))
    }

    fn stock() -> Instance {
        Instance::new("stock", "stock-1").with_address("grpc", "10.0.0.5:50051").with_label("track", "stable")
    }

    #[test]
    fn names_hold_any_service() {
        assert_eq!(name("stock.v1.Stock"), "stock.v1.Stock");
        for service in ["stock", "..", "../x", "/", "naïve 名", "a\nb", "%2e", "."] {
            let name = name(service);
            assert!(!name.bytes().all(|byte| byte == b'.') && !name.contains('/'), "{name}");
            assert_eq!(service_of(&name).as_deref(), Some(service));
        }
    }

    #[test]
    fn others_find_what_they_know() {
        let config = ConsulConfig { tags: vec!["blue".into()], ..ConsulConfig::default() };
        let stock = stock().with_address("http", "[::1]:8080").with_weight(3).with_version("1.4.0");
        let Definition { id, check, body, .. } = Definition::new(&stock, "me", &config).unwrap();
        assert_eq!((id.as_str(), check.as_str()), ("stock:stock-1", "chassis:stock:stock-1"));
        assert_eq!(
            body,
            json!({
                "ID": "stock:stock-1", "Name": "stock", "Tags": ["blue", "track=stable"],
                "Address": "::1", "Port": 8080,
                "TaggedAddresses": {
                    "grpc": { "Address": "10.0.0.5", "Port": 50051 }, "http": { "Address": "::1", "Port": 8080 } },
                "Meta": {
                    "chassis-id": "stock-1", "chassis-owner": "me", "version": "1.4.0", "track": "stable" },
                "Weights": { "Passing": 3, "Warning": 1 },
                "Check": {
                    "CheckID": "chassis:stock:stock-1", "Name": "chassis", "TTL": "10000ms", "Status": "passing",
                    "DeregisterCriticalServiceAfter": "60000ms" },
            })
        );
        assert_eq!(read(listed(&body, "passing"), "stock", &config), Ok(Some(stock)));
    }

    #[test]
    fn an_instance_is_read_as_it_was_written() {
        let config = ConsulConfig::default();
        let long = "ü".repeat(700);
        let odd = stock()
            .with_address("line", "unix:/run/stock line.sock")
            .with_address("lan", "10.0.0.5:1")
            .with_label("π \"quoted\"", "")
            .with_label("version", "of the label")
            .with_label("chassis-id", "mine")
            .with_label("long", long.as_str())
            .with_weight(0)
            .with_version(long)
            .with_zone("eu")
            .with_region("europe")
            .with_priority(3)
            .with_status(Status::OutOfService)
            .with_other("gpu", json!({ "count": 2 }));
        let mut other = odd.clone();
        other.id = "/ %".into();
        for instance in [stock(), odd, other, stock().with_weight(u32::MAX)] {
            let body = Definition::new(&instance, "me", &config).unwrap().body;
            for (key, value) in body["Meta"].as_object().unwrap() {
                let value = value.as_str().unwrap();
                assert!(value.len() <= MAX_VALUE && is_plain(&format!("x{key}")), "{key}: {value}");
            }
            assert_eq!(read(listed(&body, "passing"), "stock", &config), Ok(Some(instance)));
        }
        let many = (0..60).fold(stock(), |stock, n| stock.with_label(format!("l{n}"), "x"));
        let body = Definition::new(&many, "me", &config).unwrap().body;
        assert!(body["Meta"].as_object().unwrap().len() <= 64);
        assert_eq!(read(listed(&body, "passing"), "stock", &config), Ok(Some(many)));
        let huge = stock().with_label("huge", "x".repeat(10_000));
        let error = Definition::new(&huge, "me", &config).unwrap_err().to_string();
        assert!(error.contains("have no place in Consul's metadata"), "{error}");
    }

    #[test]
    fn a_check_has_the_address_of_its_listener() {
        let stock = stock().with_address("http", "[::1]:80");
        let check = |check| {
            let config = ConsulConfig { check, ..ConsulConfig::default() };
            Definition::new(&stock, "me", &config).map(|definition| definition.body["Check"].clone())
        };
        assert_eq!(check(Check::http("/healthz")).unwrap()["HTTP"], "http://[::1]:80/healthz");
        assert_eq!(check(Check::grpc()).unwrap()["GRPC"], "10.0.0.5:50051");
        let of = GrpcCheck { service: "stock.v1.Stock".into(), ..GrpcCheck::default() };
        assert_eq!(check(Check::Grpc(of)).unwrap()["GRPC"], "10.0.0.5:50051/stock.v1.Stock");
        let config = ConsulConfig { check: Check::http("/"), ..ConsulConfig::default() };
        let grpc = Instance::new("stock", "a").with_address("grpc", "h:1");
        let error = Definition::new(&grpc, "me", &config).unwrap_err().to_string();
        assert!(error.contains("listener `http`"), "{error}");
    }

    #[test]
    fn checks_say_what_is_called() {
        let call = ConsulConfig::default();
        let skip = ConsulConfig { warning: Warning::Skip, ..ConsulConfig::default() };
        let body = Definition::new(&stock().with_weight(8), "me", &call).unwrap().body;
        let weight = |status: &str, config| {
            read(listed(&body, status), "stock", config).unwrap().map(|instance| instance.weight)
        };
        assert_eq!((weight("passing", &call), weight("passing", &skip)), (Some(8), Some(8)));
        assert_eq!((weight("warning", &call), weight("warning", &skip)), (Some(1), None));
        assert_eq!((weight("critical", &call), weight("maintenance", &call)), (None, None));
        assert_eq!(read(listed(&body, "passing"), "Stock", &call), Ok(None));
    }

    #[test]
    fn entries_of_others_are_instances_too() {
        let config = ConsulConfig::default();
        let foreign = |service: Value| json!({ "Node": { "Node": "n1", "Address": "10.0.0.1" }, "Service": service, "Checks": null });
        let found = read(
            foreign(json!({
                "ID": "stock", "Service": "stock", "Port": 80, "Tags": ["blue", "track=canary", "zone=x"],
                "Meta": { "track": "stable", "version": "2" }, "Weights": { "Passing": 5, "Warning": 1 },
                "TaggedAddresses": { "lan_ipv4": { "Address": "10.0.0.9", "Port": 80 } },
            })),
            "stock",
            &config,
        );
        let expected = Instance::new("stock", "n1/stock")
            .with_address("grpc", "10.0.0.1:80")
            .with_address("http", "10.0.0.1:80")
            .with_label("blue", "true")
            .with_label("track", "stable")
            .with_label("zone", "x")
            .with_weight(5)
            .with_version("2");
        assert_eq!(found, Ok(Some(expected)));
        let one = json!({
            "ID": "x", "Service": "stock", "Port": 80, "Address": "h",
            "TaggedAddresses": { "grpc": { "Address": "h", "Port": 81 } } });
        let found = read(foreign(one), "stock", &config).unwrap().unwrap();
        assert_eq!((found.addresses.get("grpc"), found.addresses.get("http")), (Some("h:81"), None));
        for (service, why) in [
            (json!({ "ID": "x", "Service": "stock" }), "port 0"),
            (json!({ "ID": "x", "Service": "stock", "Address": "a b", "Port": 1 }), "no name"),
            (
                json!({ "ID": "x", "Service": "stock", "Meta": { "chassis-id": "x", "chassis-more": "{" } }),
                "chassis-more",
            ),
            (json!({ "ID": "x", "Service": "stock", "Meta": { "chassis-id": "" } }), "no id"),
        ] {
            let error = read(foreign(service.clone()), "stock", &config).unwrap_err();
            assert!(error.contains(why), "{service}: {error}");
        }
    }
}
