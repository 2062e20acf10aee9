use std::{fs, path::Path as FilePath};

use chassis_config::{
    Code, parse,
    tree::{Layer, Node, Value as Written},
};
use chassis_core::{
    Section,
    config::{Format, Text},
    settings::Problem,
};
use jsonschema::Validator;
use serde::Deserialize;

use super::*;
use crate::document::Reader;

#[derive(Default, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    /// Percent of the price. Default 0.
    discount: u8,
    nested: Nested,
}

#[derive(Default, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct Nested {
    /// Words.
    words: Vec<String>,
}

/// The reader of a program with two sections of its own: one with its schema, one without.
fn reader() -> Reader {
    let mut reader = Reader::default();
    reader.section(Section::<Shop>::new("shop").schema(crate::schema::of::<Shop>()));
    let audit = Section::<Nested>::new("x-audit").read_once();
    reader.section(audit.check(|_| Ok::<(), Vec<Problem>>(())));
    reader
}

fn tree(content: &str) -> Node {
    let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
    parse(&text, Layer::File).unwrap_or_else(|problem| panic!("{problem}\n{content}"))
}

/// A document as other readers of YAML see it.
fn json(node: &Node) -> Value {
    match &node.value {
        Written::Null => Value::Null,
        Written::Quoted(text) => text.as_str().into(),
        Written::Plain(word) => serde_json::from_str(word).unwrap_or_else(|_| word.as_str().into()),
        Written::List(items) => items.iter().map(json).collect(),
        Written::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.clone(), json(&entry.node))).collect())
        }
    }
}

fn validator(schema: &Value) -> Validator {
    jsonschema::draft7::meta::validate(schema).unwrap_or_else(|error| panic!("it is no schema: {error}"));
    jsonschema::draft7::new(schema).unwrap_or_else(|error| panic!("it is no schema: {error}"))
}

/// The YAML of a page.
fn blocks(page: &str) -> Vec<String> {
    let (mut found, mut lines) = (Vec::new(), page.lines());
    while let Some(line) = lines.next() {
        if let Some(language) = line.strip_prefix("```") {
            let block: Vec<_> = lines.by_ref().take_while(|line| !line.starts_with("```")).collect();
            if matches!(language, "yaml" | "yml") {
                found.push(block.join("\n"));
            }
        }
    }
    found
}

#[test]
fn the_settings_of_all_pages_fit_the_schema() {
    let mut reader = reader();
    // What `extending.md` registers.
    for (kind, port) in [("team", 0), ("near", 1)] {
        let registry =
            |_: &Value| Err::<std::sync::Arc<dyn chassis_core::registry::Registry>, _>("none".into());
        let picker = |_: &Value| {
            Err::<std::sync::Arc<dyn chassis_core::layer::balance::PickerFactory>, _>("none".into())
        };
        match port {
            0 => reader.kind(chassis_core::kind::from_fn(kind, registry)),
            _ => reader.kind(chassis_core::kind::from_fn(kind, picker)),
        }
    }
    let tables = reader.tables();
    let validator = validator(&of(&tables));
    let root = FilePath::new(env!("CARGO_MANIFEST_DIR"));
    let docs = fs::read_dir(root.join("docs")).unwrap().map(|page| page.unwrap().path());
    let mut checked = 0;
    for page in
        docs.chain([root.join("README.md")]).filter(|page| page.extension().is_some_and(|e| e == "md"))
    {
        for block in blocks(&fs::read_to_string(&page).unwrap()) {
            let tree = tree(&block);
            let kinds = ["registry", "config"]
                .map(|key| tree.entry(key).map(|entry| json(&entry.node)).unwrap_or_default());
            let named = |kind: &Value| kind.as_str().unwrap_or_default().to_owned();
            let kinds = [named(&kinds[0]["kind"]), named(&kinds[1]["centers"][0]["kind"])];
            let known = tables.registries.iter().chain(&tables.centers).map(|kind| kind.name.as_str());
            if kinds.iter().any(|kind| !kind.is_empty() && known.clone().all(|known| known != kind)) {
                continue; // this build is without it
            }
            let wrong: Vec<_> = validator
                .iter_errors(&json(&tree))
                .map(|error| format!("{}: {error}", error.instance_path()))
                .collect();
            assert_eq!(wrong, Vec::<String>::new(), "{}\n{block}", page.display());
            checked += 1;
        }
    }
    assert!(checked >= 8, "{checked}");
}

/// Documents, and whether the reader and the schema take them.
#[test]
fn the_schema_takes_what_the_reader_takes() {
    let reader = reader();
    let validator = validator(&of(&reader.tables()));
    for (content, is_good) in [
        ("", true),
        ("outbound:\n  services:\n    stock:\n", true),
        ("outbound: { defaults: { timeout: 2s, retry: off, breaker: { window: 10s } } }", true),
        ("outbound: { defaults: { timeout: '${env:WAIT:-2s}' } }", true),
        (
            "outbound: { defaults: { retry: { chained: on, replay_bytes: 2097152, on: [503, 5xx, connect] } } }",
            true,
        ),
        ("outbound: { defaults: { retry: { per_try: off, budget: { min: 10/s } } }, x-mine: [1] }", true),
        (
            "outbound: { services: { a: { concurrency: 5 }, b: { concurrency: { limit: 5, scope: operation } } } }",
            true,
        ),
        (
            "outbound: { services: { a: { routes: [ { name: r, match: { header: { v: { int: { ge: 2 } } } }, to: { version: 1.10 } } ] } } }",
            true,
        ),
        ("matches: { m: { any: [ { path: /a/** }, { not: { caller: b } } ] } }", true),
        (
            "faults: [ { name: f, delay: { from: 1s, to: 2s }, abort: { code: UNAVAILABLE }, until: 2h } ]",
            true,
        ),
        ("service: { version: 1.10, labels: { track: true } }", true),
        ("registry: { kind: memory, name: a }", true),
        ("registry: { kind: static, services: { s: [ { addresses: { http: 'a:1' } } ] } }", true),
        ("client: { max_body: 4MiB, http_version: 2 }", true),
        ("inbound: { rate_limits: [ { name: l, rate: 5/s, burst: 1, key: { header: x-a } } ] }", true),
        ("layers: { audit: off }\ntelemetry: { sample: 5% }\npropagate: [x-tenant]", true),
        ("shop: { discount: 5, nested: { words: [a] } }\nx-audit: {}\nx-own: 1", true),
        ("config: { centers: [], last_good: off }", true),
        (
            "config: { rollout: { share: 20%, bake_time: 5s, guard: { error_ratio: 1%, latency: 1.5, refusals: off } } }",
            true,
        ),
        ("config: { rollout: off }", true),
        ("config: { rollout: { min_calls: 0 } }", false),
        ("config: { rollout: { guard: { latency: 0.5 } } }", false),
        ("config: { rollout: { guard: { errors: 1% } } }", false),
        ("outbond: {}", false),
        ("outbound: []", false),
        ("outbound: { defaults: { timeout: 2 } }", false),
        ("outbound: { defaults: { timeout: 0s } }", false),
        ("outbound: { defaults: { timeout: 2 parsecs } }", false),
        ("outbound: { defaults: { retry: { atempts: 3 } } }", false),
        ("outbound: { defaults: { retry: { attempts: 0 } } }", false),
        ("outbound: { defaults: { retry: { when: saef } } }", false),
        ("outbound: { defaults: { retry: { on: [200] } } }", false),
        ("outbound: { defaults: { retry: { budget: { share: 120% } } } }", false),
        ("outbound: { defaults: { retry: { replay_bytes: 0 } } }", false),
        ("outbound: { services: { a: { concurrency: 0 } } }", false),
        ("outbound: { services: { a: { routes: [ { to: {} } ] } } }", false),
        ("matches: { m: { header: { v: { prefx: a } } } }", false),
        ("matches: { m: { header: { v: { prefix: a, suffix: b } } } }", false),
        ("faults: [ {} ]", false),
        ("faults: [ { name: f, delay: 5 } ]", false),
        ("registry: { kind: nonesuch }", false),
        ("registry: { name: a }", false),
        ("registry: { kind: memory, nmae: a }", false),
        ("client: { max_body: 3 bytes }", false),
        ("client: { http_version: 3 }", false),
        ("service: { priority: -1 }", false),
        ("layers: { audit: maybe }", false),
        ("inbound: { rate_limits: [ { name: l, rate: 5, burst: 1 } ] }", false),
        ("shop: { dicount: 5 }", false),
        ("shop: { discount: 256 }", false),
        ("config: { centres: [] }", false),
    ] {
        let tree = tree(content);
        let resolved = tree.clone();
        let read = match content.contains("${") {
            true => is_good, // the loader replaces it before
            false => reader.read(&resolved).0.is_some(),
        };
        let fits = validator.is_valid(&json(&tree));
        assert_eq!((read, fits), (is_good, is_good), "{content}: the reader, the schema");
    }
}

/// Each table of the schema, with a document that leads to it.
fn tables<'a>(
    root: &'a Value,
    schema: &'a Value,
    place: &mut dyn FnMut(Value) -> Value,
    within: &mut Vec<String>,
    visit: &mut dyn FnMut(Vec<String>, Value),
) {
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        if !within.iter().any(|one| one == name) {
            within.push(name.to_owned());
            tables(root, &root["definitions"][name.trim_start_matches(DEFINITIONS)], place, within, visit);
            within.pop();
        }
        return;
    }
    // The words of an enum with values are one table here, of which one key is written.
    let is_word = |schema: &&Value| {
        schema["properties"].as_object().is_some_and(|keys| keys.len() == 1) && schema["required"].is_array()
    };
    let words: Vec<&Value> = schema["anyOf"].as_array().into_iter().flatten().filter(is_word).collect();
    if words.len() > 1 {
        let keys = words.iter().flat_map(|word| word["properties"].as_object().into_iter().flatten());
        visit(keys.map(|(key, _)| key.clone()).collect(), place(json!({ "zz-nonesuch": null })));
    }
    for list in ["anyOf", "allOf"] {
        for schema in schema[list].as_array().into_iter().flatten() {
            tables(root, schema, place, within, visit);
        }
    }
    if let Some(properties) = schema["properties"].as_object() {
        let kind = properties.get("kind").and_then(|kind| kind.get("const")).cloned();
        let with_kind = |mut table: Value| {
            if let Some(kind) = &kind {
                table["kind"] = kind.clone();
            }
            table
        };
        let is_one_of_several = schema["required"].as_array().map(Vec::len) == Some(1)
            && properties.len() == 1
            && kind.is_none()
            && !properties.contains_key("header");
        if schema["additionalProperties"] == json!(false) && !is_one_of_several {
            visit(properties.keys().cloned().collect(), place(with_kind(json!({ "zz-nonesuch": null }))));
        }
        for (key, below) in properties {
            tables(root, below, &mut |value| place(with_kind(json!({ key: value }))), within, visit);
        }
    }
    if schema["additionalProperties"].is_object() {
        tables(
            root,
            &schema["additionalProperties"],
            &mut |value| place(json!({ "aa": value })),
            within,
            visit,
        );
    }
    if schema["items"].is_object() {
        tables(root, &schema["items"], &mut |value| place(json!([value])), within, visit);
    }
}

/// The reader names the keys that it accepts in a table when it finds one that it does not.
#[test]
fn the_schema_and_the_reader_have_the_same_keys() {
    let reader = reader();
    let schema = of(&reader.tables());
    let (mut checked, mut keys) = (0, 0);
    tables(&schema, &schema, &mut |value| value, &mut Vec::new(), &mut |properties, document| {
        let tree = Node::from_json(&chassis_config::tree::Origin::new("c", Layer::Builder, ""), &document);
        // Of a form among several the reader does not say which one was meant.
        if document == json!({"faults": [{"delay": {"zz-nonesuch": null}}]}) {
            return assert_eq!(properties, ["from", "share", "to"]);
        }
        let problems = reader.read(&tree).1;
        let about = |problem: &&chassis_config::Problem| {
            matches!(problem.code, Code::UnknownKey | Code::UnknownWord)
                && problem.path.to_string().ends_with("zz-nonesuch")
        };
        let problem = problems.iter().find(about).unwrap_or_else(|| panic!("{document}: {problems:?}"));
        let mut read: Vec<&str> = problem.allowed.iter().map(String::as_str).collect();
        let mut shown: Vec<&str> = properties.iter().map(String::as_str).collect();
        read.sort_unstable();
        shown.sort_unstable();
        assert_eq!(read, shown, "{document}: the reader, the schema");
        (checked, keys) = (checked + 1, keys + shown.len());
    });
    assert!(checked > 40 && keys > 300, "{checked} tables, {keys} keys");
}

/// Every key says when a change takes effect, and has a description unless its program gave none.
#[test]
fn every_key_is_described() {
    let schema = of(&Reader::default().tables());
    fn walk(schema: &Value, path: &str, found: &mut Vec<String>, count: &mut usize) {
        for (key, below) in schema["properties"].as_object().into_iter().flatten() {
            *count += 1;
            let is_stated = matches!(below[RELOAD].as_str(), Some("live" | "restart"));
            if !is_stated || below["description"].as_str().is_none_or(str::is_empty) {
                found.push(format!("{path}.{key}"));
            }
        }
        match schema {
            Value::Object(object) => {
                for (key, below) in object {
                    let path = format!("{path}/{key}");
                    match below.as_object().filter(|_| key == "properties" || key == "definitions") {
                        Some(named) => named.values().for_each(|below| walk(below, &path, found, count)),
                        None => walk(below, &path, found, count),
                    }
                }
            }
            Value::Array(list) => list.iter().for_each(|below| walk(below, path, found, count)),
            _ => {}
        }
    }
    let (mut found, mut count) = (Vec::new(), 0);
    walk(&schema, "", &mut found, &mut count);
    assert_eq!(found, Vec::<String>::new());
    assert!(count > 200, "{count}");

    let at =
        |path: &[&str]| path.iter().fold(&schema, |schema, key| &schema["properties"][*key])[RELOAD].clone();
    for (path, expected) in [
        (&["outbound"][..], "live"),
        (&["telemetry", "sample"], "live"),
        (&["service", "name"], "restart"),
        (&["client", "max_body"], "restart"),
        (&["registry"], "restart"),
        (&["config", "centers"], "restart"),
    ] {
        let at = match path {
            [one] => schema["properties"][*one][RELOAD].clone(),
            path => at(path),
        };
        let at = match at {
            Value::Null => schema["definitions"].to_string().into(), // behind a reference
            at => at,
        };
        assert!(at.as_str().is_some_and(|at| at.contains(expected)), "{path:?}: {at}");
    }
    let kinds = schema["properties"]["registry"]["anyOf"].as_array().unwrap();
    let of_static = kinds.iter().find(|kind| kind["properties"]["kind"]["const"] == "static").unwrap();
    let reload = |key: &str| of_static["properties"][key][RELOAD].clone();
    assert_eq!((reload("kind"), reload("services")), ("restart".into(), "live".into()));
    let config = &schema["properties"]["config"]["properties"];
    let reload = |key: &str| config[key][RELOAD].clone();
    assert_eq!((reload("centers"), reload("rollout")), ("restart".into(), "live".into()));
}
