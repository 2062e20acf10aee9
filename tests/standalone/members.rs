//! Every member compiles by itself. The workspace's build merges the features of all members, which hides a
//! missing one.
use crate::made::{cargo, output, workspace};

/// Every member, with its default features and with all; chassis-rs has more combinations.
const MEMBERS: [&str; 16] = [
    "chassis-core",
    "chassis-admin",
    "chassis-config",
    "chassis-registry",
    "chassis-http",
    "chassis-grpc",
    "chassis-consul",
    "chassis-etcd",
    "chassis-kubernetes",
    "chassis-http-center",
    "chassis-servicecomb",
    "chassis-ttl",
    "chassis-rs",
    "chassis-bench",
    "chassis-conformance",
    "chassis-protos",
];
/// Members with features of their own; each feature must compile without the others.
const FEATURES: [(&str, &[&str]); 12] = [
    ("chassis-admin", &["schema"]),
    ("chassis-bench", &["registries"]),
    ("chassis-core", &["schema", "testing"]),
    ("chassis-registry", &["composite", "memory", "static", "file", "local", "dns", "schema"]),
    ("chassis-http", &["schema", "tls", "tonic", "testing"]),
    ("chassis-consul", &["schema"]),
    ("chassis-etcd", &["schema"]),
    ("chassis-kubernetes", &["schema"]),
    ("chassis-http-center", &["schema"]),
    ("chassis-servicecomb", &["schema"]),
    ("chassis-ttl", &["schema"]),
    (
        "chassis-rs",
        &[
            "admin",
            "cli",
            "consul",
            "dns",
            "etcd",
            "grpc",
            "http",
            "http-center",
            "kubernetes",
            "local",
            "servicecomb",
            "testing",
            "tls",
            "ttl",
        ],
    ),
];

#[test]
fn members_compile_alone() {
    let mut ways: Vec<Vec<&str>> = Vec::new();
    for member in MEMBERS {
        ways.push(vec!["-p", member]);
    }
    for (member, features) in FEATURES {
        ways.push(vec!["-p", member, "--no-default-features"]);
        ways.push(vec!["-p", member, "--all-features"]);
        for feature in features {
            ways.push(vec!["-p", member, "--no-default-features", "--features", feature]);
        }
    }
    let failed: Vec<_> = ways.iter().filter_map(|way| check(way)).collect();
    assert!(
        failed.is_empty(),
        "{} of {} do not compile alone\n{}",
        failed.len(),
        ways.len(),
        failed.join("\n")
    );
}

/// Cargo's output for a member that does not compile, or compiles with warnings.
fn check(way: &[&str]) -> Option<String> {
    let mut cargo = cargo();
    cargo.args(["check", "--locked", "--offline", "--quiet", "--color", "never"]).args(way);
    cargo.current_dir(workspace());
    let output = output(cargo);
    let said = String::from_utf8_lossy(&output.stderr);
    (!output.status.success() || said.contains("warning")).then(|| format!("{way:?}\n{said}"))
}

/// The lists above match the manifests.
#[test]
fn no_member_and_no_feature_is_left_out() {
    let mut cargo = cargo();
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--locked", "--offline"]);
    let output = cargo.current_dir(workspace()).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        assert!(MEMBERS.contains(&name), "{name} is not checked");
        let listed = FEATURES.iter().find(|(member, _)| *member == name).map_or(&[][..], |(_, all)| all);
        for feature in package["features"].as_object().unwrap().keys().filter(|name| *name != "default") {
            assert!(listed.contains(&feature.as_str()), "{name}: {feature} is not checked");
        }
    }
}
