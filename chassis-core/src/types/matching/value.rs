//! Conditions on the value of a header, a parameter or a label.
use std::borrow::Cow;

use percent_encoding::percent_decode;
use regex::bytes::{Regex, RegexBuilder};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Problem, read::text_or_map};

/// A condition on a value: the value itself, or a map with one of these keys.
///
/// Of several values, one must satisfy it; `not` then means that none does, which is also true if there is no
/// value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "lowercase")]
pub enum ValueMatch {
    /// Equals this text; letter case matters.
    Exact(String),
    /// Starts with this text.
    Prefix(String),
    /// Ends with this.
    Suffix(String),
    /// Contains this text.
    Contains(String),
    /// Matches this regular expression as a whole, in the syntax of the `regex` crate, which takes linear time.
    Regex(String),
    /// Exists (`true`), or does not exist (`false`).
    Present(bool),
    /// Is an integer within these bounds.
    Int(IntMatch),
    /// Does not satisfy this condition.
    Not(Box<ValueMatch>),
}

/// Bounds on an integer from -2⁶³ to 2⁶³ - 1, all of which must hold. At least one is required.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct IntMatch {
    /// Equal to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eq: Option<i64>,
    /// Not equal to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ne: Option<i64>,
    /// Less than.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lt: Option<i64>,
    /// Less than or equal to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub le: Option<i64>,
    /// Greater than.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gt: Option<i64>,
    /// Greater than or equal to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ge: Option<i64>,
}

/// A [`ValueMatch`], compiled.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Contains(String),
    Regex(Regex),
    Present(bool),
    Int(IntMatch),
    Not(Box<Value>),
}

/// The largest size of a compiled regular expression, in bytes.
const LARGEST: usize = 1 << 18;

/// Values are no globs, unlike names: a value that looks like a glob is refused, because it would hardly ever
/// match.
fn no_glob(text: &str) -> Result<String, Problem> {
    let instead = match (text, text.strip_suffix('*'), text.strip_prefix('*')) {
        ("*", ..) => "present: true".to_owned(),
        (_, Some(prefix), _) if !prefix.contains(['*', '/']) => format!("prefix: {prefix:?}"),
        (_, _, Some(suffix)) if !suffix.contains(['*', '/']) => format!("suffix: {suffix:?}"),
        _ => return Ok(text.to_owned()),
    };
    let message = format!(
        "`{text}` would be taken literally; write `{{ {instead} }}`, or a `regex` for the star itself"
    );
    Err(Problem::new(message))
}

// === impl ValueMatch ===

impl Serialize for ValueMatch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            ValueMatch::Exact(text) => text.serialize(to),
            other => ValueMatch::serialize(other, to),
        }
    }
}

impl<'de> Deserialize<'de> for ValueMatch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Tagged(ValueMatch);
        impl<'de> Deserialize<'de> for Tagged {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                ValueMatch::deserialize(from).map(Tagged)
            }
        }
        text_or_map(from, "a text, or a map with one condition", ValueMatch::Exact, |Tagged(value)| value)
    }
}

// === impl IntMatch ===

impl IntMatch {
    fn holds(&self, n: i64) -> bool {
        self.eq.is_none_or(|bound| n == bound)
            && self.ne.is_none_or(|bound| n != bound)
            && self.lt.is_none_or(|bound| n < bound)
            && self.le.is_none_or(|bound| n <= bound)
            && self.gt.is_none_or(|bound| n > bound)
            && self.ge.is_none_or(|bound| n >= bound)
    }
}

// === impl Value ===

impl Value {
    pub(super) fn compile(written: &ValueMatch) -> Result<Self, Problem> {
        let some = |text: &String, key| match text.is_empty() {
            false => Ok(text.clone()),
            true => Err(Problem::new("is empty, which every value fits; write `present: true`").under(key)),
        };
        Ok(match written {
            ValueMatch::Exact(text) => Value::Exact(no_glob(text)?),
            ValueMatch::Prefix(text) => Value::Prefix(some(text, "prefix")?),
            ValueMatch::Suffix(text) => Value::Suffix(some(text, "suffix")?),
            ValueMatch::Contains(text) => Value::Contains(some(text, "contains")?),
            ValueMatch::Regex(text) => {
                Value::Regex(regex(text).map_err(|why| Problem::new(why).under("regex"))?)
            }
            ValueMatch::Present(there) => Value::Present(*there),
            ValueMatch::Int(bounds) if *bounds == IntMatch::default() => {
                return Err(Problem::new("has no bounds; write one of eq, ne, lt, le, gt, ge").under("int"));
            }
            ValueMatch::Int(bounds) => Value::Int(*bounds),
            ValueMatch::Not(inner) => {
                Value::Not(Box::new(Value::compile(inner).map_err(|problem| problem.under("not"))?))
            }
        })
    }

    /// Whether one of the values satisfies the condition. `values` is called again below each `not`.
    pub(super) fn matches<I: Iterator<Item: AsRef<[u8]>>>(&self, values: impl Fn() -> I) -> bool {
        match self {
            Value::Not(inner) => !inner.matches(values),
            Value::Present(there) => values().next().is_some() == *there,
            one => values().any(|value| one.fits(value.as_ref())),
        }
    }

    /// Whether the condition holds if there is no value.
    pub(super) fn matches_none(&self) -> bool {
        match self {
            Value::Not(inner) => !inner.matches_none(),
            Value::Present(there) => !there,
            _ => false,
        }
    }

    fn fits(&self, value: &[u8]) -> bool {
        match self {
            Value::Exact(text) => value == text.as_bytes(),
            Value::Prefix(text) => value.starts_with(text.as_bytes()),
            Value::Suffix(text) => value.ends_with(text.as_bytes()),
            Value::Contains(text) => value.windows(text.len()).any(|part| part == text.as_bytes()),
            Value::Regex(regex) => regex.is_match(value),
            Value::Int(bounds) => {
                let number = std::str::from_utf8(value).ok().and_then(|text| text.trim().parse().ok());
                number.is_some_and(|n| bounds.holds(n))
            }
            Value::Present(_) | Value::Not(_) => false, // about all values: see `matches`
        }
    }
}

fn regex(text: &str) -> Result<Regex, String> {
    let build = |text: &str| RegexBuilder::new(text).size_limit(LARGEST).dfa_size_limit(LARGEST).build();
    // Compiled alone first: in the group, `a)|(b` would be valid.
    build(text).and_then(|_| build(&format!(r"\A(?:{text})\z"))).map_err(|why| match why {
        regex::Error::CompiledTooBig(_) => format!("`{text}` is too large a regular expression"),
        why => format!("`{text}` is no regular expression: {}", why.to_string().lines().last().unwrap_or("")),
    })
}

/// The values of the parameter `name` in a raw query. Only decoding, if necessary, allocates.
pub(super) fn parameters<'q>(query: Option<&'q str>, name: &str) -> impl Iterator<Item = Cow<'q, [u8]>> {
    query.into_iter().flat_map(|query| query.split('&')).filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decoded(key) == *name.as_bytes() && !pair.is_empty()).then(|| decoded(value))
    })
}

/// Percent-decoded, with `+` for a space, as in forms. An invalid escape is kept as it is.
fn decoded(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if !bytes.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(bytes);
    }
    let spaced: Vec<u8> = bytes.iter().map(|byte| if *byte == b'+' { b' ' } else { *byte }).collect();
    Cow::Owned(percent_decode(&spaced).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares whether the condition holds for these values.
    #[track_caller]
    fn check(json: &str, values: &[&str], expected: bool) {
        let written: ValueMatch = serde_json::from_str(json).unwrap();
        let value = Value::compile(&written).unwrap();
        assert_eq!(value.matches(|| values.iter()), expected, "{json} of {values:?}");
        let again = serde_json::to_string(&written).unwrap();
        assert_eq!(serde_json::from_str::<ValueMatch>(&again).unwrap(), written, "{again}");
    }

    #[test]
    fn conditions() {
        for (json, fits, other) in [
            (r#""v2""#, "v2", "v22"),
            (r#"{"exact": "v2"}"#, "v2", "V2"),
            ("true", "true", "false"),
            ("3", "3", "4"),
            (r#"{"prefix": "v"}"#, "v2", "2v"),
            (r#"{"suffix": "2"}"#, "v2", "2v"),
            (r#"{"contains": "an"}"#, "canary", "cnary"),
            (r#"{"regex": "a|bc"}"#, "bc", "abc"),
            (r#"{"regex": "v[0-9]+"}"#, "v23", "v23 "),
            (r#"{"int": {"ge": 10, "lt": 20}}"#, "10", "20"),
            (r#"{"int": {"gt": -5, "le": 0}}"#, "-4", "-5"),
            (r#"{"int": {"eq": 7}}"#, " 7", "seven"),
            (r#"{"int": {"ne": 7}}"#, "8", "eight"),
            (r#"{"not": "v2"}"#, "v3", "v2"),
            (r#"{"not": {"not": {"prefix": "v"}}}"#, "v2", "2v"),
        ] {
            check(json, &[fits], true);
            check(json, &[other], false);
        }
    }

    #[test]
    fn several_values_and_none() {
        check(r#""b""#, &["a", "b"], true);
        check(r#"{"not": "b"}"#, &["a", "b"], false);
        check(r#"{"not": "b"}"#, &["a", "c"], true);
        check(r#""b""#, &[], false);
        check(r#"{"not": "b"}"#, &[], true);
        check(r#"{"int": {"ne": 7}}"#, &[], false);
        check(r#"{"present": true}"#, &[""], true);
        check(r#"{"present": true}"#, &[], false);
        check(r#"{"present": false}"#, &[], true);
        check(r#"{"not": {"present": true}}"#, &[], true);
    }

    #[test]
    fn bytes_that_are_no_text_fit_nothing_but_are_there() {
        let values = || [[0xFFu8, 0x80]].into_iter();
        assert!(Value::Present(true).matches(values));
        assert!(!Value::Regex(regex(".*").unwrap()).matches(values));
        assert!(!Value::Int(IntMatch { ne: Some(1), ..IntMatch::default() }).matches(values));
    }

    #[track_caller]
    fn check_refused(json: &str, expected: &str) {
        let said = match serde_json::from_str::<ValueMatch>(json) {
            Ok(written) => Value::compile(&written).unwrap_err().to_string(),
            Err(why) => why.to_string(),
        };
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn refusals() {
        check_refused(r#"{"regex": "a("}"#, "regex: `a(` is no regular expression: error: unclosed group");
        check_refused(
            r#"{"regex": "a)|(b"}"#,
            "regex: `a)|(b` is no regular expression: error: unopened group",
        );
        check_refused(
            r#"{"regex": "(\\w{90}){90}"}"#,
            "regex: `(\\w{90}){90}` is too large a regular expression",
        );
        check_refused(r#"{"not": {"prefix": ""}}"#, "not.prefix: is empty, which every value fits");
        check_refused(r#"{"int": {}}"#, "int: has no bounds; write one of eq, ne, lt, le, gt, ge");
        check_refused(r#"{"int": {"min": 1}}"#, "unknown field `min`, expected one of `eq`, `ne`, `lt`");
        check_refused(r#"{"prefx": "a"}"#, "unknown variant `prefx`, expected one of `exact`, `prefix`");
        check_refused(
            r#"{"prefix": "a", "suffix": "b"}"#,
            "`suffix` is one too many here; write one, or use `all`",
        );
        check_refused(r#"["a"]"#, "invalid type: sequence, expected a text, or a map with one condition");
    }

    #[track_caller]
    fn check_query(query: &str, name: &str, expected: &[&str]) {
        let got: Vec<_> = parameters(Some(query), name).map(|value| value.into_owned()).collect();
        assert_eq!(got, expected.iter().map(|value| value.as_bytes()).collect::<Vec<_>>(), "{query}");
    }

    #[test]
    fn queries() {
        check_query("a=1&b=2&a=3", "a", &["1", "3"]);
        check_query("a&b=2", "a", &[""]);
        check_query("a=b=c", "a", &["b=c"]);
        check_query("a=1%202+3", "a", &["1 2 3"]);
        check_query("%61=%C3%A4", "a", &["ä"]);
        check_query("a=%&a=%zz&a=%4", "a", &["%", "%zz", "%4"]);
        check_query("", "", &[]);
        check_query("A=1", "a", &[]);
        assert_eq!(parameters(None, "a").count(), 0);
    }
}
