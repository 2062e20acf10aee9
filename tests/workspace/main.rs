//! Rules for the workspace as a whole: licences, banned crates, the star of crates, features that must stay
//! off, and some conventions of the source. Fast: it reads `cargo metadata` and the tree.

mod graph;
mod imports;
mod public;
mod source;
mod spdx;
mod words;

use std::collections::BTreeSet;

use graph::{Graph, Package};

/// The published members except core: each depends on core, and not on the others.
const SPOKES: [&str; 5] =
    ["chassis-admin", "chassis-config", "chassis-grpc", "chassis-http", "chassis-registry"];

/// The sources of core.
const CORE: &str = "chassis-core/src/";

/// One for each external system: each depends on core, and reaches its system by the clients of HTTP and gRPC.
const ADAPTERS: [&str; 6] = [
    "chassis-consul",
    "chassis-etcd",
    "chassis-http-center",
    "chassis-servicecomb",
    "chassis-kubernetes",
    "chassis-ttl",
];

/// Fails with one line for each finding.
#[track_caller]
fn refuse(what: &str, findings: Vec<String>) {
    assert!(findings.is_empty(), "{what}:\n  {}\n", findings.join("\n  "));
}

#[test]
fn licences_are_permissive() {
    let allowed = source::deny_list("allow = [", "");
    assert!(allowed.iter().any(|name| name == "MIT"), "deny.toml's list was not found");
    let findings = Graph::load().packages().filter_map(|package| match &package.licence {
        Some(licence) if spdx::permits(licence, &|name| allowed.iter().any(|it| it == name)) => None,
        licence => Some(format!("{} {}: {licence:?}", package.name, package.version)),
    });
    refuse("not among the licences of deny.toml", findings.collect());
}

#[test]
fn no_banned_crate_is_in_the_graph() {
    let banned = source::deny_list("deny = [", "crate = ");
    assert!(banned.iter().any(|name| name == "openssl"), "deny.toml's list was not found");
    let graph = Graph::load();
    let findings = graph.packages().filter(|package| banned.contains(&package.name));
    refuse("banned by deny.toml", findings.map(|package| package.name.clone()).collect());
}

#[test]
fn crates_come_from_the_registry() {
    let graph = Graph::load();
    let foreign = |package: &&Package| match &package.source {
        None => !package.member,
        Some(source) => source != "registry+https://github.com/rust-lang/crates.io-index",
    };
    let findings = graph.packages().filter(foreign);
    refuse("neither members nor from crates.io", findings.map(|package| package.name.clone()).collect());
}

#[test]
fn core_knows_no_protocol_and_no_sibling() {
    let graph = Graph::load();
    let reached = graph.closure("chassis-core");
    assert!(reached.contains("tower-service"), "the graph was not read: {reached:?}");
    let protocols = ["tonic", "axum", "axum-core", "hyper", "hyper-util", "h2"];
    let barred = |name: &&String| {
        let sibling = is_sibling(name);
        sibling || protocols.contains(&name.as_str())
    };
    refuse("chassis-core depends on", reached.iter().filter(barred).cloned().collect());
}

#[test]
fn core_names_no_protocol() {
    // Comments may name them for readers, and unit tests stand at the end of a file.
    let named = |line: &str| {
        let line = line.to_ascii_lowercase();
        ["grpc", "tonic", "axum", "hyper", "base64"].iter().any(|word| line.contains(word))
    };
    let mut core = source::files(&["rs"]);
    core.retain(|file| file.path.starts_with(CORE));
    assert!(core.len() > 50, "the sources of core were not found");
    let findings = core.iter().flat_map(|file| {
        let code = file.text.lines().enumerate().take_while(|(_, line)| *line != "mod tests {");
        let code = code.filter(|(_, line)| !line.trim_start().starts_with("//") && named(line));
        code.map(|(number, line)| format!("{}:{}: {}", file.path, number + 1, line.trim()))
    });
    refuse("code of core names a protocol", findings.collect());
}

fn is_sibling(name: &str) -> bool {
    SPOKES.contains(&name) || ADAPTERS.contains(&name) || name == "chassis-rs"
}

#[test]
fn adapters_know_core_and_the_clients_that_reach_their_system() {
    let graph = Graph::load();
    let folders = source::files(&["toml"]);
    let folders =
        folders.iter().filter(|file| file.path.starts_with("adapters/") && file.path.ends_with("Cargo.toml"));
    assert_eq!(folders.count(), ADAPTERS.len(), "each adapter is a folder of `adapters` and in the list");
    let mut findings = Vec::new();
    for adapter in ADAPTERS {
        let direct = graph.direct(adapter);
        assert!(direct.contains("chassis-core"), "{adapter} does without core: {direct:?}");
        let barred = |other: &&String| {
            is_sibling(other) && !["chassis-http", "chassis-grpc"].contains(&other.as_str())
        };
        findings.extend(direct.iter().filter(barred).map(|other| format!("{adapter} → {other}")));
    }
    refuse("adapters that know more", findings);
}

#[test]
fn spokes_know_core_and_not_each_other() {
    let graph = Graph::load();
    let mut findings = Vec::new();
    for spoke in SPOKES {
        let direct = graph.direct(spoke);
        assert!(direct.contains("chassis-core"), "{spoke} does without core: {direct:?}");
        let barred = |other: &&String| {
            is_sibling(other) && (spoke, other.as_str()) != ("chassis-grpc", "chassis-http") // gRPC is HTTP/2: one transport
        };
        findings.extend(direct.iter().filter(barred).map(|other| format!("{spoke} → {other}")));
    }
    refuse("spokes that know each other", findings);
}

/// `tracing/log` formats every span and event for the `log` crate, even without a subscriber: a fifth of a
/// gRPC call's cost. One dependency with this feature enables it for all, for example axum's default
/// `tower-log`.
#[test]
fn tracing_does_not_feed_log() {
    let graph = Graph::load();
    let features = graph.features("tracing");
    assert!(features.contains("std"), "the graph was not read: {features:?}");
    let on = features.into_iter().filter(|feature| feature.starts_with("log"));
    refuse("features of tracing that are on (`cargo tree -e features -i tracing` shows why)", on.collect());
}

/// rustls takes `ring` by default, beside aws-lc-rs.
#[test]
fn aws_lc_rs_is_the_only_provider_of_cryptography() {
    let crates = graph::whole_build();
    assert!(crates.contains("aws-lc-rs"), "the tree was not read: {crates:?}");
    refuse("compiled (`cargo tree -i` shows why)", crates.into_iter().filter(|it| it == "ring").collect());
}

/// Those who turn on an adapter do: its stubs are made when it is built.
#[test]
fn users_of_the_facade_compile_no_protos() {
    let barred = ["chassis-protos", "prost-build", "protox", "tonic-build", "tonic-prost-build"];
    let reached = graph::default_build("chassis-rs");
    refuse("the façade depends on", reached.into_iter().filter(|it| barred.contains(&it.as_str())).collect());
    assert!(
        !Graph::load().closure("chassis-rs").contains("chassis-protos"),
        "a feature depends on the protos of tests"
    );
}

/// The default build stays small: a crate that not every service needs goes behind a cargo feature.
#[test]
fn the_default_build_has_few_crates() {
    const MOST: usize = 130;
    let crates = graph::default_build("chassis-rs");
    assert!(crates.contains("tonic") && crates.contains("axum"), "the tree was not read: {crates:?}");
    assert!(crates.len() <= MOST, "{} crates, {MOST} are allowed: {crates:?}", crates.len());
}

#[test]
fn members_state_edition_version_and_licence() {
    let graph = Graph::load();
    let mut findings = Vec::new();
    for member in graph.packages().filter(|package| package.member) {
        let stated = [
            ("edition", Some(&member.edition), "2024"),
            ("rust-version", member.rust_version.as_ref(), "1.89"),
            ("license", member.licence.as_ref(), "MIT OR Apache-2.0"),
        ];
        for (key, value, wanted) in stated {
            if value.is_none_or(|value| value != wanted) {
                findings.push(format!("{}: {key} is {value:?}, not {wanted:?}", member.name));
            }
        }
    }
    refuse("members that differ", findings);
}

/// docs.rs shows items of all features; crates.io refuses a package without a description.
#[test]
fn published_members_are_described() {
    let mut manifests = source::files(&["toml"]);
    manifests.retain(|file| file.path.ends_with("Cargo.toml") && !file.text.contains("publish = false"));
    assert!(manifests.len() >= 6, "the manifests were not read");
    let wanted = [
        "[package.metadata.docs.rs]\nall-features = true\n",
        "\ndescription = ",
        "\nrepository.workspace = true\n",
    ];
    let lacks = |file: &source::File| wanted.iter().find(|words| !file.text.contains(**words));
    let findings =
        manifests.iter().filter_map(|file| lacks(file).map(|words| format!("{}: {words}", file.path)));
    refuse("published members that lack", findings.collect());
}

#[test]
fn members_share_the_lints() {
    let mut manifests = source::files(&["toml"]);
    manifests.retain(|file| file.path.ends_with("Cargo.toml"));
    manifests.retain(|file| !file.text.contains("[lints]\nworkspace = true"));
    refuse("manifests without the workspace's lints", manifests.into_iter().map(|file| file.path).collect());
}

/// Features select whole modules, and are used in one place only, where kinds and sections are registered.
#[test]
fn the_facade_asks_for_features_at_few_places() {
    let mut findings = source::lines_with(&["rs"], &["feature = \""]);
    findings.retain(|finding| finding.starts_with("src/") && finding.contains("cfg"));
    findings.retain(|finding| !finding.contains("schemars")); // the schema of a type stands beside the type
    assert!(findings.len() <= 29, "{} places: {findings:#?}", findings.len());
}

/// A concern is a folder: outside of it only the table of concerns, the pipeline and `layer/mod.rs` name it. Lines that
/// are close to each other are one edit.
#[test]
fn a_concern_is_named_at_few_places_outside_its_folder() {
    const NAMES: [&str; 2] = ["message_limits", "MessageLimits"];
    const NEAR: usize = 6;
    let mut places: Vec<(String, usize)> = Vec::new();
    for line in source::lines_with(&["rs"], &NAMES) {
        let (path, rest) = line.split_once(':').unwrap();
        let number: usize = rest.split_once(':').unwrap().0.parse().unwrap();
        let is_source = path.starts_with("src/") || path.contains("/src/");
        if !is_source || path.contains("/layer/message_limits/") {
            continue;
        }
        let is_near = places.last().is_some_and(|(last, at)| last == path && number - at <= NEAR);
        match places.last_mut().filter(|_| is_near) {
            Some((_, at)) => *at = number,
            None => places.push((path.to_owned(), number)),
        }
    }
    let files: BTreeSet<_> = places.iter().map(|(path, _)| path).collect();
    assert!(files.len() >= 3, "the places were not found: {places:?}");
    assert!(
        places.len() <= 6 && files.len() <= 4,
        "{} edits in {} files: {places:?}",
        places.len(),
        files.len()
    );
}

#[test]
fn no_test_is_ignored_and_nothing_is_left_to_do() {
    let words = ["#[ignore", "todo!(", "unimplemented!("];
    refuse("left undone", source::lines_with(&["rs"], &words));
}

/// Without libtest such functions are compiled away.
#[test]
fn tests_without_libtest_are_listed() {
    let mut findings = source::lines_with(&["rs"], &["::test]", "#[test]", "::test("]);
    findings.retain(|line| {
        [
            "tests/interop/",
            "tests/conformance/",
            "adapters/consul/tests/",
            "adapters/etcd/tests/",
            "adapters/kubernetes/tests/",
            "adapters/servicecomb/tests/",
            "chassis-registry/tests/dns/",
        ]
        .iter()
        .any(|it| line.starts_with(it))
    });
    refuse("an attribute that libtest reads, in a binary that has none: list it by `trials!`", findings);
}

#[test]
fn nothing_names_a_machine() {
    let words = ["/root/", "/home/", "/Users/", "C:\\\\"];
    let kinds = ["rs", "toml", "md", "yaml", "yml", "json", "proto", "py", "sh", ""];
    refuse("paths of one machine", source::lines_with(&kinds, &words));
}

/// Subject first, an active verb, the field's noun. The bounds leave room for quotations and names of others.
#[test]
fn docs_are_in_plain_words() {
    const MOST_OPENINGS: usize = 20;
    const MOST_AVOIDED: usize = 30;
    let mut files = source::files(&["rs", "md"]);
    files.retain(|file| !file.path.starts_with("tests/workspace/"));
    let bounds = [
        ("doc comments begin with `What`", words::openings(&files), MOST_OPENINGS),
        ("lines have a word that `words.rs` lists", words::avoided(&files), MOST_AVOIDED),
    ];
    for (what, findings, most) in bounds {
        if findings.len() > most {
            refuse(&format!("{} {what}, {most} are allowed", findings.len()), findings);
        }
    }
}

#[test]
fn live_holds_the_only_arc_swap() {
    let mut findings = source::lines_with(&["rs"], &["arc_swap", "ArcSwap"]);
    let inside = findings.iter().filter(|line| line.starts_with("chassis-core/src/live.rs:")).count();
    assert!(inside > 0, "chassis-core/src/live.rs was not read");
    findings.retain(|line| !line.starts_with("chassis-core/src/live.rs:"));
    refuse("arc-swap outside of core's live.rs", findings);

    let graph = Graph::load();
    let owners = graph.packages().filter(|it| it.member && graph.direct(&it.name).contains("arc-swap"));
    assert_eq!(owners.map(|it| it.name.as_str()).collect::<Vec<_>>(), ["chassis-core"]);
}

/// Arrows point down: no more files of core than these import each other in one circle.
#[test]
fn core_has_no_large_circle() {
    const MOST: usize = 8;
    let imports = imports::imports(CORE);
    assert!(imports.len() > 300, "the imports were not read: {}", imports.len());
    let circle = imports::largest_circle(&imports);
    let inside = imports.iter().filter(|it| circle.contains(&it.from) && circle.contains(&it.to));
    let findings = inside.map(|it| format!("{} -> {} {}", it.from, it.to, it.item)).collect();
    if circle.len() > MOST {
        refuse(
            &format!("{} files of core import each other in one circle, {MOST} are allowed", circle.len()),
            findings,
        );
    }
}

/// The floors of core, from the lowest to the highest, as `docs/ARCHITECTURE.md` lists them. Each imports only what
/// stands on its own floor or below. `*` is one part of a path; the last pattern that fits a file decides.
const FLOORS: [(&str, &[&str]); 11] = [
    ("ground", &["clock.rs", "live.rs", "striped.rs", "thread.rs"]),
    ("types", &["types/"]),
    ("algorithms", &["random.rs", "algorithm/"]),
    (
        "ports, events, metrics",
        &["plugin/", "contain/", "health/", "event.rs", "metrics/", "reporter.rs", "tasks.rs", "files.rs"],
    ),
    ("cluster", &["cluster/"]),
    ("rules", &["rule/", "section.rs", "kind.rs", "adapter/", "layer/"]),
    ("policy", &["policy/", "context.rs"]),
    ("call", &["call/"]),
    (
        "transports, services of layers",
        &[
            "plugin/transport.rs",
            "layer/service.rs",
            "layer/*/service.rs",
            "layer/retry/owned.rs",
            "stage.rs",
        ],
    ),
    ("runtime", &["runtime.rs", "inspect.rs"]),
    ("pipeline", &["pipeline.rs"]),
];

#[test]
fn floors_of_core_import_only_what_is_below() {
    let imports = imports::imports(CORE);
    let floor = |file: &str| {
        let fits = |pattern: &str| {
            let (pattern, parts) = (pattern.trim_end_matches('/').split('/'), file.split('/'));
            pattern.clone().count() <= parts.clone().count()
                && pattern.zip(parts).all(|(pattern, part)| pattern == "*" || pattern == part)
        };
        let floor = FLOORS.iter().rposition(|(_, patterns)| patterns.iter().any(|pattern| fits(pattern)));
        floor.unwrap_or_else(|| panic!("chassis-core/src/{file} stands on no floor: add it to FLOORS"))
    };
    let above = imports.iter().filter(|it| floor(&it.from) < floor(&it.to));
    let text = |it: &imports::Import| {
        let (from, to) = (FLOORS[floor(&it.from)].0, FLOORS[floor(&it.to)].0);
        format!("{} ({from}) -> {} ({to}) {}", it.from, it.to, it.item)
    };
    refuse("files of core that import what stands above them", above.map(text).collect());
}
