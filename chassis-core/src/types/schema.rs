//! The JSON Schema of settings: what `schemars` derives, and the types whose written form it can't know.
use std::borrow::Cow;

pub use schemars::{JsonSchema, Schema, SchemaGenerator};
use schemars::{generate::SchemaSettings, json_schema};
use serde::Serialize;
use serde_json::Map;
pub use serde_json::Value;

use super::{
    FailureSet,
    matching::{CallerMatch, IntMatch, Match, MatchRef, OneOrMany, ValueMatch},
    units::{PositiveSpan, Rate, Ratio, Secret, Size, Span, Switch},
};

/// The JSON Schema of `T`, draft 07.
///
/// A program gives the one of its own settings to a section by [`Section::schema`](crate::Section::schema). Its type
/// derives `JsonSchema` of the crate `schemars` 1; descriptions are its doc comments.
pub fn of<T: JsonSchema>() -> Value {
    SchemaSettings::draft07().into_generator().into_root_schema_for::<T>().to_value()
}

/// A field of a table that `settings!` declares: its name, the lines of its doc comment, its schema, and its default.
#[doc(hidden)]
pub type Field = (&'static str, &'static [&'static str], Schema, Option<Value>);

/// A default as JSON; `None` if it can't be written.
#[doc(hidden)]
pub fn default_of(value: &impl Serialize) -> Option<Value> {
    serde_json::to_value(value).ok()
}

/// The schema of a table that `settings!` declares. Every key may be left out; other keys are errors.
#[doc(hidden)]
pub fn table(doc: &[&str], fields: Vec<Field>) -> Schema {
    let text = |lines: &[&str]| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join("\n");
    let mut properties = Map::new();
    for (name, doc, mut schema, default) in fields {
        schema.insert("description".to_owned(), text(doc).into());
        if let Some(default) = default {
            schema.insert("default".to_owned(), default);
        }
        properties.insert(name.to_owned(), schema.to_value());
    }
    json_schema!({
        "type": "object",
        "description": text(doc),
        "properties": properties,
        "additionalProperties": false,
    })
}

/// The schema of a patch that [`settings!`](crate::settings) declares.
#[doc(hidden)]
#[macro_export]
macro_rules! patch_schema {
    (
        $patch:ident, $full:ident, [$($doc:literal)*],
        $( $field:ident: $ty:ty = [$($field_doc:literal)*] ),*
    ) => {
        impl $crate::schema::JsonSchema for $patch {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($patch).into()
            }
            fn schema_id() -> ::std::borrow::Cow<'static, str> {
                concat!(module_path!(), "::", stringify!($patch)).into()
            }
            fn json_schema(generator: &mut $crate::schema::SchemaGenerator) -> $crate::schema::Schema {
                let full = $full::default();
                $crate::schema::table(
                    &[$($doc),*],
                    vec![$((
                        stringify!($field),
                        &[$($field_doc),*] as &[&str],
                        generator.subschema_for::<Option<$ty>>(),
                        $crate::schema::default_of(&full.$field),
                    )),*],
                )
            }
        }
    };
}

/// The schemas of types that are read in a way of their own. They stand where they are used.
macro_rules! written {
    ($( $ty:ty: |$generator:ident| $schema:tt )*) => { $(
        impl ::schemars::JsonSchema for $ty {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($ty).into()
            }
            #[allow(unused_variables, reason = "most are alone")]
            fn json_schema($generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                ::schemars::json_schema!($schema)
            }
        }
    )* };
}
pub(crate) use written;

/// A text as `text_or_map` reads it: numbers and switches are taken as written.
const TEXT: [&str; 3] = ["string", "number", "boolean"];

written! {
    Span: |generator| {
        "type": "string",
        "pattern": r"^\s*\+?([0-9]+\.?[0-9]*|\.[0-9]+)\s*(us|ms|s|m|h)$",
    }
    PositiveSpan: |generator| {
        "type": "string",
        "pattern": r"^(?=.*[1-9])\s*\+?([0-9]+\.?[0-9]*|\.[0-9]+)\s*(us|ms|s|m|h)$",
    }
    Ratio: |generator| {
        "type": "string",
        "pattern": r"^\s*\+?0*(100(\.0*)?|[0-9]{1,2}(\.[0-9]*)?|\.[0-9]+)\s*%$",
    }
    Rate: |generator| {
        "type": "string",
        "pattern": r"^\s*\+?[0-9]+\s*/\s*(s|m|h)\s*$",
    }
    Size: |generator| {
        "anyOf": [
            {
                "type": "string",
                "pattern": r"^(?=.*[1-9])\s*\+?([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KkMmGg][Ii]?[Bb]|B)?$",
            },
            { "type": "integer", "minimum": 1, "maximum": i32::MAX },
        ],
    }
    Secret: |generator| { "type": TEXT }
    FailureSet: |generator| {
        "type": "array",
        "items": {
            "anyOf": [
                { "enum": super::failures::WORDS },
                { "type": "string", "pattern": "^[45][0-9][0-9]$" },
                { "type": "integer", "minimum": 400, "maximum": 599 },
            ],
        },
    }
    OneOrMany: |generator| {
        "anyOf": [
            { "type": "string" },
            { "type": "array", "items": { "type": "string" }, "minItems": 1 },
        ],
    }
    MatchRef: |generator| { "anyOf": [ { "type": TEXT }, generator.subschema_for::<Match>() ] }
    CallerMatch: |generator| {
        "anyOf": [
            { "type": TEXT },
            generator.subschema_for::<super::matching::CallerTable>(),
        ],
    }
}

impl<T: JsonSchema> JsonSchema for Switch<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Switch_of_{}", T::schema_name()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [ { "enum": ["off", false] }, generator.subschema_for::<T>() ] })
    }
}

/// A text, or a map with one condition.
impl JsonSchema for ValueMatch {
    fn schema_name() -> Cow<'static, str> {
        "ValueMatch".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let text = json_schema!({ "type": TEXT });
        let conditions = [
            ("exact", "Equals this text; letter case matters.", text.clone()),
            ("prefix", "Starts with this text.", text.clone()),
            ("suffix", "Ends with this.", text.clone()),
            ("contains", "Contains this text.", text.clone()),
            ("regex", "Matches this regular expression as a whole.", text.clone()),
            ("present", "Exists (`true`), or does not exist (`false`).", generator.subschema_for::<bool>()),
            ("int", "Is an integer within these bounds.", generator.subschema_for::<IntMatch>()),
            ("not", "Does not satisfy this condition.", generator.subschema_for::<ValueMatch>()),
        ];
        let mut properties = Map::new();
        for (key, description, mut schema) in conditions {
            schema.insert("description".to_owned(), description.into());
            properties.insert(key.to_owned(), schema.to_value());
        }
        json_schema!({
            "description": "A condition on a value: the value itself, or a map with one of these keys.",
            "anyOf": [
                text,
                {
                    "type": "object",
                    "properties": properties,
                    "additionalProperties": false,
                    "minProperties": 1,
                    "maxProperties": 1,
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use regex::Regex;

    use super::*;
    use crate::random::Random;

    /// Compares the pattern with the reader, on texts that are nearly right.
    #[track_caller]
    fn check<T: JsonSchema + FromStr<Err = String>>(parts: &[&str]) {
        let schema = of::<T>();
        let schema = schema.get("anyOf").map_or(&schema, |any| &any[0]);
        let pattern = schema["pattern"].as_str().unwrap();
        let (ahead, pattern) = match pattern.strip_prefix("^(?=.*[1-9])") {
            Some(rest) => (true, Regex::new(&format!("^{rest}")).unwrap()),
            None => (false, Regex::new(pattern).unwrap()),
        };
        let fits =
            |text: &str| pattern.is_match(text) && (!ahead || text.contains(|c| ('1'..='9').contains(&c)));
        let random = Random::seeded(7);
        let (mut good, mut bad) = (0, 0);
        for _ in 0..20_000 {
            let length = 1 + random.below(5);
            let text: String = (0..length).map(|_| parts[random.below(parts.len())]).collect();
            let read = text.parse::<T>();
            let is_read = read.is_ok();
            // No pattern can state a sum.
            let too_large =
                |why: String| why.contains("from 1 byte to") || why.contains("longer than a year");
            if fits(&text) && read.err().is_some_and(too_large) {
                continue;
            }
            assert_eq!(fits(&text), is_read, "{text:?}");
            if is_read { good += 1 } else { bad += 1 }
        }
        assert!(good > 300 && bad > 300, "{good} {bad}");
    }

    #[test]
    fn patterns_accept_what_the_reader_accepts() {
        let units = ["us", "ms", "s", "m", "h", "S", "d"];
        let numbers = ["0", "1", "25", ".", "+", "-", " ", "3", "07"];
        let times: Vec<&str> = numbers.into_iter().chain(units).collect();
        check::<Span>(&times);
        check::<PositiveSpan>(&times);
        check::<Ratio>(&["0", "1", "99", "100", ".", "+", " ", "%", "%", "5", "07"]);
        check::<Rate>(&["0", "1", "99", "/", "/s", "/m", "/h", " ", "+", "-", ".", "s"]);
        // A fraction of a byte is no size, which no pattern can state.
        check::<Size>(&["0", "1", "25", "+", "-", " ", "KiB", "mb", "GB", "B", "b", "k"]);
    }
}
