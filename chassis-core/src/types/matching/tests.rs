use super::*;

/// A call of which each test changes one part.
struct Call {
    target: Target,
    method: Method,
    uri: Uri,
    metadata: HeaderMap,
}

fn call() -> Call {
    let mut target = Target::new("shop", "GET /orders/{id}".into());
    target.caller = Some("batch-7;track=canary".parse().unwrap());
    let metadata = [("x-canary", "true"), ("x-tag", "a"), ("x-tag", "b"), ("x-size", "12")];
    let metadata = metadata.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let metadata =
        HeaderMap::<http::HeaderValue>::from_iter::<[(HeaderName, http::HeaderValue); 4]>(metadata);
    let method = Method::GET;
    Call { target, method, uri: "/orders/5?page=2&q=a%20b".parse().unwrap(), metadata }
}

fn compile(json: &str) -> Result<Matcher, Problem> {
    let named = r#"{ "beta": { "header": { "x-canary": "true" } }, "loop": { "any": ["pool"] },
                     "pool": { "not": "loop" }, "bad": { "path": "orders" } }"#;
    let named = serde_json::from_str(named).unwrap();
    let written: MatchRef = serde_json::from_str(json).unwrap();
    let again: MatchRef = serde_json::from_str(&serde_json::to_string(&written).unwrap()).unwrap();
    assert_eq!(again, written);
    Matcher::compile(&written, &named)
}

#[track_caller]
fn check(json: &str, expected: bool) {
    let matcher = compile(json).unwrap();
    let Call { target, method, uri, metadata } = &call();
    let subject = Subject { target, method, uri, metadata };
    assert_eq!(matcher.matches(&subject), expected, "{json}");
}

#[track_caller]
fn check_refused(json: &str, path: &str, message: &str) {
    let problem = compile(json).unwrap_err();
    assert_eq!((problem.path.as_str(), problem.message.as_str()), (path, message));
}

#[test]
fn one_condition() {
    for (fits, other) in [
        (r#"{"operation": "GET /orders/*"}"#, r#"{"operation": "PUT /orders/*"}"#),
        (r#"{"operation": ["a.A/B", "GET /**"]}"#, r#"{"operation": ["a.A/B", "a.A/C"]}"#),
        (r#"{"method": "get"}"#, r#"{"method": ["POST", "PUT"]}"#),
        (r#"{"path": "/orders/{id}"}"#, r#"{"path": "/orders"}"#),
        (r#"{"http": "GET /orders/**"}"#, r#"{"http": "PUT /orders/**"}"#),
        (r#"{"http": ["PUT /a", "GET /orders/*"]}"#, r#"{"http": ["GET /a", "PUT /orders/*"]}"#),
        (r#"{"header": {"X-Canary": true}}"#, r#"{"header": {"x-canary": "false"}}"#),
        (r#"{"header": {"x-tag": "b"}}"#, r#"{"header": {"x-tag": {"not": "b"}}}"#),
        (r#"{"header": {"x-other": {"present": false}}}"#, r#"{"header": {"x-other": {"present": true}}}"#),
        (
            r#"{"metadata": {"x-size": {"int": {"gt": 11}}}}"#,
            r#"{"metadata": {"x-size": {"int": {"gt": 12}}}}"#,
        ),
        (r#"{"query": {"q": "a b"}}"#, r#"{"query": {"q": "a%20b"}}"#),
        (r#"{"query": {"page": {"regex": "[0-9]"}}}"#, r#"{"query": {"size": {"regex": ".*"}}}"#),
        (r#"{"caller": "batch-*"}"#, r#"{"caller": "batch"}"#),
        (
            r#"{"caller": {"name": "batch-7", "labels": {"track": "canary"}}}"#,
            r#"{"caller": {"labels": {"zone": "a"}}}"#,
        ),
        (r#"{"caller_labels": {"track": {"prefix": "can"}}}"#, r#"{"caller_labels": {"track": "stable"}}"#),
        (r#"{"any": [{"path": "/a"}, "beta"]}"#, r#"{"any": [{"path": "/a"}, {"not": "beta"}]}"#),
        (r#"{"all": [{"path": "/**"}, "beta"]}"#, r#"{"all": [{"path": "/a"}, "beta"]}"#),
        (r#"{"not": {"path": "/a"}}"#, r#"{"not": "beta"}"#),
        (r#""beta""#, r#"{"all": ["beta", {"not": "beta"}]}"#),
        ("{}", r#"{"not": {}}"#),
    ] {
        check(fits, true);
        check(other, false);
    }
}

#[test]
fn all_that_is_said_has_to_hold() {
    check(r#"{"path": "/orders/*", "method": "GET", "header": {"x-canary": "true", "x-tag": "a"}}"#, true);
    check(r#"{"path": "/orders/*", "method": "GET", "header": {"x-canary": "true", "x-tag": "c"}}"#, false);
}

#[test]
fn nobody_called() {
    let Call { mut target, method, uri, metadata } = call();
    target.caller = None;
    let subject = Subject { target: &target, method: &method, uri: &uri, metadata: &metadata };
    assert!(!compile(r#"{"caller": "**"}"#).unwrap().matches(&subject));
    assert!(compile(r#"{"not": {"caller": "**"}}"#).unwrap().matches(&subject));
}

#[test]
fn any_call() {
    assert!(compile("{}").unwrap().is_any() && Matcher::any().is_any());
    assert!(!compile(r#""beta""#).unwrap().is_any());
}

#[test]
fn refusals_say_where() {
    check_refused(r#"{"operation": ""}"#, "operation", "a glob is not empty; write `**` for anything");
    check_refused(r#"{"path": ["/a", "b"]}"#, "path[1]", "`b` is no path; it begins with / or *");
    check_refused(r#"{"method": "G T"}"#, "method", "`G T` is no method; write GET, or a list of methods");
    check_refused(r#"{"method": []}"#, "method", "the list is empty");
    check_refused(r#"{"http": "/a"}"#, "http", "`/a` is not both method and path; write `GET /orders/**`");
    check_refused(r#"{"header": {":path": "a"}}"#, "header.:path", "`:path` is no name of a header");
    check_refused(r#"{"caller": "a?"}"#, "caller", "`?` in `a?` means nothing: globs have `*` and `**`");
    check_refused(r#"{"any": []}"#, "any", "the list is empty");
    check_refused(
        r#"{"any": ["beta", {"not": {"header": {"x-a": {"not": {"regex": "["}}}}}]}"#,
        "any[1].not.header.x-a.not.regex",
        "`[` is no regular expression: error: unclosed character class",
    );
    check_refused(r#""bad""#, "", "match `bad`: path: `orders` is no path; it begins with / or *");
    check_refused(
        r#"{"not": "loop"}"#,
        "not",
        "match `loop`: any[0]: match `pool`: not: matches go round in a circle: `loop` → `pool` → `loop`",
    );
}

#[test]
fn an_unknown_name_says_which_there_are() {
    let problem = compile(r#"{"all": ["bta"]}"#).unwrap_err();
    assert_eq!(problem.to_string(), "all[0]: no match is named `bta`");
    assert_eq!(problem.allowed, ["bad", "beta", "loop", "pool"]);
}

#[test]
fn unknown_keys_are_refused() {
    let why = serde_json::from_str::<MatchRef>(r#"{"headers": {}}"#).unwrap_err().to_string();
    assert!(why.starts_with("unknown field `headers`, expected one of `operation`, `method`"), "{why}");
    let why = serde_json::from_str::<Match>(r#"{"caller": {"nam": "a"}}"#).unwrap_err().to_string();
    assert!(why.starts_with("unknown field `nam`, expected `name` or `labels`"), "{why}");
    let why = serde_json::from_str::<Match>(r#"{"path": 5}"#).unwrap_err().to_string();
    assert!(why.starts_with("invalid type: integer `5`, expected a text, or a list of texts"), "{why}");
}
