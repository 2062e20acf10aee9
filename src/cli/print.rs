//! Settings as YAML: those that sources set, each with its origin, and all others as comments, with their defaults.
//!
//! Defaults come from the code that applies them: those of calls from [`settings::defaults`], all others from the schema,
//! which derives them from the types.
use chassis_config::{
    Provenance,
    tree::{Node, Path, Segment, Value},
};
use chassis_core::settings;
use serde_json::{Map, Value as Json};

/// The column of the comments, if the values leave room.
const COLUMN: usize = 48;
/// The most characters of a description.
const DESCRIBED: usize = 90;
/// Where definitions stand in the schema.
const DEFINITIONS: &str = "#/definitions/";

/// Prints settings with a schema.
struct Printer<'a> {
    definitions: Option<&'a Map<String, Json>>,
    /// The defaults of incoming calls, and of outgoing ones.
    inbound: Json,
    outbound: Json,
    text: String,
}

/// Where a line stands.
#[derive(Clone, Copy)]
struct Place {
    /// The number of tables around it.
    depth: usize,
    /// The depth at which the comment begins that it is a part of.
    comment: Option<usize>,
}

/// The settings of a tree. Secrets and what references stand for are not shown.
pub(super) fn commented(tree: &Node, schema: &Json) -> String {
    let (inbound, outbound) = settings::defaults();
    let json = |value: serde_json::Result<Json>| value.unwrap_or_default(); // settings can be written
    let mut printer = Printer {
        definitions: schema["definitions"].as_object(),
        inbound: json(serde_json::to_value(inbound)),
        outbound: json(serde_json::to_value(outbound)),
        text: String::new(),
    };
    printer.table(tree, Some(schema), &mut Path::default(), true);
    printer.text
}

// === impl Printer ===

impl<'a> Printer<'a> {
    /// The entries of a table; `is_whole`: also the keys that are not set.
    fn table(&mut self, node: &Node, schema: Option<&'a Json>, path: &mut Path, is_whole: bool) {
        let table = schema.and_then(|schema| self.table_of(schema, Some(node)));
        let depth = path.0.len();
        for entry in node.entries() {
            path.0.push(Segment::Key(entry.key.clone()));
            let fixed = table.and_then(|table| table.get("properties")?.get(&entry.key));
            let named =
                || table.and_then(|table| table.get("additionalProperties")).filter(|all| all.is_object());
            let below = fixed.or_else(named);
            let about = fixed.map(|schema| first_sentence(self.description(schema))).unwrap_or_default();
            let place = Place { depth, comment: None };
            if entry.node.entries().is_empty() {
                let origin = Provenance::of(&entry.node).to_string();
                self.line(place, &entry.key, &shown(&entry.node, path), &origin, &about);
            } else {
                self.line(place, &entry.key, "", "", &about);
                // A table under a name that people choose inherits what it does not set, unless it chooses a kind.
                let is_whole = is_whole && (fixed.is_some() || entry.node.entry("kind").is_some());
                self.table(&entry.node, below, path, is_whole);
            }
            path.0.pop();
        }
        let properties = table.and_then(|table| table.get("properties")?.as_object());
        for (key, schema) in properties.into_iter().flatten().filter(|_| is_whole) {
            if node.entry(key).is_none() && !is_deprecated(schema) {
                self.unset(key, schema, path, Place { depth, comment: Some(depth) });
            }
        }
    }

    /// A key that no source sets, with those below it.
    fn unset(&mut self, key: &str, schema: &'a Json, path: &mut Path, place: Place) {
        path.0.push(Segment::Key(key.to_owned()));
        let default = self.default(path, schema).cloned();
        let description = self.description(schema);
        let about = match default {
            Some(_) => first_sentence(description),
            None => sentence_about_default(description),
        };
        let below = self.table_of(schema, None);
        let properties = below.and_then(|table| table.get("properties")?.as_object());
        let is_on = |default: &Json| default.as_object().is_some_and(Map::is_empty);
        match (&default, properties) {
            (None, Some(properties)) if !is_optional(schema) => {
                self.unset_table(key, properties, &about, path, place);
            }
            (Some(default), Some(properties)) if is_on(default) => {
                self.unset_table(key, properties, &about, path, place);
            }
            (Some(default), _) => self.line(place, key, &written(default), "default", &about),
            // A map under names that people choose.
            (None, None) if below.is_some() && !is_optional(schema) => {
                self.line(place, key, "{}", "default", &about);
            }
            (None, _) => self.line(place, key, "", "default", &about),
        }
        path.0.pop();
    }

    fn unset_table(
        &mut self,
        key: &str,
        properties: &'a Map<String, Json>,
        about: &str,
        path: &mut Path,
        place: Place,
    ) {
        self.line(place, key, "", "", about);
        for (key, schema) in properties.iter().filter(|(_, schema)| !is_deprecated(schema)) {
            self.unset(key, schema, path, Place { depth: place.depth + 1, ..place });
        }
    }

    fn line(&mut self, place: Place, key: &str, value: &str, origin: &str, about: &str) {
        let indent = match place.comment {
            None => "  ".repeat(place.depth),
            Some(begin) => format!("{}# {}", "  ".repeat(begin), "  ".repeat(place.depth - begin)),
        };
        let said: Vec<&str> = [origin, about].into_iter().filter(|said| !said.is_empty()).collect();
        let line = format!("{indent}{}: {value}", word(key));
        let line = match said.is_empty() {
            true => line.trim_end().to_owned(),
            false => format!("{:COLUMN$} # {}", line.trim_end(), said.join("; ")),
        };
        self.text.push_str(&line);
        self.text.push('\n');
    }

    /// The default of a key, if it can be written.
    fn default<'s>(&'s self, path: &Path, schema: &'s Json) -> Option<&'s Json> {
        let keys: Vec<&str> = path
            .0
            .iter()
            .map(|segment| match segment {
                Segment::Key(key) => key.as_str(),
                Segment::Index(_) => "",
            })
            .collect();
        let of_calls = match *keys {
            ["inbound", key] => self.inbound.get(key),
            ["outbound", "defaults", key] => self.outbound.get(key),
            _ => None,
        };
        of_calls.or_else(|| schema.get("default"))
    }

    fn description(&self, schema: &'a Json) -> &'a str {
        let own = schema.get("description").and_then(Json::as_str);
        own.or_else(|| self.target(schema)?.get("description")?.as_str()).unwrap_or_default()
    }

    /// The definition that a schema refers to.
    fn target(&self, schema: &Json) -> Option<&'a Json> {
        self.definitions?.get(schema.get("$ref")?.as_str()?.strip_prefix(DEFINITIONS)?)
    }

    /// The schema of the table that a value may be: with fixed keys, or with keys that people choose. Among several it is the
    /// one of the `kind` that `node` chooses; `None` without one.
    fn table_of(&self, schema: &'a Json, node: Option<&Node>) -> Option<&'a Map<String, Json>> {
        if let Some(target) = self.target(schema) {
            return self.table_of(target, node);
        }
        let object = schema.as_object()?;
        if object.contains_key("properties")
            || object.get("additionalProperties").is_some_and(Json::is_object)
        {
            return Some(object);
        }
        let all = object.get("anyOf").or_else(|| object.get("allOf"))?.as_array()?;
        let mut tables = all.iter().filter_map(|one| self.table_of(one, node));
        let kind = node.and_then(|node| match &node.entry("kind")?.node.value {
            Value::Plain(word) | Value::Quoted(word) => Some(word.as_str()),
            _ => None,
        });
        tables.find(|table| {
            let name = table.get("properties").and_then(|all| all.get("kind")?.get("const")?.as_str());
            name.is_none_or(|name| Some(name) == kind)
        })
    }
}

/// Whether a value may be absent, so that its table is not there by default.
fn is_optional(schema: &Json) -> bool {
    let any = schema.get("anyOf").and_then(Json::as_array);
    any.is_some_and(|any| any.iter().any(|one| one.get("type").is_some_and(|of| of == "null")))
}

fn is_deprecated(schema: &Json) -> bool {
    schema.get("deprecated").is_some_and(|deprecated| deprecated == true)
}

/// The value of an entry on its line.
fn shown(node: &Node, path: &Path) -> String {
    match (&node.value, path.is_secret()) {
        (Value::Null, _) => String::new(),
        (_, true) => "\"***\"".to_owned(),
        (value @ (Value::Plain(_) | Value::Quoted(_)), false) => match (&node.written, value) {
            (Some(written), _) => format!("{written:?}"),
            (None, Value::Quoted(text)) => format!("{text:?}"),
            (None, value) => value.to_string(),
        },
        (value, false) => value.to_string(),
    }
}

/// A default as YAML.
fn written(default: &Json) -> String {
    match default {
        Json::String(text)
            if text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./%".contains(c)) && !text.is_empty() =>
        {
            text.clone()
        }
        other => other.to_string(), // JSON is YAML
    }
}

/// A key, in quotes where YAML needs them.
fn word(key: &str) -> String {
    let is_plain = !key.is_empty()
        && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
    if is_plain && !key.starts_with('-') { key.to_owned() } else { format!("{key:?}") }
}

/// The beginning of a description.
fn first_sentence(description: &str) -> String {
    let line = description.lines().next().unwrap_or_default();
    let sentence = line.split_once(". ").map_or(line, |(first, _)| first).trim_end_matches('.');
    match sentence.char_indices().nth(DESCRIBED) {
        Some((cut, _)) => format!("{}\u{2026}", &sentence[..cut]),
        None => sentence.to_owned(),
    }
}

/// The part of a description about the default; its beginning if there is none.
fn sentence_about_default(description: &str) -> String {
    let start = description.find("Default: ").map(|at| at + "Default: ".len());
    match start {
        Some(start) => first_sentence(&description[start..]),
        None => first_sentence(description),
    }
}

#[cfg(test)]
mod tests {
    use chassis_config::{parse, tree::Layer};
    use chassis_core::{
        Runtime,
        config::{Format, Text},
        layer::{
            breaker::BreakerConfig,
            retry::{BudgetConfig, RetryConfig},
        },
        units::{Patch, Switch},
    };

    use super::*;
    use crate::{Document, cli::schema, document::Reader};

    fn tree(content: &str) -> Node {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        parse(&text, Layer::File).unwrap_or_else(|problem| panic!("{problem}\n{content}"))
    }

    fn printed(content: &str) -> String {
        commented(&tree(content), &schema::of(&Reader::default().tables()))
    }

    /// With the defaults as settings.
    fn uncommented(printed: &str) -> String {
        let line = |line: &str| match line.trim_start().strip_prefix("# ") {
            Some(rest) => format!("{}{rest}\n", &line[..line.len() - line.trim_start().len()]),
            None => format!("{line}\n"),
        };
        printed.lines().map(line).collect()
    }

    #[track_caller]
    fn document(content: &str) -> Document {
        let (document, problems) = Reader::default().read(&tree(content));
        document.unwrap_or_else(|| {
            let all: Vec<_> = problems.iter().map(ToString::to_string).collect();
            panic!("{}\n{content}", all.join("\n"))
        })
    }

    fn whole<P: Patch>(patch: Option<&Switch<P>>) -> P::Full {
        let mut full = P::Full::default();
        if let Some(patch) = patch.and_then(Switch::on) {
            patch.apply(&mut full);
        }
        full
    }

    /// The settings of retries, with the whole ones of their budget.
    fn parts(config: RetryConfig) -> (RetryConfig, BudgetConfig) {
        let budget = whole(Some(&config.budget));
        (RetryConfig { budget: Switch::Off, ..config }, budget)
    }

    #[test]
    fn what_is_printed_means_the_same() {
        for content in [
            "outbound: { defaults: { timeout: 2s, retry: off }, services: { 'a b': {} } }\n\
             faults: [ { name: 'x: y', share: 5% } ]\nempty:\nsaid: '5'\n",
            "registry: { kind: static, services: { a: ['1:2'] } }\noutbound: { defaults: { retry: { budget: {} } } }",
            "",
        ] {
            let printed = printed(content);
            assert_eq!(tree(&printed).value, tree(content).value, "{printed}");
        }
        let printed = printed("outbound: { defaults: { timeout: 2s } }\na: { token: hunter2 }");
        let first = format!("    {:44} # c:1:34; The time that a call", "timeout: 2s");
        assert!(printed.lines().nth(2).is_some_and(|line| line.starts_with(&first)), "{printed}");
        assert!(printed.contains("token: \"***\"") && !printed.contains("hunter2"), "{printed}");
    }

    #[test]
    fn keys_that_no_source_sets_have_their_defaults() {
        let printed = printed(
            "outbound: { defaults: { retry: { attempts: 3 } }, services: { stock: { timeout: 1s } } }",
        );
        for line in [
            "    # timeout: 5s ",
            "    # fallback: off ",
            "      # when: safe ",
            "      # budget:",
            "      #   share: 20% ",
            "    # breaker:",
            "    #   failure_ratio: 50% ",
            "# inbound:",
            "#   timeout: 30s ",
            "#   total_timeout: off ",
            "# shutdown:",
            "#   deadline: 25s ",
            "#   delay:  ",
            "#   hold:",
            "#     share: 50% ",
            "# faults: [] ",
            "# matches: {} ",
            "#   zone:  ",
        ] {
            let found: Vec<_> = printed.lines().filter(|printed| printed.starts_with(line)).collect();
            assert!(!found.is_empty(), "{line} in\n{printed}");
            assert!(line.ends_with(':') || found.iter().all(|line| line.contains(" # default")), "{found:?}");
        }
        assert!(!printed.contains("attempts: 2"), "{printed}");
        // A service inherits what it does not set.
        let stock = printed.split_once("stock:").map_or("", |(_, stock)| stock);
        assert!(!stock.lines().skip(2).any(|line| line.starts_with("      # ")), "{stock}");
    }

    /// The defaults that are printed are those that are in force: as settings they change nothing.
    #[tokio::test]
    async fn printed_defaults_are_those_in_force() {
        let printed = printed("");
        let settings = uncommented(&printed);
        assert!(printed.lines().filter(|line| line.contains(" # default")).count() > 80, "{printed}");
        let (written, default) = (document(&settings), document(""));
        assert_eq!((&written.service, &written.listen), (&default.service, &default.listen));
        assert_eq!((&written.discovery, &written.telemetry), (&default.discovery, &default.telemetry));
        assert_eq!((&written.propagate, &written.shutdown), (&default.propagate, &default.shutdown));
        assert_eq!(written.rollout, default.rollout);
        assert_eq!(
            (&written.matches, &written.faults, &written.layers),
            (&default.matches, &default.faults, &default.layers)
        );
        let defaults = &written.outbound.defaults;
        assert_eq!(parts(whole(defaults.retry.as_ref())), parts(RetryConfig::default()));
        assert_eq!(whole(defaults.breaker.as_ref()), BreakerConfig::default());
        assert!(
            defaults
                .retry
                .as_ref()
                .is_some_and(|retry| retry.on().is_some_and(|retry| retry.attempts.is_some()))
        );
        // And so are the rules that are compiled of them.
        let compiled = |document: &Document| {
            let runtime = Runtime::builder("orders").build().expect("the names of the metrics are free");
            runtime.apply(&document.settings(), 1, "").expect("they fit together");
            let policies = runtime.policies().get();
            [policies.outbound(&"stock".into(), "a.B/C"), policies.inbound("a.B/C")].map(|policy| {
                let (timeout, total) = (policy.timeout(), policy.total_timeout());
                (
                    timeout,
                    total,
                    policy.retry().cloned().map(parts),
                    policy.concurrency().copied(),
                    policy.is_idempotent(),
                )
            })
        };
        assert_eq!(compiled(&written), compiled(&default));
    }
}
