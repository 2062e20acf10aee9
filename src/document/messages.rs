//! The messages about a wrong document, letter for letter.
use std::sync::Arc;

use chassis_core::{
    Runtime,
    config::{Format, Text},
};
use serde_json::Value;

use super::{
    Change, Document, Environment, FileSource, Finding, Loader, Problem, Reader, Seen, SeenService,
    TextSource, Version, tree::Layer,
};

fn loader(file: TextSource, environment: Environment) -> Loader<Document, ()> {
    let protocols = crate::rest::PROTOCOLS.iter().chain(crate::rpc::PROTOCOLS);
    let builder = protocols.fold(Runtime::builder("orders"), |builder, protocol| builder.protocol(*protocol));
    let runtime = builder.build().expect("the names of the metrics are free");
    let check = move |document: &Document| {
        let mut found = document.check();
        if let Err(problems) = runtime.check(&document.settings()) {
            found.extend(problems.into_iter().map(Finding::from));
        }
        if found.is_empty() { Ok(((), Vec::new())) } else { Err(found) }
    };
    let reader = Reader::default();
    let loader = Loader::reading(move |tree| reader.read(tree), check);
    loader.environment(environment).source(Layer::File, Arc::new(file))
}

async fn version(content: &str) -> Box<Version<Document, ()>> {
    match loader(TextSource::new("chassis.yaml", Format::Yaml, content), Environment::default()).next().await
    {
        Change::Applied(version) => version,
        other => panic!("it is sound, but: {}", matches!(other, Change::Refused(_))),
    }
}

/// A problem as it is printed, but for its code.
fn without_code(problem: &Problem) -> String {
    let (printed, code) = (problem.to_string(), format!("[{}]:", problem.code));
    assert!(printed.starts_with(&format!("error{code}")) || printed.starts_with(&format!("warning{code}")));
    printed.replacen(&code, ":", 1)
}

#[test]
fn every_problem_has_a_code() {
    for (content, code) in [
        ("a: [", "C001"),
        ("outbond: {}", "C002"),
        ("outbound: { defaults: { retry: { when: saef } } }", "C003"),
        ("registry: { kind: nonesuch }", "C003"),
        ("faults: [ {} ]", "C004"),
        ("registry: {}", "C004"),
        ("outbound: []", "C005"),
        ("outbound: { defaults: { timeout: 300 } }", "C006"),
        ("outbound: { defaults: { retry: { attempts: 0 } } }", "C006"),
        ("listen: { grpc: 0.0.0.0:8080, http: 127.0.0.1:8080 }", "C007"),
        ("service: { zone: '${env:NONE}' }", "C008"),
    ] {
        let text = TextSource::new("c", Format::Yaml, content);
        let change = block_on(async { loader(text, Environment::default()).next().await });
        let Change::Refused(refusal) = change else { panic!("{content}") };
        let codes: Vec<_> = refusal.problems.iter().map(|problem| problem.code.to_string()).collect();
        assert_eq!(codes, [code], "{content}");
    }
}

/// Every code, with the least that a message about it has: a problem of each, whether it quotes the text, and whether it
/// lists what is allowed and the nearest.
#[test]
fn every_code_says_where_and_what_instead() {
    let long = format!("outbound: {{}} # {}", "x".repeat(4 << 20));
    let variables = [("CHASSIS_OUTBOND", "{}"), ("CHASSIS_TELEMETRY__SAMPLE", "1%")];
    let twice = [("CHASSIS_OUTBOUND", "{}"), ("chassis_outbound", "{}")];
    let match_of = "outbound: { services: { a: { routes: [ { name: r, match: bta, to: { x: y } } ] } } }\nmatches: \
                    { beta: {} }";
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], bool, bool);
    let cases: [Case<'_>; 14] = [
        ("C001", "a: [", &[], true, false),
        ("C002", "outbond: {}", &[], true, true),
        ("C003", "outbound: { defaults: { retry: { when: saef } } }", &[], true, true),
        ("C003", "registry: { kind: memroy }", &[], true, true),
        ("C004", "faults: [ {} ]", &[], true, false),
        ("C005", "outbound: []", &[], true, false),
        ("C006", "outbound: { defaults: { timeout: 300 } }", &[], true, false),
        ("C007", match_of, &[], true, true),
        ("C007", "listen: { grpc: 0.0.0.0:8080, http: 127.0.0.1:8080 }", &[], true, false),
        ("C008", "service: { zone: '${env:NONE}' }", &[], true, false),
        ("C009", "", &twice, true, false),
        ("C010", "telemetry: { sample: 2% }", &variables[1..], true, false),
        ("C011", "", &variables[..1], true, true),
        ("C013", &long, &[], false, false),
    ];
    // See `overrides.rs` and `rename.rs` of chassis-config, and `missing_file` below.
    let mut seen: Vec<&str> = vec!["C012", "C014", "C015"];
    for (code, content, variables, quotes, allows) in cases {
        let file = TextSource::new("c", Format::Yaml, content);
        let variables = Environment::of(variables.iter().copied());
        let problems = match block_on(async { loader(file, variables).next().await }) {
            Change::Refused(refusal) => refusal.problems,
            Change::Applied(version) => version.warnings,
            _ => panic!("{code}"),
        };
        let [problem] = &*problems else { panic!("{code}: {problems:?}") };
        let (line, printed) = (problem.in_a_line(), problem.to_string());
        let head = format!("[{code}]: {}", problem.at.as_ref().expect("it has a position"));
        assert!(line.starts_with(&format!("{code} ")) && printed.contains(&head), "{line}\n{printed}");
        assert_eq!(printed.contains(" | "), quotes, "{printed}");
        assert_eq!(printed.contains("\n   allowed: "), allows, "{printed}");
        assert_eq!((line.contains("did you mean"), printed.contains("did you mean")), (allows, allows));
        seen.push(code);
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, super::Code::ALL.map(|code| code.to_string()));
}

#[test]
fn a_problem_of_a_center_names_its_key_and_its_revision() {
    for (origin, revision) in [("etcd:/orders", Some("17")), ("etcd:/orders@17", Some("17"))] {
        let (content, origin) = ("outbond: {}".to_owned(), origin.to_owned());
        let revision = revision.map(str::to_owned);
        let text = Text { content, format: Format::Yaml, origin, revision };
        let tree = super::parse(&text, Layer::Center).expect("it can be parsed");
        let problem = Document::read(&tree).1.remove(0);
        let head = "C002 etcd:/orders@17:1:1 outbond: unknown key";
        assert!(problem.in_a_line().starts_with(head), "{}", problem.in_a_line());
        assert!(problem.to_string().starts_with("error[C002]: etcd:/orders@17:1:1  outbond\n"));
    }
}

/// The problems of a text, as they are printed.
async fn problems(name: &str, format: Format, content: &str, variables: &[(&str, &str)]) -> String {
    let file = TextSource::new(name, format, content);
    let print = |problems: &[Problem]| problems.iter().map(without_code).collect::<Vec<_>>().join("\n");
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
    let mut printed = block_on(problems(name, format, content, &[]));
    // A build with more cargo features has more kinds.
    for kind in [", dns", ", consul", ", etcd", ", kubernetes", ", servicecomb", ", ttl"] {
        printed = printed.replace(kind, "");
    }
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
   allowed: attempts, when, per_try, backoff, on, budget, replay_bytes, chained
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
      |     ^ missing `name`
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
    assert_eq!(shown, "C014 chassis.yml: there is no such file; did you mean `chassis.yaml`?");
}

#[test]
fn several_at_once() {
    check(
        "outbond: {}\noutbound:\n  defaults: { timeout: 1 }\n  services: { stock: { retry: { wen: safe } } }\n",
        r"
error: chassis.yaml:1:1  outbond
    1 | outbond: {}
      | ^^^^^^^ unknown key; did you mean `outbound`?
   allowed: service, listen, registry, discovery, config, matches, pickers, inbound, outbound, layers, faults, telemetry, propagate, shutdown, client, server, admin
error: chassis.yaml:3:24  outbound.defaults.timeout
    3 |   defaults: { timeout: 1 }
      |                        ^ `1` has no unit; write 1ms or 1s
error: chassis.yaml:4:33  outbound.services.stock.retry.wen
    4 |   services: { stock: { retry: { wen: safe } } }
      |                                 ^^^ unknown key; did you mean `when`?
   allowed: attempts, when, per_try, backoff, on, budget, replay_bytes, chained
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
   allowed: attempts, when, per_try, backoff, on, budget, replay_bytes, chained
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
   allowed: service, listen, registry, discovery, config, matches, pickers, inbound, outbound, layers, faults, telemetry, propagate, shutdown, client, server, admin
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
        "registry: { kind: file, path: /a, pasword: hunter2 }\nlisten: { token: hunter2 }\noutbound:\n  secret: hunter2\n",
        r"
error: chassis.yaml:1:35  registry.pasword
    1 | registry: { kind: file, path: /a, pasword: ******* *
      |                                   ^^^^^^^ unknown key
   allowed: path, poll, kind
error: chassis.yaml:2:18  listen.token
    2 | listen: { token: ******* *
      |                  ^^^^^^^ this is no value for it (it is not shown)
error: chassis.yaml:4:3  outbound.secret
    4 |   secret: *******
      |   ^^^^^^ unknown key
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

#[test]
fn empty_split() {
    check(
        "outbound:\n  services:\n    stock:\n      routes: [ { name: split, split: {}, by: track } ]\n",
        r"
error: chassis.yaml:4:39  outbound.services.stock.routes[0].split
    4 |       routes: [ { name: split, split: {}, by: track } ]
      |                                       ^ a split needs a share above 0, as in { stable: 95, canary: 5 }
",
    );
}

#[test]
fn duplicate_rule_name() {
    check(
        "faults:\n  - { name: slow, delay: 1s }\n  - { name: slow, delay: 2s }\n",
        r"
error: chassis.yaml:3:13  faults[1].name
    3 |   - { name: slow, delay: 2s }
      |             ^^^^ a second fault is called `slow`; each rule needs its own name
",
    );
}

#[test]
fn unknown_picker() {
    check(
        "outbound: { services: { stock: { balance: p2 } } }\n",
        r"
error: chassis.yaml:1:43  outbound.services.stock.balance
    1 | outbound: { services: { stock: { balance: p2 } } }
      |                                           ^^ no picker is called `p2`; did you mean `p2c`?
   allowed: p2c, random, round_robin
",
    );
}

#[test]
fn kinds_of_registry() {
    check(
        "registry: { kind: fiel }\n",
        r"
error: chassis.yaml:1:19  registry.kind
    1 | registry: { kind: fiel }
      |                   ^^^^ `fiel` is not known here; did you mean `file`?
   allowed: local, static, file, memory, composite
",
    );
    check(
        "registry: { pth: /etc/instances.json, kind: file }\n",
        r"
error: chassis.yaml:1:13  registry.pth
    1 | registry: { pth: /etc/instances.json, kind: file }
      |             ^^^ unknown key; did you mean `path`?
   allowed: path, poll, kind
",
    );
    check(
        "registry:\n  path: /etc/instances.json\n",
        r"
error: chassis.yaml:1:1  registry
    1 | registry:
      | ^^^^^^^^ missing `kind`
",
    );
}

#[test]
fn not_seen_yet() {
    let content = "\
outbound:
  services:
    stok: { timeout: 1s }
    stock:
      routes: [ { name: split, split: { stable: 95, canary: 5 }, by: trak } ]
      operations: { stock.v1.Stock/Resrve: { retry: off } }
faults: [ { name: slow, to: stock2, delay: 1s } ]
";
    let version = block_on(version(content));
    let set = |words: &[&str]| words.iter().map(|w| w.to_string()).collect();
    let stock = SeenService { labels: set(&["track"]), operations: set(&["stock.v1.Stock/Reserve"]) };
    let services = [("stock".to_string(), stock), ("carts".to_string(), SeenService::default())].into();
    let found = version.document.unseen(&Seen { services, ..Default::default() });
    let printed: Vec<_> = found.into_iter().map(|f| without_code(&f.place(&version.tree))).collect();
    let expected = r#"
warning: chassis.yaml:7:29  faults[0].to
    7 | faults: [ { name: slow, to: stock2, delay: 1s } ]
      |                             ^^^^^^ no service `stock2` was seen yet; did you mean `stock`?
   allowed: carts, stock
warning: chassis.yaml:6:21  outbound.services.stock.operations."stock.v1.Stock/Resrve"
    6 |       operations: { stock.v1.Stock/Resrve: { retry: off } }
      |                     ^^^^^^^^^^^^^^^^^^^^^ no operation `stock.v1.Stock/Resrve` was seen yet; did you mean `stock.v1.Stock/Reserve`?
   allowed: stock.v1.Stock/Reserve
warning: chassis.yaml:5:70  outbound.services.stock.routes[0].by
    5 |       routes: [ { name: split, split: { stable: 95, canary: 5 }, by: trak } ]
      |                                                                      ^^^^ no label `trak` was seen yet; did you mean `track`?
   allowed: track, version, zone, region, hostname, app, environment
warning: chassis.yaml:3:5  outbound.services.stok
    3 |     stok: { timeout: 1s }
      |     ^^^^ no service `stok` was seen yet; did you mean `stock`?
   allowed: carts, stock
"#;
    assert_eq!(printed.join("\n"), expected.trim_matches('\n'));
}

#[test]
fn told_once_however_many_inherit_it() {
    check(
        "outbound:\n  defaults: { balance: p2 }\n  services: { a: {}, b: {}, c: {} }\n",
        r"
error: chassis.yaml:2:24  outbound.defaults.balance
    2 |   defaults: { balance: p2 }
      |                        ^^ no picker is called `p2`; did you mean `p2c`?
   allowed: p2c, random, round_robin
",
    );
}

#[test]
fn half_a_fault() {
    check(
        "faults:\n  - { name: a, delay: 200 }\n  - { name: b, delay: { from: 1s, too: 2s } }\n  - { name: c, until: tomorrow }\n",
        r"
error: chassis.yaml:2:23  faults[0].delay
    2 |   - { name: a, delay: 200 }
      |                       ^^^ a length of time as in 200ms, or a map of from, to and share
error: chassis.yaml:3:23  faults[1].delay
    3 |   - { name: b, delay: { from: 1s, too: 2s } }
      |                       ^ a length of time as in 200ms, or a map of from, to and share
error: chassis.yaml:4:23  faults[2].until
    4 |   - { name: c, until: tomorrow }
      |                       ^^^^^^^^ `tomorrow` is no end; write a time as 2026-11-21T18:00:00Z, or a length of time as 2h
",
    );
}

#[test]
fn unknown_match() {
    check(
        "matches: { beta: { header: { x-canary: \"true\" } } }\noutbound:\n  services:\n    stock: { routes: [ { name: a, match: bta, to: { track: canary } } ] }\n",
        r"
error: chassis.yaml:4:42  outbound.services.stock.routes[0].match
    4 |     stock: { routes: [ { name: a, match: bta, to: { track: canary } } ] }
      |                                          ^^^ no match is named `bta`; did you mean `beta`?
   allowed: beta
",
    );
}

#[test]
fn bad_regex() {
    check(
        "matches:\n  beta: { header: { x-canary: { regex: \"a(\" } } }\n",
        r#"
error: chassis.yaml:2:40  matches.beta.header.x-canary.regex
    2 |   beta: { header: { x-canary: { regex: "a(" } } }
      |                                        ^^^^ `a(` is no regular expression: error: unclosed group
"#,
    );
}

#[test]
fn bad_glob() {
    check(
        "matches:\n  some: { path: \"/orders/{id\" }\n  all: { operation: [ \"stock/*\", \"a***b\" ] }\n",
        r#"
error: chassis.yaml:3:34  matches.all.operation[1]
    3 |   all: { operation: [ "stock/*", "a***b" ] }
      |                                  ^^^^^^^ `a***b` has more than two `*` in a row
error: chassis.yaml:2:17  matches.some.path
    2 |   some: { path: "/orders/{id" }
      |                 ^^^^^^^^^^^^^ the braces of `/orders/{id` don't match; write {id}
"#,
    );
}

#[test]
fn unknown_test_of_a_match() {
    check(
        "matches:\n  beta: { headr: { x-canary: \"true\" } }\n  old: { header: { x-v: { prefx: a } } }\n",
        r#"
error: chassis.yaml:2:11  matches.beta.headr
    2 |   beta: { headr: { x-canary: "true" } }
      |           ^^^^^ unknown key; did you mean `header`?
   allowed: operation, method, path, http, header, metadata, query, caller, caller_labels, any, all, not
error: chassis.yaml:3:27  matches.old.header.x-v.prefx
    3 |   old: { header: { x-v: { prefx: a } } }
      |                           ^^^^^ `prefx` is not known here; did you mean `prefix`?
   allowed: exact, prefix, suffix, contains, regex, present, int, not
"#,
    );
}

#[test]
fn unknown_key_of_a_route() {
    check(
        "outbound:\n  services:\n    stock:\n      routes:\n        - { name: a, to: { track: canary }, fallbak: none }\n        - { name: b, match: { caller: { nmae: c } }, to: { track: stable } }\n",
        r"
error: chassis.yaml:5:45  outbound.services.stock.routes[0].fallbak
    5 |         - { name: a, to: { track: canary }, fallbak: none }
      |                                             ^^^^^^^ unknown key; did you mean `fallback`?
   allowed: name, match, to, split, by, fallback
error: chassis.yaml:6:41  outbound.services.stock.routes[1].match.caller.nmae
    6 |         - { name: b, match: { caller: { nmae: c } }, to: { track: stable } }
      |                                         ^^^^ unknown key; did you mean `name`?
   allowed: name, labels
",
    );
}

/// Every table that there is, with all of its keys that are tables themselves.
const TABLES: &str = r#"{
  "service": { "name": "orders", "labels": { "track": "stable" } },
  "listen": { "http": "127.0.0.1:8080" },
  "registry": { "kind": "file", "path": "registry.yaml" },
  "matches": {
    "beta": {
      "header": { "x-canary": { "prefix": "t" } }, "metadata": { "x-size": { "int": { "gt": 9 } } },
      "query": { "page": { "not": { "exact": "1" } } },
      "caller": { "name": "batch-*", "labels": { "track": "canary" } }, "caller_labels": { "zone": { "suffix": "a" } },
      "any": [{ "method": "GET" }], "all": [{ "path": "/a" }], "not": { "path": "/b" }
    }
  },
  "inbound": {
    "concurrency": 512,
    "rate_limits": [{ "name": "all", "rate": "1/s", "burst": 2, "key": { "header": "x-tenant" }, "match": { "path": "/c" } }],
    "operations": { "GET /d": { "timeout": "1s" } }
  },
  "outbound": {
    "defaults": {
      "retry": { "attempts": 2, "budget": { "share": "20%" } },
      "breaker": { "min_calls": 20 },
      "routes": [{ "name": "rest", "to": { "track": "stable" } }]
    },
    "services": {
      "stock": {
        "rate_limits": [{ "name": "out", "rate": "1/s", "burst": 2 }],
        "routes": [
          { "name": "beta", "match": { "caller_labels": { "track": "canary" } }, "to": { "track": "canary" }, "fallback": "none" },
          { "name": "split", "split": { "stable": 95, "canary": 5 }, "by": "track", "fallback": ["beta"] }
        ],
        "fallback": { "status": 200, "on": ["UNAVAILABLE"] },
        "operations": { "GET /e": { "retry": { "budget": { "min": "1/s" } }, "breaker": { "min_calls": 20 } } }
      }
    }
  },
  "faults": [{ "name": "slow", "to": "stock", "delay": { "from": "1s", "to": "2s" }, "abort": { "status": 503 }, "match": "beta" }],
  "shutdown": { "delay": "0s" }
}"#;

/// Tables whose keys are names that people choose.
const NAMED_BY_PEOPLE: [&str; 10] = [
    "labels",
    "matches",
    "header",
    "metadata",
    "query",
    "caller_labels",
    "operations",
    "services",
    "to",
    "split",
];

/// The JSON pointers of all tables below `value` whose keys are known.
fn tables(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(table) => {
            let name = at.rsplit('/').next().unwrap_or_default();
            if !NAMED_BY_PEOPLE.contains(&name) {
                found.push(at.to_owned());
            }
            table
                .iter()
                .for_each(|(key, value)| tables(value, &format!("{at}/{}", key.replace('/', "~1")), found));
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| tables(value, &format!("{at}/{i}"), found));
        }
        _ => {}
    }
}

#[test]
fn no_table_accepts_a_key_that_it_does_not_know() {
    let whole: Value = serde_json::from_str(TABLES).expect("it is JSON");
    let print =
        |document: &Value| block_on(problems("chassis.json", Format::Json, &document.to_string(), &[]));
    assert_eq!(print(&whole), "");
    let mut found = Vec::new();
    tables(&whole, "", &mut found);
    assert!(found.len() >= 40, "{found:?}");
    let accepted = found.iter().filter(|at| {
        let mut document = whole.clone();
        let table = document.pointer_mut(at).and_then(Value::as_object_mut).expect("it was found there");
        table.insert("nonesuch".to_owned(), 1.into());
        !print(&document).starts_with("error: ")
    });
    assert_eq!(accepted.collect::<Vec<_>>(), Vec::<&String>::new());
}

/// The document that shows everything, as in the documentation.
const EVERYTHING: &str = r#"
service:  { name: orders, version: 1.4.0, zone: eu-1a, labels: { track: stable }, advertise: 10.0.0.5 }
listen:   { grpc: 0.0.0.0:50051, http: 0.0.0.0:8080 }
registry: { kind: local }
matches:
  beta: { header: { x-canary: "true" } }
inbound:
  timeout: 30s
  concurrency: 512
  rate_limits: [ { name: per-caller, rate: 100/s, burst: 200, key: caller, match: { operation: "shop.v1.Orders/*" } } ]
outbound:
  defaults:
    timeout: 5s
    balance: p2c
    retry:   { attempts: 2, when: safe, per_try: 400ms, backoff: 25ms, budget: { share: 20%, min: 10/s } }
    breaker: { failure_ratio: 50%, min_calls: 20, window: 10s, open: 5s, probes: 3, scope: service }
  services:
    stock:
      timeout: 300ms
      routes:
        - { name: beta,  match: beta, to: { track: canary } }
        - { name: split, split: { stable: 95, canary: 5 }, by: track }
      operations: { "stock.v1.Stock/Reserve": { retry: off, timeout: 2s } }
faults: [ { name: slow-stock, to: stock, delay: 200ms, share: 5%, at: call } ]
propagate: [ x-tenant ]
shutdown: { delay: 0s, deadline: 20s }
"#;

#[test]
fn a_sound_document_is_read_whole() {
    let version = block_on(version(EVERYTHING));
    assert_eq!(version.warnings, []);
    assert_eq!(version.document.service.version.as_deref(), Some("1.4.0"));
    assert_eq!(version.document.outbound.services["stock"].operations.len(), 1);
    assert_eq!(version.document.matches.len(), 1);
}

#[test]
fn off_is_a_word_and_a_switch() {
    for off in ["off", "\"off\"", "false"] {
        let content = format!("outbound: {{ defaults: {{ retry: {off}, breaker: {off}, timeout: {off} }} }}");
        let version = block_on(version(&content));
        let defaults = &version.document.outbound.defaults;
        let Some(switch) = &defaults.retry else { panic!("it was set") };
        assert!(switch.on().is_none(), "{off}");
    }
}

#[test]
fn words_that_mean_something_else() {
    check(
        r"
# One look shows all of it.
inbound:
  rate_limits:
    - { name: all, rate: 1/s, burst: 1, key: header }
outbound:
  defaults: { retry: no }
  services:
    stock: { fallback: { on: [503, connct] } }
",
        r"
error: chassis.yaml:5:46  inbound.rate_limits[0].key
    5 |     - { name: all, rate: 1/s, burst: 1, key: header }
      |                                              ^^^^^^ `header` needs a name; write `key: { header: x-tenant }`
error: chassis.yaml:7:22  outbound.defaults.retry
    7 |   defaults: { retry: no }
      |                      ^^ `no` is no word for this; write `off`
error: chassis.yaml:9:36  outbound.services.stock.fallback.on[1]
    9 |     stock: { fallback: { on: [503, connct] } }
      |                                    ^^^^^^ `connct` is not known here; did you mean `connect`?
   allowed: 4xx, 5xx, connect, deadline, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS, UNAUTHENTICATED
",
    );
    check(
        r"
service: { name: '' }
matches:
  any-tenant: { header: { x-tenant: '*' } }
  beta: { header: { x-track: 'beta-*' }, operation: get /orders/* }
outbound:
  services:
    stock:
      operations:
        get /x: { timeout: 1s }
        /shop.v1.Stock/Level: { timeout: 1s }
inbound: { operations: { /x: { timeout: 1s } } }
",
        r#"
error: chassis.yaml:2:18  service.name
    2 | service: { name: '' }
      |                  ^^ a service has a name; leave `name` out to keep the program's own
error: chassis.yaml:4:37  matches.any-tenant.header.x-tenant
    4 |   any-tenant: { header: { x-tenant: '*' } }
      |                                     ^^^ `*` would be taken literally; write `{ present: true }`, or a `regex` for the star itself
error: chassis.yaml:5:53  matches.beta.operation
    5 |   beta: { header: { x-track: 'beta-*' }, operation: get /orders/* }
      |                                                     ^^^^^^^^^^^^^ no operation is called `get /orders/*`; write `GET /orders/*`
error: chassis.yaml:12:26  inbound.operations./x
   12 | inbound: { operations: { /x: { timeout: 1s } } }
      |                          ^^ no operation is called `/x`; write `GET /x`
error: chassis.yaml:11:9  outbound.services.stock.operations."/shop.v1.Stock/Level"
   11 |         /shop.v1.Stock/Level: { timeout: 1s }
      |         ^^^^^^^^^^^^^^^^^^^^ no operation is called `/shop.v1.Stock/Level`; write `shop.v1.Stock/Level`
error: chassis.yaml:10:9  outbound.services.stock.operations."get /x"
   10 |         get /x: { timeout: 1s }
      |         ^^^^^^ no operation is called `get /x`; write `GET /x`
"#,
    );
    check(
        "matches: { beta: { header: { x-track: 'beta-*', accept: '*/*' } } }",
        r#"
error: chassis.yaml:1:39  matches.beta.header.x-track
    1 | matches: { beta: { header: { x-track: 'beta-*', accept: '*/*' } } }
      |                                       ^^^^^^^^ `beta-*` would be taken literally; write `{ prefix: "beta-" }`, or a `regex` for the star itself
"#,
    );
}

#[test]
fn what_is_accepted_can_be_written_again() {
    let content = r"
outbound:
  services:
    stock:
      routes: [{ name: all, to: { track: stable } }, { name: none, to: { track: beta }, fallback: none }]
      retry: { budget: { share: 33.33333333% }, replay_bytes: 1536KiB }
      fallback: { status: 200, message: '', on: [503, connect] }
";
    let written = block_on(version(content)).document.outbound;
    let text = serde_json::to_string(&written).expect("it can be written");
    assert!(
        text.contains(r#""share":"33.33333333%""#) && text.contains(r#""replay_bytes":"1536KiB""#),
        "{text}"
    );
    assert_eq!(serde_json::from_str::<chassis_core::settings::OutboundSettings>(&text).ok(), Some(written));
}

#[test]
fn unknown_variables_are_no_part_of_a_version() {
    let file = TextSource::new("chassis.yaml", Format::Yaml, "inbound: { timeout: 1s }");
    let variables = [
        ("CHASSIS_OUTBUND__DEFAULTS__TIMEOUT", "2s"),
        ("CHASSIS_OUTBOUND__DEFAULTS__TIMOUT", "2s"),
        ("CHASSIS_OUTBOUND__SERVICES__MY_PRICE__TIMEOUT", "3s"),
    ];
    let Change::Applied(version) = block_on(async { loader(file, Environment::of(variables)).next().await })
    else {
        panic!("unknown variables are warned about only");
    };
    assert_eq!(version.warnings.len(), 2, "{:?}", version.warnings);
    let settings: Vec<_> = version.settings().map(|(path, value, _)| format!("{path} {value}")).collect();
    assert_eq!(settings, ["inbound.timeout 1s", "outbound.services.my-price.timeout 3s"]);
    let changes: Vec<_> = version.changes.iter().map(|moved| moved.path.to_string()).collect();
    assert_eq!(changes, ["inbound", "outbound"]);
}

#[cfg(feature = "grpc")]
#[test]
fn an_answer_that_a_protocol_cannot_give() {
    check(
        r"
outbound:
  defaults: { fallback: { status: 99, message: '' } }
  services:
    stock: { operations: { shop.v1.Stock/Level: { fallback: { message: 'no Base64' } } } }
",
        r#"
error: chassis.yaml:3:35  outbound.defaults.fallback.status
    3 |   defaults: { fallback: { status: 99, message: '' } }
      |                                   ^^ 99 is no HTTP status to answer with
error: chassis.yaml:5:72  outbound.services.stock.operations."shop.v1.Stock/Level".fallback.message
    5 |     stock: { operations: { shop.v1.Stock/Level: { fallback: { message: 'no Base64' } } } }
      |                                                                        ^^^^^^^^^^^ the message is no Base64: Invalid symbol 32, offset 2.
"#,
    );
}
