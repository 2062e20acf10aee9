//! What people read when a document is wrong, letter for letter.
use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use chassis_config::{Change, Environment, FileSource, Loader, Problem, TextSource, tree::Layer};
use chassis_core::{
    config::Format,
    units::{PositiveSpan, Ratio, Span, Switch},
};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    listen: chassis_config::document::Listen,
    outbound: Outbound,
    faults: Vec<Fault>,
    center: BTreeMap<String, NonZeroU32>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Outbound {
    defaults: Rules,
    services: BTreeMap<String, Rules>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Rules {
    timeout: Option<Span>,
    retry: Option<Switch<Retry>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Retry {
    attempts: Option<NonZeroU32>,
    when: Option<When>,
    budget: Option<Ratio>,
    backoff: Option<PositiveSpan>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum When {
    Safe,
    Always,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only read")]
struct Fault {
    name: String,
    #[serde(default)]
    share: Option<Ratio>,
}

fn loader(file: TextSource, environment: Environment) -> Loader<Document, ()> {
    let check = |d: &Document| match d.listen.check() {
        found if found.is_empty() => Ok(((), Vec::new())),
        found => Err(found),
    };
    Loader::new(check).environment(environment).source(Layer::File, Arc::new(file))
}

/// The problems of a text, as they are printed.
async fn problems(name: &str, format: Format, content: &str, variables: &[(&str, &str)]) -> String {
    let file = TextSource::new(name, format, content);
    let print = |problems: &[Problem]| problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n");
    match loader(file, Environment::of(variables.iter().copied())).next().await {
        Change::Refused(refusal) => print(&refusal.problems),
        Change::Applied(version) => print(&version.warnings),
        other => format!("{}", matches!(other, Change::Restored(_))),
    }
}

#[track_caller]
fn check(content: &str, expected: &str) {
    check_in(Format::Yaml, content, expected);
}

#[track_caller]
fn check_in(format: Format, content: &str, expected: &str) {
    let name = match format {
        Format::Yaml => "chassis.yaml",
        Format::Toml => "chassis.toml",
        Format::Json => "chassis.json",
    };
    let printed = block_on(problems(name, format, content, &[]));
    assert_eq!(printed, expected.trim_matches('\n'), "\n{printed}\n");
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime can be had").block_on(future)
}

#[test]
fn unknown_key() {
    check(
        "outbound:\n  defaults:\n    retry:   { atempts: 3, when: safe }\n",
        r"
error: chassis.yaml:3:16  outbound.defaults.retry.atempts
    3 |     retry:   { atempts: 3, when: safe }
      |                ^^^^^^^ unknown key; did you mean `attempts`?
   allowed: attempts, when, budget, backoff
",
    );
}

#[test]
fn misspelt_word() {
    check(
        "outbound:\n  defaults:\n    retry: { when: saef }\n",
        r"
error: chassis.yaml:3:20  outbound.defaults.retry.when
    3 |     retry: { when: saef }
      |                    ^^^^ `saef` is not known here; did you mean `safe`?
   allowed: safe, always
",
    );
}

#[test]
fn number_without_unit() {
    check(
        "outbound: { defaults: { timeout: 300 } }\n",
        r"
error: chassis.yaml:1:34  outbound.defaults.timeout
    1 | outbound: { defaults: { timeout: 300 } }
      |                                  ^^^ `300` has no unit; write 300ms or 300s
",
    );
}

#[test]
fn wrong_unit() {
    check(
        "outbound: { defaults: { timeout: 3sec } }\n",
        r"
error: chassis.yaml:1:34  outbound.defaults.timeout
    1 | outbound: { defaults: { timeout: 3sec } }
      |                                  ^^^^ `sec` is no unit of time; write us, ms, s, m or h
",
    );
}

#[test]
fn negative_time() {
    check(
        "outbound: { defaults: { timeout: -1s } }\n",
        r"
error: chassis.yaml:1:34  outbound.defaults.timeout
    1 | outbound: { defaults: { timeout: -1s } }
      |                                  ^^^ `-1s` is negative; a length of time is not
",
    );
}

#[test]
fn share_over_the_whole() {
    check(
        "faults:\n  - { name: slow, share: 120% }\n",
        r"
error: chassis.yaml:2:26  faults[0].share
    2 |   - { name: slow, share: 120% }
      |                          ^^^^ `120%` is no share; it goes from 0% to 100%
",
    );
}

#[test]
fn zero_where_it_is_refused() {
    check(
        "outbound: { defaults: { retry: { attempts: 0, backoff: 0s } } }\n",
        r"
error: chassis.yaml:1:44  outbound.defaults.retry.attempts
    1 | outbound: { defaults: { retry: { attempts: 0, backoff: 0s } } }
      |                                            ^ 0 is refused; write a whole number above 0
error: chassis.yaml:1:56  outbound.defaults.retry.backoff
    1 | outbound: { defaults: { retry: { attempts: 0, backoff: 0s } } }
      |                                                        ^^ `0s` is nothing; write more, or `off` where that is allowed
",
    );
}

#[test]
fn missing_key() {
    check(
        "faults:\n  - share: 5%\n",
        r"
error: chassis.yaml:2:5  faults[0]
    2 |   - share: 5%
      |     ^ `name` is missing
",
    );
}

#[test]
fn two_values_for_one_address() {
    check(
        "listen:\n  grpc: 0.0.0.0:8080\n  http: 127.0.0.1:8080\n",
        r"
error: chassis.yaml:3:9  listen.http
    3 |   http: 127.0.0.1:8080
      |         ^^^^^^^^^^^^^^ this and `0.0.0.0:8080` of `grpc` are two values for one address; write the same for both, or another port
",
    );
    check(
        "listen:\n  grpc: 0.0.0.0:8080\n  grpc: 0.0.0.0:9090\n",
        r"
error: chassis.yaml:3:3
    3 |   grpc: 0.0.0.0:9090
      |   ^^^^ `grpc` is here twice; the first is on line 2
",
    );
    check("listen: { grpc: 0.0.0.0:8080, http: 0.0.0.0:8080 }", "");
}

#[test]
fn list_for_a_map() {
    check(
        "outbound:\n  defaults: [ { timeout: 1s } ]\n",
        r"
error: chassis.yaml:2:13  outbound.defaults
    2 |   defaults: [ { timeout: 1s } ]
      |             ^ a map belongs here, not a list
",
    );
}

#[test]
fn bad_indentation() {
    check(
        "outbound:\n  defaults:\n    timeout: 1s\n   retry: off\n",
        r"
error: chassis.yaml:4:4
    4 |    retry: off
      |    ^ this line is indented unlike the ones it belongs with
",
    );
}

#[test]
fn tab() {
    check(
        "outbound:\n\tdefaults: {}\n",
        "
error: chassis.yaml:2:1
    2 | \u{2192}defaults: {}
      | ^ a tab can't indent YAML; use spaces
",
    );
}

#[test]
fn duplicate_key() {
    check(
        "outbound:\n  defaults: { timeout: 1s }\n  services: {}\n  defaults: { timeout: 2s }\n",
        r"
error: chassis.yaml:4:3
    4 |   defaults: { timeout: 2s }
      |   ^^^^^^^^ `defaults` is here twice; the first is on line 2
",
    );
}

#[test]
fn missing_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("chassis.yaml"), "").unwrap();
    let file = FileSource::new(dir.path().join("chassis.yml"));
    let mut loader: Loader<Document, ()> =
        Loader::new(|_: &Document| Ok(((), Vec::new()))).source(Layer::File, Arc::new(file));
    let Change::Unreadable(unreadable) = block_on(loader.next()) else { panic!("it is not there") };
    assert!(unreadable.needed);
    let shown = unreadable.to_string().replace(&format!("{}/", dir.path().display()), "");
    assert_eq!(shown, "chassis.yml: there is no such file; did you mean `chassis.yaml`?");
}

#[test]
fn several_at_once() {
    check(
        "outbond: {}\noutbound:\n  defaults: { timeout: 1 }\n  services: { stock: { retry: { wen: safe } } }\n",
        r"
error: chassis.yaml:1:1  outbond
    1 | outbond: {}
      | ^^^^^^^ unknown key; did you mean `outbound`?
   allowed: listen, outbound, faults, center
error: chassis.yaml:3:24  outbound.defaults.timeout
    3 |   defaults: { timeout: 1 }
      |                        ^ `1` has no unit; write 1ms or 1s
error: chassis.yaml:4:33  outbound.services.stock.retry.wen
    4 |   services: { stock: { retry: { wen: safe } } }
      |                                 ^^^ unknown key; did you mean `when`?
   allowed: attempts, when, budget, backoff
",
    );
}

#[test]
fn in_toml() {
    check_in(
        Format::Toml,
        "[outbound.defaults]\ntimeout = \"300\"\nretry = { atempts = 3 }\n",
        r#"
error: chassis.toml:2:11  outbound.defaults.timeout
    2 | timeout = "300"
      |           ^^^^^ `300` has no unit; write 300ms or 300s
error: chassis.toml:3:11  outbound.defaults.retry.atempts
    3 | retry = { atempts = 3 }
      |           ^^^^^^^ unknown key; did you mean `attempts`?
   allowed: attempts, when, budget, backoff
"#,
    );
}

#[test]
fn in_json() {
    check_in(
        Format::Json,
        "{\n\t\"outbound\": { \"defaults\": { \"retry\": { \"attempts\": 0 } } }\n}\n",
        "
error: chassis.json:2:53  outbound.defaults.retry.attempts
    2 | \u{2192}\"outbound\": { \"defaults\": { \"retry\": { \"attempts\": 0 } } }
      |                                                     ^ 0 is refused; write a whole number above 0
",
    );
}

#[track_caller]
fn check_environment(content: &str, variables: &[(&str, &str)], expected: &str) {
    let printed = block_on(problems("chassis.yaml", Format::Yaml, content, variables));
    assert_eq!(printed, expected.trim_matches('\n'), "\n{printed}\n");
}

#[test]
fn in_the_environment() {
    check_environment(
        "",
        &[("CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT", "2")],
        r"
error: environment  outbound.defaults.timeout
      | CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT=2
      |                                     ^ `2` has no unit; write 2ms or 2s
",
    );
    check_environment(
        "",
        &[("CHASSIS_OUTBUND__DEFAULTS__TIMEOUT", "2s")],
        r"
warning: environment  outbund
      | CHASSIS_OUTBUND__DEFAULTS__TIMEOUT=2s
      |         ^^^^^^^ no setting has this name; did you mean `CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT`?
   allowed: listen, outbound, faults, center
",
    );
    check_environment(
        "outbound: { defaults: { timeout: 1s } }",
        &[("CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT", "2s")],
        r"
warning: chassis.yaml:1:34  outbound.defaults.timeout
    1 | outbound: { defaults: { timeout: 1s } }
      |                                  ^^ hidden by `CHASSIS_OUTBOUND__DEFAULTS__TIMEOUT` in the environment: `2s` holds
",
    );
}

#[test]
fn secrets_stay_secret() {
    check(
        "center: { pasword: hunter2 }\noutbound: { secret: hunter2 }\n",
        r"
error: chassis.yaml:1:20  center.pasword
    1 | center: { pasword: ******* *
      |                    ^^^^^^^ this is no value for it (it is not shown)
error: chassis.yaml:2:13  outbound.secret
    2 | outbound: { secret: ******* *
      |             ^^^^^^ unknown key
   allowed: defaults, services
",
    );
}

#[test]
fn long_lines_are_cut_around_the_place() {
    let long = "x".repeat(300);
    check(
        &format!("x-a: [{long}]\nlisten: {{ http: {long} }}\n"),
        &format!(
            r"
error: chassis.yaml:2:17  listen.http
    2 | listen: {{ http: {}…
      |                 {} `{long}` has no port; write {long}:8080
",
            "x".repeat(104),
            "^".repeat(105)
        ),
    );
}

#[test]
fn what_would_move_the_cursor_is_not_printed() {
    check(
        "listen: { http: \"a\\e[2J\u{202e}b\" }\n",
        "
error: chassis.yaml:1:17  listen.http
    1 | listen: { http: \"a\\e[2J\u{fffd}b\" }
      |                 ^^^^^^^^^^ `a\u{fffd}[2J\u{fffd}b` has no port; write a\u{fffd}[2J\u{fffd}b:8080
",
    );
}
