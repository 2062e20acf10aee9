//! Detects whether this process runs in a container, and which settings can't work there.
use std::{env, fs, path::Path};

/// The sign that this process runs in a container.
pub(crate) struct Container(String);

/// Files that a container engine puts into each container.
const FILES: [&str; 2] = ["/.dockerenv", "/run/.containerenv"];
/// Variables that a container engine sets in each container. `container` is systemd's convention.
const VARIABLES: [&str; 4] =
    ["container", "KUBERNETES_SERVICE_HOST", "ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI"];
/// Words in a control group's path if a container engine made it (version 1 of control groups only).
const CONTROL_GROUPS: [&str; 4] = ["/docker", "/kubepods", "/containerd", "/lxc"];

// === impl Container ===

impl Container {
    /// The container of this process, if a sign of one is found.
    pub(crate) fn of_process() -> Option<Self> {
        let groups = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
        Self::detect(
            |path| Path::new(path).exists(),
            |name| env::var_os(name).is_some_and(|value| !value.is_empty()),
            &groups,
        )
    }

    fn detect(has_file: impl Fn(&str) -> bool, has_set: impl Fn(&str) -> bool, groups: &str) -> Option<Self> {
        let file = FILES.iter().find(|path| has_file(path)).map(|path| format!("`{path}` is there"));
        let set = || VARIABLES.iter().find(|name| has_set(name)).map(|name| format!("`${name}` is set"));
        let group = || {
            let found = CONTROL_GROUPS.iter().find(|word| groups.contains(*word));
            found.map(|word| format!("`/proc/1/cgroup` names {word}"))
        };
        file.or_else(set).or_else(group).map(Container)
    }

    /// Settings that can't work here: an address of loopback, or a registry of one machine.
    pub(crate) fn advice(&self, addresses: &[(String, String)], registry: &str) -> Option<String> {
        let mut advice = Vec::new();
        for (name, address) in addresses.iter().filter(|(_, address)| is_loopback(address)) {
            let port = address.rsplit_once(':').map_or("", |(_, port)| port);
            advice.push(format!(
                "`listen.{name}` is bound to {address}, which only this container reaches: set \
                 `listen.{name}: 0.0.0.0:{port}`"
            ));
        }
        if registry == "local" {
            advice.push(
                "the registry `local` sees the services of this container alone: set `registry.kind` to `static` \
                 or `file`"
                    .to_owned(),
            );
        }
        let why = &self.0;
        (!advice.is_empty())
            .then(|| format!("this process runs in a container ({why}). {}", advice.join("; ")))
    }
}

fn is_loopback(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    match host.trim_matches(['[', ']']).parse::<std::net::IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(name: &str, address: &str) -> (String, String) {
        (name.to_owned(), address.to_owned())
    }

    #[test]
    fn is_found_by_what_engines_leave() {
        let found = |file: &str, set: &str, groups: &str| {
            let container = Container::detect(|path| path == file, |name| name == set, groups);
            container.map(|container| container.0)
        };
        assert_eq!(found("/.dockerenv", "", "").unwrap(), "`/.dockerenv` is there");
        assert_eq!(found("", "container", "").unwrap(), "`$container` is set");
        assert_eq!(found("", "KUBERNETES_SERVICE_HOST", "").unwrap(), "`$KUBERNETES_SERVICE_HOST` is set");
        assert!(found("", "", "12:cpu:/docker/0123\n").is_some());
        assert_eq!(found("", "", "0::/init.scope\n"), None);
    }

    #[test]
    fn says_what_cannot_work_there_and_what_to_write() {
        let container = Container("it is a test".to_owned());
        let loopback = [at("grpc", "127.0.0.1:50051"), at("http", "[::1]:8080")];
        assert_eq!(
            container.advice(&loopback, "local").unwrap(),
            "this process runs in a container (it is a test). `listen.grpc` is bound to 127.0.0.1:50051, which \
             only this container reaches: set `listen.grpc: 0.0.0.0:50051`; `listen.http` is bound to [::1]:8080, \
             which only this container reaches: set `listen.http: 0.0.0.0:8080`; the registry `local` sees the \
             services of this container alone: set `registry.kind` to `static` or `file`"
        );
        let open = [at("grpc", "0.0.0.0:50051"), at("http", "unix:/run/s"), at("own", "memory:stock")];
        assert_eq!(container.advice(&open, "file"), None);
        assert!(container.advice(&[], "local").is_some(), "a client finds no service either");
    }
}
