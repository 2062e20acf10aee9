//! Matches calls: one matcher for routes, limits, faults and retries.
//!
//! [`Match`] is the written form, `Matcher` the compiled one: it is compiled with the settings, and matches
//! each call without allocating (except for a percent-encoded query).
mod glob;
mod read;
mod value;

use std::{collections::BTreeMap, fmt};

use http::{HeaderMap, HeaderName, Method, Uri};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::value::{IntMatch, ValueMatch};
use self::{glob::Glob, read::text_or_map, value::Value};
use crate::types::{Target, wire};

/// A condition on calls: all of its keys must hold. Without keys it matches all calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Match {
    /// The operation: a glob, or a list of globs of which one must match: `stock.v1.Stock/*`, `GET
    /// /stock/{id}`. `*` matches any text without `/`, `**` any text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OneOrMany>,
    /// The HTTP method, or a list of methods. gRPC calls are `POST`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<OneOrMany>,
    /// The raw path, as a glob or template, or a list of them: `/orders/**` (and `/orders` itself),
    /// `/orders/{id}/items`. `{id}` matches one segment, which is not empty; `{*rest}` matches the rest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<OneOrMany>,
    /// Method and path together: `GET /orders/**`, or a list of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<OneOrMany>,
    /// Headers, or metadata of gRPC, by name. If one is repeated, any of its values may match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub header: BTreeMap<String, ValueMatch>,
    /// The same as `header`, by the name that gRPC uses. Values of `-bin` keys are compared in base64, as they
    /// are sent.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, ValueMatch>,
    /// Query parameters by name, decoded. If one is repeated, any of its values may match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub query: BTreeMap<String, ValueMatch>,
    /// The calling service: a glob for its name, or `{ name: …, labels: … }`. Does not match calls without a
    /// caller's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<CallerMatch>,
    /// Labels of the calling service.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub caller_labels: BTreeMap<String, ValueMatch>,
    /// At least one of these must match. An empty list is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<MatchRef>>,
    /// All of these must match. An empty list is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<MatchRef>>,
    /// This one must not match.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<MatchRef>>,
}

/// A match, or the name of an entry of `matches`.
#[derive(Clone, Debug, PartialEq)]
pub enum MatchRef {
    /// `match: beta`
    Name(String),
    /// `match: { header: { x-canary: "true" } }`
    Inline(Box<Match>),
}

/// A text, or a list of texts of which one must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOrMany(pub Vec<String>);

/// The calling service: `batch-*`, or `{ name: batch-*, labels: { track: canary } }`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallerMatch {
    /// A glob for its name. Default: any name.
    pub name: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, ValueMatch>,
}

/// A compiled match. The default one matches all calls.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matcher(Vec<Test>);

/// The parts of a call that a matcher reads.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Operation and caller.
    pub target: &'a Target,
    /// The HTTP method; `POST` for gRPC.
    pub method: &'a Method,
    /// Path and query, undecoded.
    pub uri: &'a Uri,
    /// Headers or metadata.
    pub metadata: &'a HeaderMap,
}

/// Why a match does not compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key within the match, as in `any[1].header.x-canary.regex`; empty for the match itself.
    pub path: String,
    /// The message.
    pub message: String,
    /// The values that are allowed there, if there is a list: the existing names.
    pub allowed: Vec<String>,
}

#[derive(Clone, Debug)]
enum Test {
    Method(Vec<Method>),
    Operation(Vec<Glob>),
    Path(Vec<Glob>),
    Http(Vec<(Method, Glob)>),
    Caller(Glob),
    CallerLabel(String, Value),
    Header(HeaderName, Value),
    Query(String, Value),
    Any(Vec<Matcher>),
    Not(Matcher),
}

/// The named matches, and the names that are being compiled.
struct Compiler<'a> {
    named: &'a BTreeMap<String, Match>,
    within: Vec<&'a str>,
}

// === impl Matcher ===

impl Matcher {
    /// Matches all calls.
    pub(crate) fn any() -> Self {
        Self::default()
    }

    /// Compiles `written`, and the entries of `named` that it refers to.
    pub(crate) fn compile(written: &MatchRef, named: &BTreeMap<String, Match>) -> Result<Self, Problem> {
        Compiler { named, within: Vec::new() }.resolve(written)
    }

    /// Whether it matches this call.
    #[inline]
    pub(crate) fn matches(&self, call: &Subject<'_>) -> bool {
        self.0.is_empty() || self.matches_each(call)
    }

    fn matches_each(&self, call: &Subject<'_>) -> bool {
        self.0.iter().all(|test| test.matches(call))
    }

    /// Whether it matches all calls.
    pub(crate) fn is_any(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Test ===

impl Test {
    fn matches(&self, call: &Subject<'_>) -> bool {
        match self {
            Test::Method(methods) => methods.contains(call.method),
            Test::Operation(globs) => globs.iter().any(|glob| glob.matches(call.target.operation.as_str())),
            Test::Path(globs) => globs.iter().any(|glob| glob.matches(call.uri.path())),
            Test::Http(both) => {
                both.iter().any(|(m, glob)| m == call.method && glob.matches(call.uri.path()))
            }
            Test::Caller(glob) => call.target.caller_name().is_some_and(|name| glob.matches(name)),
            Test::CallerLabel(name, value) => value.matches(|| call.target.caller_label(name).into_iter()),
            Test::Header(name, value) if wire::contains(call.metadata, name) => {
                value.matches(|| call.metadata.get_all(name).into_iter())
            }
            Test::Header(_, value) => value.matches_none(),
            Test::Query(name, value) => value.matches(|| value::parameters(call.uri.query(), name)),
            Test::Any(matchers) => matchers.iter().any(|matcher| matcher.matches(call)),
            Test::Not(matcher) => !matcher.matches(call),
        }
    }
}

// === impl Compiler ===

impl<'a> Compiler<'a> {
    fn resolve(&mut self, written: &'a MatchRef) -> Result<Matcher, Problem> {
        let name = match written {
            MatchRef::Inline(written) => return self.compile(written),
            MatchRef::Name(name) => name,
        };
        let Some(found) = self.named.get(name) else {
            let message = format!("no match is named `{name}`");
            let allowed = self.named.keys().cloned().collect();
            return Err(Problem { allowed, ..Problem::new(message) });
        };
        if self.within.contains(&name.as_str()) {
            let round = self.within.join("` → `");
            return Err(Problem::new(format!("matches go round in a circle: `{round}` → `{name}`")));
        }
        self.within.push(name);
        let compiled = self.compile(found);
        self.within.pop();
        // The problem's path is relative to the other match, not to this one.
        compiled.map_err(|problem| Problem::new(format!("match `{name}`: {problem}")))
    }

    /// The cheapest tests come first.
    fn compile(&mut self, written: &'a Match) -> Result<Matcher, Problem> {
        let mut tests = Vec::new();
        if let Some(methods) = &written.method {
            tests.push(Test::Method(methods.each("method", method)?));
        }
        if let Some(globs) = &written.operation {
            tests.push(Test::Operation(globs.each("operation", operation)?));
        }
        if let Some(both) = &written.http {
            tests.push(Test::Http(both.each("http", method_and_path)?));
        }
        if let Some(globs) = &written.path {
            tests.push(Test::Path(globs.each("path", Glob::path)?));
        }
        if let Some(caller) = &written.caller {
            if let Some(name) = &caller.name {
                tests.push(Test::Caller(Glob::name(name).map_err(|why| Problem::new(why).under("caller"))?));
            }
            let labels = values(&caller.labels).map_err(|problem| problem.under("caller.labels"))?;
            tests.extend(labels.map(|(name, value)| Test::CallerLabel(name, value)));
        }
        let labels = values(&written.caller_labels).map_err(|problem| problem.under("caller_labels"))?;
        tests.extend(labels.map(|(name, value)| Test::CallerLabel(name, value)));
        for (key, headers) in [("header", &written.header), ("metadata", &written.metadata)] {
            for (name, value) in values(headers).map_err(|problem| problem.under(key))? {
                let header = HeaderName::try_from(&name);
                let header = header.map_err(|_| Problem::new(format!("`{name}` is no name of a header")));
                let header = header.map_err(|problem| problem.under(&name).under(key))?;
                tests.push(Test::Header(header, value));
            }
        }
        let parameters = values(&written.query).map_err(|problem| problem.under("query"))?;
        tests.extend(parameters.map(|(name, value)| Test::Query(name, value)));
        if let Some(all) = &written.all {
            tests.extend(self.list("all", all)?.into_iter().flat_map(|matcher| matcher.0));
        }
        if let Some(any) = &written.any {
            tests.push(Test::Any(self.list("any", any)?));
        }
        if let Some(not) = &written.not {
            tests.push(Test::Not(self.resolve(not).map_err(|problem| problem.under("not"))?));
        }
        Ok(Matcher(tests))
    }

    fn list(&mut self, key: &str, list: &'a [MatchRef]) -> Result<Vec<Matcher>, Problem> {
        if list.is_empty() {
            return Err(Problem::new("the list is empty").under(key));
        }
        let each = list.iter().enumerate();
        each.map(|(i, one)| self.resolve(one).map_err(|problem| problem.under(&format!("{key}[{i}]"))))
            .collect()
    }
}

/// Letter case does not matter here; HTTP methods are in capitals.
fn method(text: &str) -> Result<Method, String> {
    let known = || Method::from_bytes(text.to_ascii_uppercase().as_bytes()).ok();
    known().ok_or_else(|| format!("`{text}` is no method; write GET, or a list of methods"))
}

fn operation(text: &str) -> Result<Glob, String> {
    match misspelt_operation(text) {
        Some(why) => Err(why),
        None => Glob::name(text),
    }
}

/// Why no operation can have a name like `text`, if that is certain: `get /x`, `/shop.v1.Stock/Level`.
pub(crate) fn misspelt_operation(text: &str) -> Option<String> {
    let why = |right: String| Some(format!("no operation is called `{text}`; write `{right}`"));
    match text.split_once(' ') {
        Some((verb, path)) if verb.bytes().any(|b| b.is_ascii_lowercase()) && path.starts_with('/') => {
            why(format!("{} {path}", verb.to_ascii_uppercase()))
        }
        None => match text.strip_prefix('/') {
            Some(name) if name.split('/').count() == 2 => why(name.to_owned()),
            Some(_) => why(format!("GET {text}")),
            None => None,
        },
        _ => None,
    }
}

fn method_and_path(text: &str) -> Result<(Method, Glob), String> {
    let Some((verb, path)) = text.split_once(' ') else {
        return Err(format!("`{text}` is not both method and path; write `GET /orders/**`"));
    };
    Ok((method(verb)?, Glob::path(path.trim_start())?))
}

fn values(
    written: &BTreeMap<String, ValueMatch>,
) -> Result<impl Iterator<Item = (String, Value)> + use<>, Problem> {
    let compile = |(name, value): (&String, _)| match Value::compile(value) {
        Ok(value) => Ok((name.clone(), value)),
        Err(problem) => Err(problem.under(name)),
    };
    Ok(written.iter().map(compile).collect::<Result<Vec<_>, _>>()?.into_iter())
}

// === impl Problem ===

impl Problem {
    fn new(message: impl Into<String>) -> Self {
        Problem { path: String::new(), message: message.into(), allowed: Vec::new() }
    }

    /// The same problem, relative to the value that contains `key`.
    pub fn under(self, key: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Problem { path: format!("{key}{dot}{}", self.path), ..self }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.as_str() {
            "" => f.write_str(&self.message),
            path => write!(f, "{path}: {}", self.message),
        }
    }
}

// === impl OneOrMany ===

impl OneOrMany {
    fn each<T>(&self, key: &str, compile: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Problem> {
        match &*self.0 {
            [] => Err(Problem::new("the list is empty").under(key)),
            [one] => Ok(vec![compile(one).map_err(|why| Problem::new(why).under(key))?]),
            many => {
                let at = |i| format!("{key}[{i}]");
                let each = many.iter().enumerate();
                each.map(|(i, one)| compile(one).map_err(|why| Problem::new(why).under(&at(i)))).collect()
            }
        }
    }
}

impl From<&str> for OneOrMany {
    fn from(one: &str) -> Self {
        OneOrMany(vec![one.to_owned()])
    }
}

impl Serialize for OneOrMany {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match &*self.0 {
            [one] => one.serialize(to),
            many => many.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        read::one_or_many(from).map(OneOrMany)
    }
}

// === impl MatchRef, CallerMatch ===

impl From<Match> for MatchRef {
    fn from(written: Match) -> Self {
        MatchRef::Inline(Box::new(written))
    }
}

impl Serialize for MatchRef {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            MatchRef::Name(name) => name.serialize(to),
            MatchRef::Inline(written) => written.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for MatchRef {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text_or_map(from, "the name of a match, or a match", MatchRef::Name, |written: Match| written.into())
    }
}

#[derive(Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub(super) struct CallerTable {
    /// A glob for its name. Default: any name.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Its labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, ValueMatch>,
}

impl Serialize for CallerMatch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match (&self.name, self.labels.is_empty()) {
            (Some(name), true) => name.serialize(to),
            _ => CallerTable { name: self.name.clone(), labels: self.labels.clone() }.serialize(to),
        }
    }
}

impl<'de> Deserialize<'de> for CallerMatch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let named = |name| CallerMatch { name: Some(name), labels: BTreeMap::new() };
        let table = |CallerTable { name, labels }| CallerMatch { name, labels };
        text_or_map(from, "a glob for a service's name, or a map of name and labels", named, table)
    }
}

#[cfg(test)]
mod tests;
