//! Settings that a program builds: their types can be named, and they say the same as a document.
use std::{collections::BTreeMap, num::NonZeroU32};

use chassis_core::{
    Code,
    layer::{
        breaker::{BreakerPatch, FailureSet, Force},
        concurrency::{ConcurrencyConfig, Scope},
        fault::{Delay, DelayRange},
        rate_limit::{Key, RateLimitConfig},
        route::{FallbackConfig, FallbackWord, RouteConfig},
    },
    matching::{CallerMatch, IntMatch, Match, MatchRef, OneOrMany, ValueMatch},
    settings::{InboundOperationSettings, ListenerSettings, ServiceSettings},
    units::{Span, Switch},
};
use serde_json::{from_value, json};

use crate::support::*;

#[test]
fn settings_of_a_program_say_what_a_document_says() {
    let beta = Match {
        operation: Some(OneOrMany(vec!["Get".into(), "List".into()])),
        caller: Some(CallerMatch { name: Some("batch-*".into()), ..Default::default() }),
        header: BTreeMap::from([
            ("x-canary".into(), ValueMatch::Exact("true".into())),
            ("x-age".into(), ValueMatch::Int(IntMatch { ge: Some(3), ..Default::default() })),
        ]),
        ..Default::default()
    };
    let breaker = BreakerPatch {
        force: Some(Force::Open),
        failures: Some(
            FailureSet::NONE
                .with_codes([Code::Unavailable])
                .with_statuses([503])
                .with_connect()
                .with_deadline(),
        ),
        ..Default::default()
    };
    let stock = ServiceSettings {
        breaker: Some(Switch::On(breaker)),
        concurrency: Some(Switch::On(ConcurrencyConfig {
            limit: NonZeroU32::new(64).unwrap(),
            scope: Scope::Operation,
        })),
        rate_limits: Some(vec![RateLimitConfig {
            name: "batch".into(),
            rate: "5/s".parse().unwrap(),
            burst: 2,
            key: Key::default(),
            matching: Some(MatchRef::Inline(Box::new(beta))),
            max_wait: Span(std::time::Duration::ZERO),
            max_keys: from_value::<RateLimitConfig>(json!({ "name": "n", "rate": "1/s", "burst": 1 }))
                .unwrap()
                .max_keys,
            max_keys_per_peer: None,
        }]),
        routes: Some(vec![RouteConfig {
            name: "stable".into(),
            matching: Some(MatchRef::Name("beta".into())),
            to: Some(BTreeMap::from([("track".into(), "stable".into())])),
            split: None,
            by: None,
            fallback: FallbackConfig::Word(FallbackWord::None),
        }]),
        ..Default::default()
    };
    let written: ServiceSettings = from_value(json!({
        "breaker": { "force": "open", "failures": ["UNAVAILABLE", 503, "connect", "deadline"] },
        "concurrency": { "limit": 64, "scope": "operation" },
        "rate_limits": [{ "name": "batch", "rate": "5/s", "burst": 2, "match": {
            "operation": ["Get", "List"],
            "caller": "batch-*",
            "header": { "x-canary": "true", "x-age": { "int": { "ge": 3 } } },
        } }],
        "routes": [
            { "name": "stable", "match": "beta", "to": { "track": "stable" }, "fallback": "none" },
        ],
    }))
    .unwrap();
    assert_eq!(stock, written);
    let delay = Delay::Range(DelayRange { from: Span(MS), to: Span(S), share: None });
    assert_eq!(delay, from_value(json!({ "from": "1ms", "to": "1s" })).unwrap());
    assert_eq!(InboundOperationSettings::default(), from_value(json!({})).unwrap());
    assert_eq!(ListenerSettings::default(), from_value(json!({})).unwrap());
}
