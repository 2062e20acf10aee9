//! EndpointSlices, and the instances that they are.
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chassis_core::{
    TextMap,
    registry::{Instance, Status},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::settings::KubernetesConfig;

/// A slice, as it is read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) endpoints: Vec<Endpoint>,
    /// Why an endpoint is no instance, by its place.
    pub(crate) refused: Vec<(String, String)>,
}

/// An endpoint that may be called.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Is it ready? Else it is terminating and still serves.
    is_ready: bool,
    family: Family,
    /// The zones that it is meant for.
    hints: Option<Vec<String>>,
    /// The pod, where its labels are wanted.
    pub(crate) pod: Option<PodRef>,
    pub(crate) instance: Arc<Instance>,
}

/// The pod of an endpoint.
#[derive(Debug)]
pub(crate) struct PodRef {
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// Of several addresses of an instance the first of these is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
    Name,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slice {
    address_type: String,
    endpoints: Option<Vec<Box<RawValue>>>,
    ports: Option<Vec<Port>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Port {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
    app_protocol: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    addresses: Vec<String>,
    conditions: Option<Conditions>,
    hostname: Option<String>,
    target_ref: Option<Target>,
    zone: Option<String>,
    hints: Option<Hints>,
}

/// A condition that is left out is not known.
#[derive(Clone, Copy, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Target {
    kind: String,
    name: String,
    uid: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints {
    for_zones: Option<Vec<Zone>>,
}

#[derive(Deserialize)]
struct Zone {
    name: String,
}

/// These characters of a pod's uid distinguish it from another pod of the same name.
const UID: usize = 8;

// === impl Read ===

impl Read {
    /// Reads a slice of `service`.
    pub(crate) fn of(text: &str, service: &str, config: &KubernetesConfig) -> Result<Self, String> {
        let slice: Slice = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let family = match slice.address_type.as_str() {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            "FQDN" => Family::Name,
            other => return Err(format!("its address type `{other}` is not known")),
        };
        let listeners = listeners(&slice.ports.unwrap_or_default(), config);
        let (mut read, is_labelled) = (Read::default(), !config.pod_labels.is_off());
        for (n, text) in slice.endpoints.unwrap_or_default().iter().enumerate() {
            match Endpoint::of(text, family, service, &listeners) {
                Ok(endpoint) => read.endpoints.extend(endpoint.map(|endpoint| match is_labelled {
                    true => endpoint,
                    false => Endpoint { pod: None, ..endpoint },
                })),
                Err(why) => read.refused.push((format!("endpoint {n}"), why)),
            }
        }
        Ok(read)
    }
}

// === impl Endpoint ===

impl Endpoint {
    /// `None`: it is not to be called.
    fn of(
        text: &RawValue,
        family: Family,
        service: &str,
        listeners: &BTreeMap<String, u16>,
    ) -> Result<Option<Self>, String> {
        let written: Written = serde_json::from_str(text.get()).map_err(|error| error.to_string())?;
        let Conditions { ready, serving, terminating } = written.conditions.unwrap_or_default();
        let is_ready = ready.unwrap_or(true);
        if !(is_ready || serving == Some(true) && terminating == Some(true)) {
            return Ok(None);
        }
        if listeners.is_empty() {
            return Err("no port of the slice is that of a listener".to_owned());
        }
        // All addresses of an endpoint are the same process.
        let host = written.addresses.first().ok_or("it has no address")?;
        let target = written.target_ref.filter(|target| !target.name.is_empty());
        let id = match &target {
            Some(Target { name, uid, .. }) => {
                let uid: String = uid.chars().take(UID).collect();
                if uid.is_empty() { name.clone() } else { format!("{name}.{uid}") }
            }
            None => host.clone(),
        };
        let mut instance = Instance::new(service, id);
        for (listener, port) in listeners {
            let address = match family {
                Family::V6 => format!("[{host}]:{port}"),
                Family::V4 | Family::Name => format!("{host}:{port}"),
            };
            instance = instance.with_address(listener.as_str(), address);
        }
        if let Some(zone) = written.zone {
            instance = instance.with_zone(zone);
        }
        if let Some(hostname) = written.hostname.filter(|name| !name.is_empty()) {
            instance = instance.with_hostname(hostname);
        }
        if !is_ready {
            instance = instance.with_status(Status::OutOfService);
        }
        instance.check().map_err(|error| error.to_string())?;
        let zones = written.hints.and_then(|hints| hints.for_zones).filter(|zones| !zones.is_empty());
        let hints = zones.map(|zones| zones.into_iter().map(|zone| zone.name).collect());
        let pod = target.filter(|target| target.kind == "Pod");
        let pod = pod.map(|Target { name, uid, .. }| PodRef { name, uid });
        Ok(Some(Endpoint { is_ready, family, hints, pod, instance: Arc::new(instance) }))
    }

    /// Gives it the labels of its pod; whether they are others than before.
    pub(crate) fn label(&mut self, labels: &TextMap) -> bool {
        let has_changed = self.instance.labels != *labels;
        if has_changed {
            let mut labelled = Instance::clone(&self.instance);
            labelled.labels = labels.clone();
            self.instance = Arc::new(labelled);
        }
        has_changed
    }
}

/// The TCP port of each listener.
fn listeners(ports: &[Port], config: &KubernetesConfig) -> BTreeMap<String, u16> {
    let is_tcp = |port: &&Port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let ports: Vec<(&str, u16, Option<&str>)> = ports
        .iter()
        .filter(is_tcp)
        .filter_map(|port| {
            Some((port.name.as_deref().unwrap_or(""), port.port?, port.app_protocol.as_deref()))
        })
        .collect();
    let mut all = BTreeMap::new();
    for (listener, wanted) in &config.ports {
        let found = ports.iter().find(|(name, number, _)| name == wanted || number.to_string() == *wanted);
        all.extend(found.map(|(_, number, _)| (listener.clone(), *number)));
    }
    let is_set = |listener: &str| config.ports.contains_key(listener);
    for (name, number, _) in &ports {
        if !name.is_empty() && !is_set(name) {
            all.entry((*name).to_owned()).or_insert(*number);
        }
    }
    for (_, number, protocol) in &ports {
        let listener = match *protocol {
            Some("grpc" | "kubernetes.io/h2c") => "grpc",
            Some("http") => "http",
            _ => continue,
        };
        if !is_set(listener) {
            all.entry(listener.to_owned()).or_insert(*number);
        }
    }
    // As service meshes name ports: `grpc-public`.
    for (name, number, _) in &ports {
        if let Some((listener @ ("grpc" | "http"), _)) = name.split_once('-')
            && !is_set(listener)
        {
            all.entry(listener.to_owned()).or_insert(*number);
        }
    }
    if let ([("", number, None)], true) = (&ports[..], all.is_empty()) {
        all.extend(config.protocols.iter().map(|protocol| (protocol.clone(), *number)));
    }
    all
}

/// The instances of all slices of a service, each once, in the order of their ids.
///
/// While none is ready, those are called that terminate and still serve, as kube-proxy does.
pub(crate) fn merge<'a>(
    slices: impl Iterator<Item = &'a Read> + Clone,
    zone: Option<&str>,
) -> Vec<Arc<Instance>> {
    let all = || slices.clone().flat_map(|slice| &slice.endpoints);
    let is_any_ready = all().any(|endpoint| endpoint.is_ready);
    let is_for = |endpoint: &Endpoint, zone: &str| {
        endpoint.hints.as_ref().is_some_and(|hints| hints.iter().any(|hint| hint == zone))
    };
    // Hints that are not whole, or leave a zone without instances, are not followed.
    let zone = zone.filter(|zone| {
        let mut ready = all().filter(|endpoint| endpoint.is_ready);
        ready.clone().all(|endpoint| endpoint.hints.is_some()) && ready.any(|endpoint| is_for(endpoint, zone))
    });
    let mut found: HashMap<&str, (Family, bool, Arc<Instance>)> = HashMap::new();
    for endpoint in all() {
        if zone.is_some_and(|zone| endpoint.is_ready && !is_for(endpoint, zone)) {
            continue;
        }
        let Endpoint { is_ready, family, instance, .. } = endpoint;
        match found.get_mut(instance.id.as_str()) {
            None => {
                found.insert(&instance.id, (*family, *is_ready, instance.clone()));
            }
            // An endpoint that moves from one slice to another is in both for a moment.
            Some(other) if (*family, !*is_ready) < (other.0, !other.1) => {
                *other = (*family, *is_ready, instance.clone());
            }
            // The ports of a service may be in several slices.
            Some(other) if (*family, *is_ready) == (other.0, other.1) && *other.2 != **instance => {
                let mut both = Instance::clone(&other.2);
                for (listener, address) in instance.addresses.iter() {
                    if both.addresses.get(listener).is_none() {
                        both = both.with_address(listener, address);
                    }
                }
                other.2 = Arc::new(both);
            }
            Some(_) => {}
        }
    }
    let mut instances: Vec<_> = found.into_values().map(|(.., instance)| instance).collect();
    if !is_any_ready {
        for instance in &mut instances {
            *instance = Arc::new(Instance::clone(instance).with_status(Status::Up));
        }
    }
    instances.sort_by(|a, b| a.id.cmp(&b.id));
    instances
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(slice: &Value, config: &KubernetesConfig) -> Read {
        Read::of(&slice.to_string(), "stock", config).unwrap()
    }

    fn slice(endpoints: Value) -> Value {
        json!({ "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "grpc", "port": 50051 }] })
    }

    /// `id address status` of each instance.
    fn seen(slices: &[Value], zone: Option<&str>) -> Vec<String> {
        let config = KubernetesConfig::default();
        let read: Vec<_> = slices.iter().map(|slice| read(slice, &config)).collect();
        let line = |one: &Arc<Instance>| {
            format!("{} {} {}", one.id, one.addresses.get("grpc").unwrap_or_default(), one.status().as_str())
        };
        merge(read.iter(), zone).iter().map(line).collect()
    }

    #[track_caller]
    fn ports(ports: Value, config: &KubernetesConfig, expected: &[(&str, u16)]) {
        let ports: Vec<Port> = serde_json::from_value(ports).unwrap();
        let expected: BTreeMap<_, _> =
            expected.iter().map(|(name, port)| ((*name).to_owned(), *port)).collect();
        assert_eq!(listeners(&ports, config), expected);
    }

    #[test]
    fn ports_are_those_of_listeners() {
        let config = KubernetesConfig::default();
        ports(json!([{ "name": "", "port": 80 }]), &config, &[("http", 80), ("grpc", 80)]);
        ports(json!([{ "port": 80, "protocol": "UDP" }]), &config, &[]);
        ports(
            json!([{ "name": "grpc", "port": 1 }, { "name": "admin", "port": 2 }]),
            &config,
            &[("grpc", 1), ("admin", 2)],
        );
        ports(
            json!([{ "name": "rpc", "port": 1, "appProtocol": "grpc" }]),
            &config,
            &[("rpc", 1), ("grpc", 1)],
        );
        ports(json!([{ "port": 1, "appProtocol": "http" }]), &config, &[("http", 1)]);
        ports(json!([{ "name": "http-web", "port": 1 }]), &config, &[("http-web", 1), ("http", 1)]);
        ports(json!([{ "name": "http", "port": null }]), &config, &[]);
        let set = [("grpc", "rpc"), ("http", "8080"), ("x", "none")];
        let set = set.into_iter().map(|(name, port)| (name.to_owned(), port.to_owned())).collect();
        let config = KubernetesConfig { ports: set, ..config };
        ports(
            json!([{ "name": "rpc", "port": 1 }, { "name": "http", "port": 8080 }, { "name": "grpc", "port": 3 }]),
            &config,
            &[("grpc", 1), ("http", 8080), ("rpc", 1)],
        );
    }

    #[test]
    fn conditions_decide_what_is_called() {
        let one = |name: &str, conditions: Value| json!({ "addresses": ["10.0.0.1"], "targetRef": { "name": name }, "conditions": conditions });
        let terminating = json!({ "ready": false, "serving": true, "terminating": true });
        let all = json!([
            one("a", json!({ "ready": true, "serving": true, "terminating": false })),
            one("b", json!({})),
            one("c", json!({ "ready": false, "serving": false })),
            one("d", terminating.clone()),
            one("e", json!({ "ready": false, "serving": false, "terminating": true })),
            { "addresses": ["10.0.0.9"] },
        ]);
        let address = "10.0.0.1:50051";
        assert_eq!(
            seen(&[slice(all)], None),
            [
                "10.0.0.9 10.0.0.9:50051 up".to_owned(),
                format!("a {address} up"),
                format!("b {address} up"),
                format!("d {address} out_of_service"),
            ]
        );
        assert_eq!(seen(&[slice(json!([one("d", terminating)]))], None), [format!("d {address} up")]);
        assert_eq!(seen(&[slice(Value::Null)], None), Vec::<String>::new());
    }

    #[test]
    fn an_instance_in_several_slices_is_one() {
        let pod = |address: &str, uid: &str| json!([{ "addresses": [address], "targetRef": { "name": "a", "uid": uid } }]);
        let four = slice(pod("10.0.0.1", "123456789"));
        let mut six = slice(pod("fd00::1", "123456789"));
        six["addressType"] = "IPv6".into();
        for slices in [[four.clone(), six.clone()], [six.clone(), four.clone()]] {
            assert_eq!(seen(&slices, None), ["a.12345678 10.0.0.1:50051 up"]);
        }
        assert_eq!(seen(&[six], None), ["a.12345678 [fd00::1]:50051 up"]);
        let other = slice(pod("10.0.0.2", "9"));
        assert_eq!(
            seen(&[four.clone(), other], None),
            ["a.12345678 10.0.0.1:50051 up", "a.9 10.0.0.2:50051 up"]
        );
        let mut admin = four.clone();
        admin["ports"] = json!([{ "name": "admin", "port": 9090 }]);
        let config = KubernetesConfig::default();
        let both = [read(&four, &config), read(&admin, &config)];
        let merged = merge(both.iter(), None);
        assert_eq!(merged[0].addresses.get("admin"), Some("10.0.0.1:9090"));
        assert_eq!(merged[0].addresses.get("grpc"), Some("10.0.0.1:50051"));
    }

    #[test]
    fn hints_are_followed_where_they_are_whole() {
        let one = |name: &str, zone: &str, hint: Option<&str>| {
            json!({ "addresses": ["10.0.0.1"], "targetRef": { "name": name },
            "zone": zone, "hints": hint.map(|hint| json!({ "forZones": [{ "name": hint }] })) })
        };
        let ids = |slices: &[Value], zone| -> Vec<String> {
            seen(slices, zone).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
        };
        let whole = [slice(json!([one("a", "x", Some("x")), one("b", "y", Some("y"))]))];
        assert_eq!(ids(&whole, None), ["a", "b"]);
        assert_eq!(ids(&whole, Some("y")), ["b"]);
        assert_eq!(ids(&whole, Some("z")), ["a", "b"]);
        let partly = [slice(json!([one("a", "x", Some("x")), one("b", "y", None)]))];
        assert_eq!(ids(&partly, Some("x")), ["a", "b"]);
        let config = KubernetesConfig::default();
        assert_eq!(read(&whole[0], &config).endpoints[0].instance.zone, "x");
    }

    #[test]
    fn what_is_no_instance_is_refused_one_by_one() {
        let config = KubernetesConfig::default();
        let all = json!([{ "addresses": ["10.0.0.1"] }, { "addresses": [] }, { "addresses": "x" }, { "addresses": ["0.0.0.0"] }]);
        let found = read(&slice(all), &config);
        assert_eq!((found.endpoints.len(), found.refused.len()), (1, 3), "{:?}", found.refused);
        let mut strange = slice(json!([]));
        strange["addressType"] = "IPX".into();
        assert!(Read::of(&strange.to_string(), "stock", &config).unwrap_err().contains("IPX"));
        let mut none = slice(json!([{ "addresses": ["10.0.0.1"] }]));
        none["ports"] = Value::Null;
        assert!(read(&none, &config).refused[0].1.contains("no port"));
    }
}
