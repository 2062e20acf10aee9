//! How an instance stands in service center: in its fields where there are fields for it, as other programs read
//! them, and the rest as JSON in its properties.
use std::collections::{BTreeMap, BTreeSet};

use chassis_core::registry::{Instance, RegistryError};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::settings::ServiceCombConfig;

/// A service, as service center tells it apart from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceKey {
    pub(crate) app: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) environment: String,
}

/// An instance, ready to be registered.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) key: ServiceKey,
    /// The body, but for the generation.
    body: Value,
}

/// An entry that the server lists.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listed {
    pub(crate) instance_id: String,
    #[serde(default)]
    endpoints: Option<Vec<String>>,
    #[serde(default)]
    host_name: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    properties: Option<BTreeMap<String, String>>,
    #[serde(default)]
    data_center_info: Option<DataCenter>,
    #[serde(default)]
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DataCenter {
    #[serde(default)]
    region: String,
    #[serde(default)]
    available_zone: String,
}

/// An instance that was read, and its place among others of the same id.
pub(crate) struct Read {
    pub(crate) instance: Instance,
    /// Of two with the same id, the later one counts.
    pub(crate) generation: u64,
}

/// The property with the id. An entry that has it was written by chassis.
const ID: &str = "chassis-id";
/// The property that orders entries of the same id: microseconds since 1970.
const GENERATION: &str = "chassis-generation";
/// The property with JSON of what has no other place.
const MORE: &str = "chassis-more";
/// Properties that begin so are no labels.
const OWN: &str = "chassis-";
/// A name that service center would not take stands in hexadecimal digits behind this.
const ODD: &str = "chassis-x-";
/// The bounds that service center sets.
const MAX_NAME: usize = 128;
const MAX_HOST: usize = 64;
/// The version of a service whose version service center would not take: that of go-chassis.
const VERSION: &str = "0.0.1";
/// The name that stands where service center demands one and there is none.
const UNNAMED: &str = "default";

/// The name in service center of `service`.
///
/// # Errors
/// It would be longer than service center takes.
pub(crate) fn name(service: &str) -> Result<String, RegistryError> {
    let name = match is_plain(service) && !service.starts_with(ODD) {
        true => service.to_owned(),
        false => format!("{ODD}{}", hexadecimal(service.as_bytes())),
    };
    match name.len() <= MAX_NAME {
        true => Ok(name),
        false => Err(RegistryError::new(format!(
            "service `{}`: its name has more bytes than service center takes",
            service.escape_debug()
        ))),
    }
}

/// Two digits for each byte.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The service of a name in service center.
pub(crate) fn service_of(name: &str) -> Option<String> {
    let Some(digits) = name.strip_prefix(ODD) else { return Some(name.to_owned()) };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let byte = |pair: &[u8]| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    };
    let bytes: Option<Vec<u8>> = digits.as_bytes().chunks(2).map(byte).collect();
    String::from_utf8(bytes?).ok()
}

/// Letters, digits, and within also `_`, `-` and `.`.
pub(crate) fn is_plain(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    name.bytes().all(is_inner) && is_outer(name.as_bytes().first()) && is_outer(name.as_bytes().last())
}

/// One to four numbers.
pub(crate) fn is_version(version: &str) -> bool {
    let is_number = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<i16>().is_ok()
    };
    version.split('.').count() <= 4 && version.split('.').all(is_number)
}

/// The listener of an endpoint's scheme. go-chassis calls HTTP `rest`.
fn listener(scheme: &str) -> &str {
    if scheme == "rest" { "http" } else { scheme }
}

/// The endpoint of a listener, if it can be written as one.
fn endpoint(listener: &str, address: &str) -> Option<String> {
    let scheme = if listener == "http" { "rest" } else { listener };
    let is_scheme = scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        && scheme.as_bytes().first().is_some_and(u8::is_ascii_alphabetic);
    let is_possible = is_scheme && listener != "rest" && !address.starts_with("unix:");
    is_possible.then(|| format!("{scheme}://{address}"))
}

/// The address of an endpoint such as `rest://10.0.0.5:8080?sslEnabled=false`. `None`: it can't be called.
fn address(endpoint: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = endpoint.split_once("://")?;
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    // Who listens with TLS there can't be called without.
    let is_secure = query.split('&').any(|pair| pair.eq_ignore_ascii_case("sslEnabled=true"));
    let address = address.split('/').next()?;
    (!is_secure && !address.is_empty()).then(|| (listener(scheme), address))
}

// === impl ServiceKey ===

impl ServiceKey {
    /// The service of `name`, in the application and the environment of the settings.
    pub(crate) fn new(config: &ServiceCombConfig, name: String, version: &str) -> Self {
        let version = if is_version(version) { version } else { numbers(version) };
        ServiceKey {
            app: config.app.clone(),
            name,
            version: version.to_owned(),
            environment: config.environment.clone(),
        }
    }

    pub(crate) fn body(&self) -> Value {
        json!({
            "appId": self.app,
            "serviceName": self.name,
            "version": self.version,
            "environment": self.environment,
            "registerBy": "SDK",
            "framework": { "name": "chassis", "version": env!("CARGO_PKG_VERSION") },
        })
    }
}

/// The numbers that a version begins with: `1.4.0` of `1.4.0-rc.1`.
fn numbers(version: &str) -> &str {
    let end = version.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(version.len());
    let numbers = version[..end].trim_end_matches('.');
    if is_version(numbers) { numbers } else { VERSION }
}

// === impl Definition ===

impl Definition {
    /// `instance`, as it is registered.
    ///
    /// # Errors
    /// Service center does not take the name of the service.
    pub(crate) fn new(instance: &Instance, config: &ServiceCombConfig) -> Result<Self, RegistryError> {
        let key = ServiceKey::new(config, name(&instance.service)?, &instance.version);
        let Ok(Value::Object(mut whole)) = serde_json::to_value(instance) else {
            return Err(RegistryError::new(format!(
                "instance `{}`: it can't be written as JSON",
                instance.id
            )));
        };
        whole.remove("service");
        let text = |key: &str| whole.get(key).and_then(Value::as_str).unwrap_or_default();
        let endpoints: Vec<_> =
            instance.addresses.iter().filter_map(|(name, address)| endpoint(name, address)).collect();
        let is_host =
            |host: &str| !host.is_empty() && host.len() <= MAX_HOST && !host.contains(char::is_whitespace);
        // It has to be there. Where the process does not know it, its address is the next best.
        let first = endpoints.first().and_then(|endpoint| address(endpoint)).map(|(_, address)| address);
        let host = first.and_then(|address| address.rsplit_once(':')).map(|(host, _)| host);
        let host =
            [text("hostname"), host.unwrap_or_default(), UNNAMED].into_iter().find(|host| is_host(host));
        let mut properties = BTreeMap::from([(ID.to_owned(), instance.id.clone())]);
        let labels = instance.labels.iter().filter(|(name, _)| !name.starts_with(OWN));
        properties.extend(labels.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let status = match text("status") {
            "" => "UP",
            "out_of_service" => "OUTOFSERVICE",
            "down" => "DOWN",
            _ => "STARTING", // also what only chassis knows: others are not to call it
        };
        let mut body = json!({
            "hostName": host.unwrap_or(UNNAMED),
            "endpoints": endpoints,
            "status": status,
            "version": key.version,
            "healthCheck": {
                "mode": "push", "interval": config.heartbeat.get().as_secs(), "times": config.misses },
        });
        let (region, zone) = (text("region"), text("zone"));
        let place = |name: &str| match name.len() <= MAX_NAME && is_plain(name) {
            true => name.to_owned(),
            false => UNNAMED.to_owned(),
        };
        if !region.is_empty() || !zone.is_empty() {
            body["dataCenterInfo"] =
                json!({ "name": place(region), "region": place(region), "availableZone": place(zone) });
        }
        body["properties"] = json!(properties);
        // What a reader of these fields would not know.
        let listed = Listed { instance_id: String::new(), ..from_body(&body)? };
        let native = listed.native();
        let keys: BTreeSet<_> = whole.keys().chain(native.keys()).cloned().collect();
        let differs = keys.into_iter().filter(|key| whole.get(key) != native.get(key));
        let more: Map<_, _> =
            differs.map(|key| (key.clone(), whole.get(&key).cloned().unwrap_or(Value::Null))).collect();
        if !more.is_empty() {
            body["properties"][MORE] = Value::Object(more).to_string().into();
        }
        Ok(Definition { key, body })
    }

    /// The body of a registration. An `id` of the server is kept.
    pub(crate) fn registration(&self, id: Option<&str>, generation: u64) -> Value {
        let mut instance = self.body.clone();
        instance["properties"][GENERATION] = generation.to_string().into();
        if let Some(id) = id {
            instance["instanceId"] = id.into();
        }
        json!({ "instance": instance })
    }

    /// The properties alone.
    pub(crate) fn properties(&self, generation: u64) -> Value {
        let mut properties = self.body["properties"].clone();
        properties[GENERATION] = generation.to_string().into();
        json!({ "properties": properties })
    }

    pub(crate) fn status(&self) -> &str {
        self.body["status"].as_str().unwrap_or_default()
    }

    /// Can an entry of this definition become one of `other`? Only the properties and the status can be changed.
    pub(crate) fn can_become(&self, other: &Definition) -> bool {
        let fixed = ["hostName", "endpoints", "healthCheck", "dataCenterInfo"];
        self.key == other.key && fixed.iter().all(|field| self.body.get(field) == other.body.get(field))
    }

    pub(crate) fn has_properties_of(&self, other: &Definition) -> bool {
        self.body["properties"] == other.body["properties"]
    }
}

fn from_body(body: &Value) -> Result<Listed, RegistryError> {
    let mut body = body.clone();
    body["instanceId"] = "".into();
    serde_json::from_value(body).map_err(|error| RegistryError::new(error.to_string()))
}

// === impl Listed ===

impl Listed {
    /// The instance of `service`.
    ///
    /// # Errors
    /// Why it is none, or can't be called.
    pub(crate) fn read(self, service: &str) -> Result<Read, RegistryError> {
        let property = |name: &str| self.properties.as_ref().and_then(|all| all.get(name));
        let generation = property(GENERATION).and_then(|number| number.parse().ok()).unwrap_or(0);
        let mut object = self.native();
        if let Some(more) = property(MORE).filter(|_| property(ID).is_some()) {
            let more: Map<String, Value> = serde_json::from_str(more)
                .map_err(|error| RegistryError::new(format!("the property `{MORE}`: {error}")))?;
            for (key, value) in more {
                // The status that somebody has set at the server is the newer one.
                if key == "status" && self.status != "STARTING" {
                    continue;
                }
                match value {
                    Value::Null => drop(object.remove(&key)),
                    value => drop(object.insert(key, value)),
                }
            }
        }
        object.insert("service".to_owned(), service.into());
        let instance: Instance = serde_json::from_value(Value::Object(object))
            .map_err(|error| RegistryError::new(error.to_string()))?;
        instance.check_for(service)?;
        Ok(Read { instance, generation })
    }

    /// The fields of an instance that stand where every program reads them.
    fn native(&self) -> Map<String, Value> {
        let none = BTreeMap::new();
        let properties = self.properties.as_ref().unwrap_or(&none);
        let mut object = Map::new();
        let id = properties.get(ID).unwrap_or(&self.instance_id);
        object.insert("id".to_owned(), id.as_str().into());
        let place = self.data_center_info.as_ref();
        let (region, zone) =
            place.map_or(("", ""), |place| (place.region.as_str(), place.available_zone.as_str()));
        let status = match self.status.as_str() {
            "" | "UP" | "TESTING" => "",
            "OUTOFSERVICE" => "out_of_service",
            "STARTING" => "starting",
            "DOWN" => "down",
            other => other,
        };
        let texts = [
            ("version", self.version.as_str()),
            ("hostname", &self.host_name),
            ("region", region),
            ("zone", zone),
            ("status", status),
        ];
        for (key, value) in texts.into_iter().filter(|(_, value)| !value.is_empty()) {
            object.insert(key.to_owned(), value.into());
        }
        let mut addresses = BTreeMap::new();
        for (listener, address) in self.endpoints.iter().flatten().filter_map(|endpoint| address(endpoint)) {
            addresses.entry(listener).or_insert(address);
        }
        object.insert("addresses".to_owned(), json!(addresses));
        let labels: BTreeMap<_, _> = properties.iter().filter(|(name, _)| !name.starts_with(OWN)).collect();
        if !labels.is_empty() {
            object.insert("labels".to_owned(), json!(labels));
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::registry::Status;

    use super::*;

    #[test]
    fn names_hold_any_service() {
        assert_eq!(name("stock.v1.Stock").unwrap(), "stock.v1.Stock");
        for service in ["stock", "..", "../x", "/", "naïve 名", "a\nb", "%2e", "-x", "chassis-x-00", "a:b"]
        {
            let name = name(service).unwrap();
            assert!(is_plain(&name), "{name}");
            assert_eq!(service_of(&name).as_deref(), Some(service));
        }
        assert!(name(&"x".repeat(128)).is_ok() && name(&"x".repeat(129)).is_err());
        for wrong in ["chassis-x-0", "chassis-x-0g", "chassis-x-ff", "chassis-x-é"] {
            assert_eq!(service_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_version_is_of_numbers() {
        for (version, written) in [
            ("1.4.0", "1.4.0"),
            ("1.4.0-rc.1+build", "1.4.0"),
            ("2", "2"),
            ("1.2.3.4.5", VERSION),
            ("99999.1", VERSION),
            ("v1", VERSION),
            ("1.-2", "1"),
            ("", VERSION),
        ] {
            let key = ServiceKey::new(&ServiceCombConfig::default(), "stock".into(), version);
            assert_eq!(key.version, written, "{version}");
            assert!(is_version(&key.version));
        }
    }

    /// The part of a registration that the server lists.
    fn listed(instance: &Instance, config: &ServiceCombConfig) -> Listed {
        let definition = Definition::new(instance, config).unwrap();
        let mut body = definition.registration(Some("i1"), 7)["instance"].clone();
        body["version"] = definition.key.version.into();
        serde_json::from_value(body).unwrap()
    }

    #[test]
    fn an_instance_is_read_as_it_was_written() {
        let config = ServiceCombConfig::default();
        let stock = Instance::new("stock", "stock-1").with_address("grpc", "10.0.0.5:50051");
        let odd = stock
            .clone()
            .with_address("line", "unix:/run/stock line.sock")
            .with_address("rest", "10.0.0.5:1")
            .with_address("two words", "10.0.0.5:2")
            .with_address("http", "[::1]:80")
            .with_label("chassis-id", "mine")
            .with_label("π", "")
            .with_weight(0)
            .with_version("1.4.0-rc.1")
            .with_zone("eu west")
            .with_hostname("x".repeat(65))
            .with_app("shop")
            .with_environment("staging")
            .with_status("warming_up".to_owned().into())
            .with_other("gpu", json!({ "count": 2 }));
        let placed = stock.clone().with_region("eu").with_zone("eu-1").with_hostname("node-7");
        let status = stock.clone().with_status(Status::OutOfService);
        for instance in [stock, odd, placed, status] {
            let read = listed(&instance, &config).read("stock").unwrap();
            assert_eq!((read.instance, read.generation), (instance, 7));
        }
    }

    #[test]
    fn a_status_that_was_set_at_the_server_counts() {
        let config = ServiceCombConfig::default();
        let warming =
            Instance::new("stock", "a").with_address("grpc", "h:1").with_status("warming".to_owned().into());
        for (set, status) in
            [("STARTING", "warming".to_owned().into()), ("UP", Status::Up), ("DOWN", Status::Down)]
        {
            let mut listed = listed(&warming, &config);
            assert_eq!(listed.status, "STARTING");
            listed.status = set.to_owned();
            assert_eq!(*listed.read("stock").unwrap().instance.status(), status, "{set}");
        }
    }
}
