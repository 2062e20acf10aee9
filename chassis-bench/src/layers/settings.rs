//! The settings of rows named `on` and `off`.
use chassis::{
    Document,
    config::{Format, Text},
    document::{parse, tree::Layer},
    settings::Settings,
};

/// A complete configuration: routes, a balancer, limits, a breaker, retries with a budget, a local timeout,
/// faults that do not apply. Metrics are always on. The timeout is long because valgrind is slow, which
/// changes no count.
pub const ON: &str = "
matches:
  beta: { header: { x-canary: 'true' } }
inbound:
  timeout: 30s
  concurrency: { limit: 100000 }
  rate_limits: [ { name: all, rate: 10000000/s, burst: 1000000 } ]
outbound:
  services:
    echo:
      timeout: 60s
      balance: p2c
      concurrency: { limit: 100000 }
      rate_limits: [ { name: all, rate: 10000000/s, burst: 1000000 } ]
      retry: { attempts: 2, when: safe, backoff: 25ms, budget: { share: 20%, min: 10/s } }
      breaker: { failure_ratio: 50%, min_calls: 20, window: 10s, open: 5s, probes: 3, scope: service }
      routes:
        - { name: beta, match: beta, to: { track: canary } }
        - { name: stable, to: { track: stable } }
faults:
  - { name: slow-echo, to: echo, match: { header: { x-fault: slow } }, delay: 200ms }
  - { name: bad-echo, match: { header: { x-fault: bad } }, abort: { code: UNAVAILABLE } }
";

/// Everything off that can be off.
pub const OFF: &str = "
inbound: { timeout: off, concurrency: off }
outbound:
  defaults: { timeout: off, concurrency: off, retry: off, breaker: off }
";

/// Parses a document of this crate.
///
/// # Panics
/// If it is invalid, which would be an error of this crate.
pub fn settings(yaml: &str) -> Settings {
    document(yaml).settings()
}

/// Parses a document of this crate, with all its sections.
pub fn document(yaml: &str) -> Document {
    let text = Text { content: yaml.into(), format: Format::Yaml, origin: "bench".into(), revision: None };
    let tree = parse(&text, Layer::File).expect("our document can be parsed");
    let (document, problems) = Document::read(&tree);
    assert!(problems.is_empty(), "{problems:?}");
    document.expect("a document without problems can be read")
}
