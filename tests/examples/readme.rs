//! The README matches the code. (Its snippets are compiled as documentation tests.)
use std::{collections::BTreeSet, fs, path::Path};

use chassis::{
    Chassis, MOST_OPERATIONS,
    http::{ClientConfig, ServerConfig},
    layer::{
        breaker::BreakerConfig,
        retry::{BudgetConfig, RetryConfig},
    },
};
use chassis_core::testing::{is_guarded, mechanisms};

const README: &str = include_str!("../../README.md");

/// The code blocks of the README in `language`, the word after the fence.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    let bodies = README.split(&fence).skip(1).map(|rest| rest.split("\n```").next().unwrap());
    bodies.collect()
}

/// They differ in the path of the protos: the README's crate compiles its own.
#[test]
fn the_first_service_is_the_example_and_short() {
    let example = include_str!("../../examples/first_service.rs");
    let shown = blocks("rs").into_iter().find(|block| block.contains("mod shop {")).unwrap();
    let (above, rest) = shown.split_once("mod shop {\n").unwrap();
    let below = rest.split_once("\n}\n\n").unwrap().1;
    let shown = format!("{above}{below}").replace("use shop::", "use chassis_protos::shop::");
    assert_eq!(shown, example.trim_end());
    assert!(example.lines().count() <= 40);
}

#[test]
fn leaving_is_the_example() {
    let shown = blocks("rs").into_iter().find(|block| block.contains("// was: ")).unwrap();
    assert!(include_str!("../../examples/leaving.rs").contains(shown));
}

#[tokio::test]
async fn the_settings_are_sound() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("chassis.yaml");
    fs::write(&path, blocks("yaml")[0]).unwrap();
    let builder = Chassis::builder("other").config_file(path).environment(Default::default());
    let app = builder.build().await.unwrap();
    let seen = app.runtime().inspect();
    assert_eq!((seen.service.as_str(), seen.version), ("orders", 1));
    let limits: BTreeSet<_> = seen.limits.iter().map(|limit| limit.rule.as_str()).collect();
    assert_eq!(limits, ["batch", "per-caller"].into());
    let policies = app.runtime().policies().get();
    let level = policies.outbound(&"stock".into(), "shop.v1.Stock/Level");
    let reserve = policies.outbound(&"stock".into(), "shop.v1.Stock/Reserve");
    assert_eq!(level.timeout().unwrap().as_millis(), 300);
    assert_eq!(mechanisms(&level), ["timeout", "retry", "breaker", "fallback", "faults"]);
    assert_eq!(mechanisms(&reserve), ["timeout", "breaker", "fallback", "faults"]);
    assert_eq!(reserve.timeout().unwrap().as_secs(), 2);
    let rest = policies.outbound(&"stock".into(), "GET /stock/{id}");
    assert_eq!(rest.concurrency().unwrap().limit.get(), 64);
}

#[tokio::test]
async fn the_defaults_are_those_in_force() {
    let app = Chassis::builder("orders").settings(serde_json::json!({ "registry": { "kind": "memory" } }));
    let temp = tempfile::tempdir().unwrap();
    let nothing = temp.path().join("chassis.yaml");
    fs::write(&nothing, "{}").unwrap();
    let app = app.config_file(nothing).environment(Default::default()).build().await.unwrap();
    let policies = app.runtime().policies().get();
    let (out, inbound) = (policies.outbound(&"stock".into(), "a"), policies.inbound("a"));
    let (retry, breaker, budget) =
        (RetryConfig::default(), BreakerConfig::default(), BudgetConfig::default());
    let (server, client) = (ServerConfig::default(), ClientConfig::default());

    row("outbound.defaults.timeout", &format!("`{}s`", out.timeout().unwrap().as_secs()));
    row("inbound.timeout", &format!("`{}s`", inbound.timeout().unwrap().as_secs()));
    assert_eq!(*out.retry().unwrap(), retry);
    row("retry", &format!("{} attempts, `safe`", retry.attempts));
    assert!(README.contains(&format!("backoff of up to `{}`", retry.backoff)));
    row("retry.budget", &format!("`{}` and `{}`", budget.share, budget.min));
    assert!(is_guarded(&out, "stock", &breaker), "the scope is `service`");
    let of = format!(
        "`{}` of at least {} calls in `{}`",
        breaker.failure_ratio, breaker.min_calls, breaker.window
    );
    row("breaker", &of);
    assert!(README.contains(&format!(
        "open for `{0}`, reduced by random jitter of up to a tenth; then {1} probes, and {1} more after each `{0}`",
        breaker.open, breaker.probes
    )));
    assert_eq!(mechanisms(&out), ["timeout", "retry", "breaker"]);
    assert_eq!(mechanisms(&inbound), ["timeout"]);
    let shutdown = chassis::document::ShutdownSection::default();
    row("shutdown", &format!("`{}`", shutdown.deadline));

    row("server.max_connections", &server.max_connections.to_string());
    row("server.max_streams", &server.max_streams.to_string());
    row("server.max_header_list", &format!("`{}`", server.max_header_list));
    row("server.header_timeout", &format!("`{}`", server.header_timeout));
    row("server.idle_timeout", &format!("`{}`", server.idle_timeout));
    row("server.max_body", &format!("`{}`", server.max_body));
    row("server.max_age", &format!("`{}`", server.max_age));
    assert!(server.max_age_grace.0.is_zero());
    row("server.max_age_grace", "none");
    row("client.connect_timeout", &format!("`{}`", client.connect_timeout));
    row("client.max_header_list", &format!("`{}`", client.max_header_list));
    row("client.max_message", &format!("`{}`", client.max_message));
    row("client.pool", &client.pool.to_string());
    row("client.max_streams", &client.max_streams.to_string());
    assert!(README.contains(&format!("another HTTP/2 connection, up to {} |", client.max_connections)));
    let replay = retry.replay_bytes.on().expect("it is on by default");
    row("retry.replay_bytes", &format!("`{replay}`"));
    assert!(README.contains(&format!("| operations of a service | {MOST_OPERATIONS} |")));
}

/// The README's row about `setting` shows `value`.
#[track_caller]
fn row(setting: &str, value: &str) {
    let row = format!("| `{setting}` | {value} |");
    assert!(README.contains(&row), "the README has no row `{row}`");
}

#[test]
fn every_example_and_every_file_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let entries = fs::read_dir(root.join("examples")).unwrap().map(|entry| entry.unwrap().path());
    let there: BTreeSet<_> =
        entries.map(|path| path.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    let listed = README.split("| `cargo run --example ").skip(1);
    let listed: BTreeSet<_> = listed.map(|rest| rest.split(['`', ' ']).next().unwrap().to_owned()).collect();
    assert_eq!(there, listed);
    for target in README.split("](").skip(1).map(|rest| rest.split([')', '#']).next().unwrap()) {
        assert!(root.join(target).exists(), "{target}");
    }
}
