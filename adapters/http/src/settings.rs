//! The settings: the URL, how changes are found, and how this process identifies itself.
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use chassis_core::{
    adapter::SecretSource,
    settings::Problem,
    units::{PositiveSpan, Secret, Span},
};
use chassis_http::connector::TlsConfig;
use http::{HeaderName, HeaderValue};
use serde::Deserialize;

use crate::url::Url;

/// Which document is read: an entry of `config.centers` whose `kind` is `http`.
///
/// ```
/// use chassis_http_center::{HttpSourceConfig, Watch};
///
/// let config = HttpSourceConfig::at("http://settings:8080/orders/chassis.yaml");
/// assert!(matches!(config.watch, Watch::Poll(interval) if interval.get().as_secs() == 10));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HttpSourceConfig {
    /// The URL of the document, `http://host:port/path`, or `https://…` with `tls`. It is shown in messages: a secret has no place in it. Either this
    /// or `urls`.
    pub url: Option<String>,
    /// URLs of the same document on several servers. The first one that answers is used until it fails. Either this or
    /// `url`.
    pub urls: Vec<String>,
    /// How changes are found. Default `{ poll: 10s }`.
    pub watch: Watch,
    /// How long the head of an answer may take, beyond the time that a long poll waits; and the body after it, or the first
    /// event. Default `5s`.
    pub timeout: PositiveSpan,
    /// Headers that each request has. Their values are not shown. Default none.
    pub headers: BTreeMap<String, Secret>,
    /// Over what time processes spread their requests after an outage of more than 30 s. `0s`: they do not. Default
    /// `5s`.
    pub jitter: Span,
    /// The file with the token that is sent as `authorization: Bearer …`; white space around it is left out. It is read for
    /// each request, so that a token can be replaced in it. Default: no token.
    pub token_file: Option<PathBuf>,
    /// The environment variable with the token.
    pub token_env: Option<String>,
    /// The user that is sent as `authorization: Basic …`. Default: no user.
    pub user: Option<String>,
    /// The file with the password of `user`; white space around it is left out. It is read for each request.
    pub password_file: Option<PathBuf>,
    /// The environment variable with the password of `user`.
    pub password_env: Option<String>,
    /// TLS to the servers: `tls: { ca: /path, cert: /path, key: /path, server_name: … }`; it needs the cargo feature `tls`.
    /// Default: none.
    pub tls: Option<TlsConfig>,
}

/// How changes of the document are found. The crate's documentation says what a server does for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Watch {
    /// The document is asked for in this interval, ± 10 %.
    Poll(PositiveSpan),
    /// The server answers when the document changes, or after this time, less up to 10 %. From `1s`, to `10m`. A server that
    /// does not wait is asked every 10 s.
    LongPoll(PositiveSpan),
    /// The server sends each version as an event. A stream without a line in this time is given up. From `1s`.
    Events(PositiveSpan),
}

/// Headers that this adapter sends itself, and their substitutes in the settings.
const OWN_HEADERS: [(&str, &str); 9] = [
    ("accept", "`watch` decides it"),
    ("accept-encoding", "bodies are read as they are"),
    ("authorization", "set `token_file`, or `user` and `password_file`"),
    ("connection", "the transport decides it"),
    ("content-length", "a GET has no body"),
    ("host", "the URL decides it"),
    ("if-none-match", "it is sent with the last `etag`"),
    ("last-event-id", "it is sent with the last `id`"),
    ("prefer", "`watch` decides it"),
];
/// The bounds of the time that a long poll waits.
const WAITS: std::ops::RangeInclusive<u64> = 1..=600;

// === impl HttpSourceConfig ===

impl HttpSourceConfig {
    /// The document at `url`, and the defaults.
    pub fn at(url: impl Into<String>) -> Self {
        HttpSourceConfig { url: Some(url.into()), ..Self::default() }
    }

    /// The same document at several URLs, and the defaults.
    pub fn at_any<U: Into<String>>(urls: impl IntoIterator<Item = U>) -> Self {
        HttpSourceConfig { urls: urls.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub(crate) fn token(&self) -> SecretSource {
        SecretSource { file: self.token_file.clone(), env: self.token_env.clone() }
    }

    pub(crate) fn password(&self) -> SecretSource {
        SecretSource { file: self.password_file.clone(), env: self.password_env.clone() }
    }

    /// The URLs, each with the key that it stands at.
    fn written(&self) -> impl Iterator<Item = (String, &String)> {
        let one = self.url.iter().map(|url| ("url".to_owned(), url));
        one.chain(self.urls.iter().enumerate().map(|(at, url)| (format!("urls[{at}]"), url)))
    }

    /// The URLs that can be used, in their order.
    pub(crate) fn parsed(&self) -> Vec<Url> {
        self.written().filter_map(|(_, url)| Url::parse(url, self.tls.as_ref()).ok()).collect()
    }

    pub(crate) fn check(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        match (&self.url, self.urls.is_empty()) {
            (Some(_), false) => problems.push(Problem::new("urls", "`url` is set as well; use one of them")),
            (None, true) => problems.push(Problem::new("", "`url` or `urls` has to be set")),
            _ => {}
        }
        for (key, url) in self.written() {
            if let Err(why) = Url::parse(url, self.tls.as_ref()) {
                problems.push(Problem::new(key, why));
            }
        }
        match self.watch {
            Watch::LongPoll(wait) if !WAITS.contains(&wait.get().as_secs()) => {
                problems.push(Problem::new("watch.long_poll", "a long poll waits from 1s to 10m"));
            }
            Watch::Events(silence) if silence.get() < Duration::from_secs(1) => {
                problems
                    .push(Problem::new("watch.events", "a time of less than 1s is too short for the way"));
            }
            _ => {}
        }
        for (name, value) in &self.headers {
            let key = format!("headers.{name}");
            let own = OWN_HEADERS.iter().find(|(own, _)| name.eq_ignore_ascii_case(own));
            if let Some((own, instead)) = own {
                problems.push(Problem::new(key, format!("`{own}` is no header of one's own: {instead}")));
            } else if HeaderName::try_from(name.as_str()).is_err() {
                problems.push(Problem::new(key, "it can't be the name of a header"));
            } else if HeaderValue::try_from(value.expose()).is_err() {
                problems.push(Problem::new(key, "the value can't be sent in a header"));
            }
        }
        problems.extend(self.tls.iter().flat_map(TlsConfig::check));
        problems.extend(self.token().check("token"));
        problems.extend(self.password().check("password"));
        if self.user.is_some() != self.password().is_set() {
            problems.push(Problem::new("user", "a user and a password go together"));
        }
        if self.user.as_ref().is_some_and(|user| user.contains(':')) {
            problems.push(Problem::new("user", "a colon would end it"));
        }
        if self.user.is_some() && self.token().is_set() {
            problems.push(Problem::new("user", "a token is set as well; use one of them"));
        }
        problems
    }
}

impl Default for HttpSourceConfig {
    fn default() -> Self {
        HttpSourceConfig {
            url: None,
            urls: Vec::new(),
            watch: Watch::default(),
            timeout: PositiveSpan::from_millis(5_000),
            headers: BTreeMap::new(),
            jitter: Span(Duration::from_secs(5)),
            token_file: None,
            token_env: None,
            user: None,
            password_file: None,
            password_env: None,
            tls: None,
        }
    }
}

impl Default for Watch {
    fn default() -> Self {
        Watch::Poll(PositiveSpan::from_millis(10_000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn wrong(config: HttpSourceConfig, expected: &[&str]) {
        let problems = config.check();
        let found: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_can_not_work_is_refused() {
        let good = || HttpSourceConfig::at("http://a/x");
        wrong(good(), &[]);
        wrong(HttpSourceConfig::at_any(["http://a/x", "http://b/x"]), &[]);
        wrong(HttpSourceConfig::default(), &[""]);
        wrong(HttpSourceConfig { urls: vec!["http://b/x".into()], ..good() }, &["urls"]);
        wrong(HttpSourceConfig::at("https://a/x"), &["url"]);
        wrong(HttpSourceConfig { tls: Some(TlsConfig::new("ca.pem")), ..good() }, &["url"]);
        wrong(HttpSourceConfig::at_any(["http://a/x", "b"]), &["urls[1]"]);
        let watch = |watch| HttpSourceConfig { watch, ..good() };
        wrong(watch(Watch::LongPoll(PositiveSpan::from_millis(999))), &["watch.long_poll"]);
        wrong(watch(Watch::LongPoll(PositiveSpan::from_millis(601_000))), &["watch.long_poll"]);
        wrong(watch(Watch::Events(PositiveSpan::from_millis(999))), &["watch.events"]);
        for (name, value, is_wrong) in [
            ("x-team", "shop", false),
            ("Host", "b", true),
            ("authorization", "x", true),
            ("a b", "x", true),
            ("x-y", "a\nb", true),
        ] {
            let headers = BTreeMap::from([(name.to_owned(), Secret::new(value))]);
            let found = HttpSourceConfig { headers, ..good() }.check();
            assert_eq!(found.len(), usize::from(is_wrong), "{name}");
            assert!(found.iter().all(|problem| problem.path == format!("headers.{name}")), "{found:?}");
        }
        let token = HttpSourceConfig { token_env: Some("T".into()), ..good() };
        wrong(token.clone(), &[]);
        wrong(HttpSourceConfig { token_file: Some("t".into()), ..token.clone() }, &["token_env"]);
        let user = HttpSourceConfig { user: Some("u".into()), password_env: Some("P".into()), ..good() };
        wrong(user.clone(), &[]);
        wrong(HttpSourceConfig { password_env: None, ..user.clone() }, &["user"]);
        wrong(HttpSourceConfig { user: Some("a:b".into()), ..user.clone() }, &["user"]);
        wrong(HttpSourceConfig { token_env: Some("T".into()), ..user }, &["user"]);
    }
}
