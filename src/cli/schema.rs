//! The JSON Schema of the settings, draft 07: what the document derives, with the kinds and sections of a program, and
//! with what its reader does beside the types.
use std::collections::BTreeMap;

use chassis_config::Renamed;
use chassis_core::units::Switch;
use serde_json::{Map, Value, json};

use crate::{
    document::{Document, READ_ONCE, RolloutConfig},
    kinds::{Described, FIXED_REGISTRY, Tables},
};

/// Where definitions stand.
const DEFINITIONS: &str = "#/definitions/";
/// The definition of a value that is written as a reference.
const REFERENCE: &str = "reference";
/// The keyword that says when a change of a key takes effect.
const RELOAD: &str = "x-reload";
/// The keys of a kind's table that are reloaded, until the schema is marked.
const LIVE: &str = "x-live";
/// Keywords that describe a schema, and stay outside when it gets alternatives.
const ANNOTATIONS: [&str; 5] = ["description", "default", "deprecated", "examples", "title"];
/// Keywords with a map of schemas, with one schema, and with a list of schemas.
const MAPS: [&str; 2] = ["properties", "patternProperties"];
const ONES: [&str; 3] = ["additionalProperties", "items", "not"];
const LISTS: [&str; 3] = ["anyOf", "allOf", "items"];

/// When a change takes effect.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reload {
    Live,
    Restart,
}

/// Collects the definitions that a schema uses, by when their keys are reloaded.
struct Marker {
    known: Map<String, Value>,
    used: BTreeMap<String, Value>,
}

/// The schema of all settings.
pub(super) fn of(tables: &Tables) -> Value {
    let mut known = Map::new();
    let mut root = hoist(chassis_core::schema::of::<Document>(), "", &mut known);
    let mut put = |key: &str, schema: Value, known: &mut Map<String, Value>| {
        let mut schema = hoist(schema, key, known);
        let properties = &mut root["properties"];
        if let (Some(schema), Some(description)) =
            (schema.as_object_mut(), properties[key].get("description"))
        {
            schema.insert("description".to_owned(), description.clone());
        }
        properties[key] = schema;
    };
    let mut fixed = kinds(&tables.registries, &[], "registry", &mut known);
    put("registry", fixed.clone(), &mut known);
    // Tables of registries within others are read once.
    for kind in fixed["anyOf"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        kind.remove(LIVE);
    }
    known.insert(FIXED_REGISTRY.trim_start_matches(DEFINITIONS).to_owned(), fixed);
    if let Some(discovery) = known.get_mut("DiscoverySection") {
        discovery[LIVE] = json!(["hold"]);
        let description = discovery["properties"]["services"]["description"].take();
        discovery["properties"]["services"] = json!({
            "description": description,
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": { "registry": { "description": "Its registry, a table with a `kind`.", "$ref": FIXED_REGISTRY } },
                "additionalProperties": false,
            },
        });
    }
    put(
        "pickers",
        json!({ "type": "object", "additionalProperties": kinds(&tables.pickers, &[], "pickers", &mut known) }),
        &mut known,
    );
    let center = [
        ("required", "Whether there is no start without it. Default `true`.", true),
        (
            "references",
            "Whether `${env:…}` and `${file:…}` in its texts are replaced; its writers can then read files and variables of \
             the process. Default `false`: such a text is refused.",
            false,
        ),
    ];
    let centers = kinds(&tables.centers, &center, "config", &mut known);
    let mut rollout = hoist(chassis_core::schema::of::<Switch<RolloutConfig>>(), "rollout", &mut known);
    rollout["description"] =
        "How new settings are rolled out, or `off`: then every instance applies them at once. Default `off`."
            .into();
    rollout["default"] = "off".into();
    let config = json!({
        "type": "object",
        LIVE: ["rollout"],
        "properties": {
            "rollout": rollout,
            "centers": {
                "description": "Config centers; later ones override earlier ones, and all of them override files.",
                "type": "array",
                "items": centers,
            },
            "last_good": {
                "description": "The directory in which the last good text of each center is kept, for a start while it is \
                                down; `off` keeps none. Default: `$STATE_DIRECTORY`, or a directory below \
                                `$XDG_STATE_HOME` or `$HOME`.",
                "anyOf": [ { "type": "string" }, { "enum": ["off", false] } ],
            },
        },
        "additionalProperties": false,
    });
    put("config", config, &mut known);
    for section in &tables.sections {
        put(&section.name, with_old_names(section.schema.clone(), &section.renamed), &mut known);
    }
    let mut marker = Marker { known, used: BTreeMap::new() };
    if let Some(properties) = root["properties"].as_object_mut() {
        for (key, schema) in properties {
            let section = tables.sections.iter().find(|section| section.name == *key);
            let is_read_once = section.map_or(READ_ONCE.contains(&&**key), |section| section.is_read_once);
            let reload = if is_read_once { Reload::Restart } else { Reload::Live };
            accept(schema, false);
            marker.mark(schema, reload);
            state(schema, reload);
        }
    }
    own_keys(&mut root);
    let reference = json!({
        "description": "A reference: `${env:NAME}`, `${file:/path}`, or the text of a cipher.",
        "type": "string",
        "pattern": r"\$\{",
    });
    marker.used.insert(REFERENCE.to_owned(), reference);
    let root = root.as_object_mut().map(std::mem::take).unwrap_or_default();
    let mut schema = Map::from_iter([
        ("$schema".to_owned(), "http://json-schema.org/draft-07/schema#".into()),
        ("title".to_owned(), "Settings of a chassis service".into()),
        ("definitions".to_owned(), Value::Object(marker.used.into_iter().collect())),
    ]);
    schema.extend(root.into_iter().filter(|(key, _)| !["$schema", "title", "default"].contains(&&**key)));
    Value::Object(schema)
}

/// The tables of all kinds of a port, with the keys `beside` those of the kind.
fn kinds(
    kinds: &[Described],
    beside: &[(&str, &str, bool)],
    place: &str,
    known: &mut Map<String, Value>,
) -> Value {
    let table = |kind: &Described| {
        let schema = match &kind.schema {
            Value::Object(schema) if schema.contains_key("properties") => {
                with_old_names(kind.schema.clone(), &kind.renamed)
            }
            _ => json!({ "type": "object", "properties": {} }),
        };
        let mut schema = hoist(schema, &format!("{place}.{}", kind.name), known);
        schema[LIVE] = json!(kind.live);
        schema["properties"]["kind"] = json!({ "description": "The kind.", "const": kind.name });
        for (key, description, default) in beside {
            schema["properties"][*key] =
                json!({ "description": description, "type": "boolean", "default": default });
        }
        match schema["required"].as_array_mut() {
            Some(required) => required.push("kind".into()),
            None => schema["required"] = json!(["kind"]),
        }
        schema
    };
    match kinds {
        [] => json!({ "not": {} }),
        kinds => json!({ "anyOf": kinds.iter().map(table).collect::<Vec<_>>() }),
    }
}

/// Adds the old names of keys that have new ones, as deprecated.
fn with_old_names(mut schema: Value, all: &[Renamed]) -> Value {
    for renamed in all {
        let Some(table) = place_of(&schema, renamed).and_then(|place| schema.pointer_mut(&place)) else {
            continue;
        };
        let Some(mut old) = table["properties"].get(renamed.new_name()).cloned() else { continue };
        old["deprecated"] = true.into();
        old["description"] = format!("Deprecated: it is now called `{}`.", renamed.new_name()).into();
        table["properties"][renamed.old()] = old;
        // Either of them will do.
        if let Some(required) = table["required"].as_array_mut() {
            required.retain(|key| key != renamed.new_name());
        }
    }
    schema
}

/// The pointer to the table of a key that has a new name.
fn place_of(schema: &Value, renamed: &Renamed) -> Option<String> {
    let mut place = table_at(schema, String::new())?;
    for step in renamed.table() {
        place = table_at(
            schema,
            match step.as_str() {
                "*" => format!("{place}/additionalProperties"),
                "[*]" => format!("{place}/items"),
                key => format!("{place}/properties/{}", key.replace('~', "~0").replace('/', "~1")),
            },
        )?;
    }
    Some(place)
}

/// The pointer to the table or the list that the schema at `place` is, or refers to, or has among its alternatives.
fn table_at(schema: &Value, place: String) -> Option<String> {
    let here = schema.pointer(&place)?.as_object()?;
    if let Some(name) = here.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(DEFINITIONS)) {
        return table_at(schema, format!("/definitions/{name}"));
    }
    if ["properties", "additionalProperties", "items"].iter().any(|key| here.contains_key(*key)) {
        return Some(place);
    }
    let (choice, all) =
        ["anyOf", "allOf", "oneOf"].iter().find_map(|key| Some((key, here.get(*key)?.as_array()?)))?;
    (0..all.len()).find_map(|at| table_at(schema, format!("{place}/{choice}/{at}")))
}

/// Moves the definitions of a schema to `known`, below a name of their own.
fn hoist(mut schema: Value, prefix: &str, known: &mut Map<String, Value>) -> Value {
    let Some(object) = schema.as_object_mut() else { return schema };
    let name = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    object.remove("$schema");
    object.remove("title");
    let definitions = object.remove("definitions");
    rename(&mut schema, &name);
    if let Some(Value::Object(definitions)) = definitions {
        for (key, mut definition) in definitions {
            rename(&mut definition, &name);
            known.insert(name(&key), definition);
        }
    }
    schema
}

/// Rewrites the names of definitions, but for those that were moved before.
fn rename(schema: &mut Value, name: &impl Fn(&str) -> String) {
    match schema {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(to) if key == "$ref" => {
                        if let Some(old) = to.strip_prefix(DEFINITIONS).filter(|old| !old.contains('.')) {
                            *to = format!("{DEFINITIONS}{}", name(old));
                        }
                    }
                    value => rename(value, name),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|schema| rename(schema, name)),
        _ => {}
    }
}

/// The schemas directly below one.
fn below(schema: &mut Value) -> Vec<&mut Value> {
    let mut found = Vec::new();
    let Some(object) = schema.as_object_mut() else { return found };
    for (key, value) in object {
        let is_one = value.is_object() && ONES.contains(&&**key);
        match value {
            value if is_one => found.push(value),
            Value::Object(map) if MAPS.contains(&&**key) => found.extend(map.values_mut()),
            Value::Array(list) if LISTS.contains(&&**key) => found.extend(list),
            _ => {}
        }
    }
    found
}

/// Accepts what the reader does beside the types: nothing in place of a table or a list, `on` and `off` for switches,
/// words without quotes for texts, references for all values, and keys of one's own. `is_choice`: it stands among
/// alternatives, which accept references together.
fn accept(schema: &mut Value, is_choice: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    tidy(object);
    if let Some(any) = object.remove("oneOf") {
        object.insert("anyOf".to_owned(), any); // a reference fits several
    }
    let has_choices = object.contains_key("anyOf");
    for (key, value) in object.iter_mut() {
        let mut one = json!({ key: value.take() });
        below(&mut one).into_iter().for_each(|schema| accept(schema, key == "anyOf"));
        *value = one[key].take();
    }
    let types: Vec<String> = match object.get("type") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(several)) => several.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect(),
        _ => Vec::new(),
    };
    let is = |name: &str| types.iter().any(|one| one == name);
    if is("object") || is("array") {
        if !is("null") && !object.contains_key("required") {
            object.insert("type".to_owned(), json!([types[0], "null"]));
        }
        if is("object") {
            own_keys(schema);
        }
        return;
    }
    if is("boolean") && !is("string") {
        let alone = json!({ "type": object.remove("type") });
        object.insert("anyOf".to_owned(), json!([alone, { "enum": ["on", "off"] }]));
    } else if is("string")
        && !["pattern", "enum", "const", "format"].iter().any(|key| object.contains_key(*key))
    {
        let null = is("null").then_some("null");
        let all: Vec<_> = ["string", "number", "boolean"].into_iter().chain(null).collect();
        object.insert("type".to_owned(), json!(all));
        return;
    }
    let is_value = has_choices
        || object.contains_key("anyOf")
        || ["enum", "pattern"].iter().any(|key| object.contains_key(*key))
        || ["string", "integer", "number"].into_iter().any(is);
    if is_choice || !is_value {
        return;
    }
    let reference = json!({ "$ref": format!("{DEFINITIONS}{REFERENCE}") });
    if let Some(Value::Array(any)) = object.get_mut("anyOf") {
        if !any.iter().all(|one| one.get("properties").is_some()) && !any.contains(&reference) {
            any.push(reference);
        }
        return;
    }
    let inner = object.keys().filter(|key| !ANNOTATIONS.contains(&&***key)).cloned().collect::<Vec<_>>();
    let inner: Map<String, Value> =
        inner.into_iter().filter_map(|key| object.remove(&key).map(|value| (key, value))).collect();
    object.insert("anyOf".to_owned(), json!([inner, reference]));
}

/// Keys that begin with `x-` are the writer's own wherever keys are fixed.
fn own_keys(schema: &mut Value) {
    let is_fixed = schema["additionalProperties"] == json!(false);
    let count = |key: &str| schema[key].as_array().map(Vec::len).or(schema[key].as_object().map(Map::len));
    let is_word = count("properties") == Some(1) && count("required") == Some(1);
    if is_fixed && !is_word && schema["maxProperties"] != json!(1) {
        schema["patternProperties"] = json!({ "^x-": {} });
    }
}

/// Descriptions in one line, without what only a page of code has; defaults of single values.
fn tidy(object: &mut Map<String, Value>) {
    if let Some(Value::String(description)) = object.get_mut("description") {
        let text = description.split("```").next().unwrap_or_default();
        let paragraphs =
            text.split("\n\n").map(|lines| lines.lines().map(str::trim).collect::<Vec<_>>().join(" "));
        *description = without_links(paragraphs.collect::<Vec<_>>().join("\n\n").trim());
    }
    // An alternative of an enum: the description is that of its only key.
    if let (Some(description), Some(Value::Object(properties))) =
        (object.get("description").cloned(), object.get_mut("properties"))
        && properties.len() == 1
    {
        for property in properties.values_mut().filter_map(Value::as_object_mut) {
            property.entry("description").or_insert(description.clone());
        }
    }
    let is_long = |default: &Value| default.as_object().is_some_and(|table| !table.is_empty());
    if object.get("default").is_some_and(|default| default.is_null() || is_long(default)) {
        object.remove("default");
    }
    object.remove("title");
    // Of numbers the bounds say all.
    if object.get("format").and_then(Value::as_str).is_some_and(|format| format.contains("int")) {
        object.remove("format");
    }
}

/// Rust's links are no links here: ``[`Kind`](crate::Kind)``.
fn without_links(text: &str) -> String {
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(start) = rest.find("[`") {
        let Some(end) = rest[start..].find("`]").map(|end| start + end) else { break };
        plain.push_str(&rest[..start]);
        plain.push_str(&rest[start + 1..=end]);
        rest = &rest[end + 2..];
        if let Some(target) = rest.strip_prefix('(') {
            rest = target.split_once(')').map_or(rest, |(_, after)| after);
        }
    }
    plain + rest
}

/// States when a change of this key takes effect.
fn state(schema: &mut Value, reload: Reload) {
    let word = match reload {
        Reload::Live => "live",
        Reload::Restart => "restart",
    };
    if let Some(object) = schema.as_object_mut()
        && let Some(to) = object.remove("$ref")
    {
        object.insert("allOf".to_owned(), json!([{ "$ref": to }])); // keywords beside `$ref` have no effect
    }
    match schema {
        Value::Object(object) => drop(object.insert(RELOAD.to_owned(), word.into())),
        _ => *schema = json!({ RELOAD: word }),
    }
}

// === impl Marker ===

impl Marker {
    /// States of every key below when its changes take effect.
    fn mark(&mut self, schema: &mut Value, reload: Reload) {
        if let Some(Value::String(to)) = schema.get_mut("$ref") {
            let name = to.strip_prefix(DEFINITIONS).unwrap_or_default().to_owned();
            if name == REFERENCE {
                return;
            }
            let own = match reload {
                Reload::Live => name.clone(),
                Reload::Restart => format!("{name}.restart"),
            };
            *to = format!("{DEFINITIONS}{own}");
            if !self.used.contains_key(&own) {
                self.used.insert(own.clone(), Value::Null); // it may refer to itself
                let mut definition = self.known.get(&name).cloned().unwrap_or_else(|| json!({}));
                accept(&mut definition, false);
                self.mark(&mut definition, reload);
                self.used.insert(own, definition);
            }
            return;
        }
        let Some(object) = schema.as_object_mut() else { return };
        let live = object.remove(LIVE).unwrap_or_default();
        let is_live = |key: &str| live.as_array().is_some_and(|live| live.iter().any(|one| one == key));
        for (keyword, value) in object.iter_mut() {
            match value {
                Value::Object(properties) if keyword == "properties" => {
                    for (key, schema) in properties {
                        let reload = if is_live(key) { Reload::Live } else { reload };
                        self.mark(schema, reload);
                        state(schema, reload);
                    }
                }
                values @ Value::Object(_) if keyword == "additionalProperties" => {
                    self.mark(values, reload);
                    state(values, reload);
                }
                Value::Object(_) if ONES.contains(&&**keyword) => self.mark(value, reload),
                Value::Array(list) if LISTS.contains(&&**keyword) => {
                    list.iter_mut().for_each(|schema| self.mark(schema, reload));
                }
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests;
