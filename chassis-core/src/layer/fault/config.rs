//! The settings of one fault in the list `faults`.
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    random::Random,
    types::{
        Code,
        matching::MatchRef,
        units::{Ratio, Span},
    },
};

/// One fault of the list `faults`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct FaultConfig {
    /// Its name, in answers, metrics and logs.
    pub name: String,
    /// The service whose outgoing calls it hits. Without it, it hits incoming calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The calls that it applies to. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// Delays calls: `200ms`, or `{ from: 100ms, to: 300ms, share: 5% }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Delay>,
    /// Ends calls: `{ code: UNAVAILABLE, message: …, share: 1% }` or `{ status: 503, body: … }`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<Abort>,
    /// The share of calls that delay and abort each hit, drawn independently. Default `100%`.
    #[serde(default = "all")]
    pub share: Ratio,
    /// Above or below the retries. Default `call`.
    #[serde(default)]
    pub at: At,
    /// When it ends: an RFC 3339 time in UTC, or a length of time since it was first applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
}

/// The length of a delay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(untagged, expecting = "a length of time as in 200ms, or a map of from, to and share")]
#[non_exhaustive]
pub enum Delay {
    /// A fixed length.
    Fixed(Span),
    /// A random length in a range.
    Range(DelayRange),
}

/// A delay between two bounds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct DelayRange {
    /// The shortest.
    pub from: Span,
    /// The longest.
    pub to: Span,
    /// The delay's own share, instead of the fault's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Ratio>,
}

/// The answer that replaces the call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Abort {
    /// A gRPC code by name. Default: the code with the meaning of `status`, or UNAVAILABLE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// An HTTP status. Default: the status with the meaning of `code`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// The message. Default: a text that names the injected fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The body of an HTTP answer, instead of a problem document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// The abort's own share, instead of the fault's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Ratio>,
}

/// The place where a fault is injected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum At {
    /// Above the retries: the caller sees it.
    #[default]
    Call,
    /// Below the retries: each attempt draws anew.
    Attempt,
}

/// The end of a fault.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Until {
    /// At this time.
    Time(SystemTime),
    /// This long after it was first applied.
    After(Duration),
}

fn all() -> Ratio {
    Ratio::percent(100)
}

impl Delay {
    pub(super) fn share(&self) -> Option<Ratio> {
        match self {
            Delay::Fixed(_) => None,
            Delay::Range(range) => range.share,
        }
    }

    pub(super) fn draw(&self, random: &Random) -> Duration {
        match self {
            Delay::Fixed(span) => span.0,
            Delay::Range(range) => random.between(range.from.0, range.to.0),
        }
    }
}

impl std::str::FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Span>() {
            Ok(span) => Ok(Until::After(span.0)),
            Err(_) => humantime::parse_rfc3339(text).map(Until::Time).map_err(|_| {
                format!("`{text}` is no end; write a time as 2026-11-21T18:00:00Z, or a length of time as 2h")
            }),
        }
    }
}

impl std::fmt::Display for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Until::After(span) => Span(*span).fmt(f),
            Until::Time(time) => humantime::format_rfc3339_seconds(*time).fmt(f),
        }
    }
}

#[cfg(feature = "schema")]
crate::types::schema::written! {
    Until: |generator| {
        "type": "string",
        "pattern": r"(^[0-9]{4}-[0-9]{2}-[0-9]{2}T.*Z$)|(^\s*\+?[0-9.]+\s*(us|ms|s|m|h)$)",
    }
}

crate::types::units::text!(Until: "a time as in 2026-11-21T18:00:00Z, or a length of time as in 2h");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_times_or_lengths() {
        for text in ["2026-11-21T18:00:00Z", "1970-01-01T00:00:00Z", "2024-02-29T23:59:59Z", "2h", "90s"] {
            let parsed: Until = text.parse().unwrap();
            assert_eq!(parsed.to_string().parse::<Until>().unwrap(), parsed, "{text}");
        }
        assert_eq!("2026-11-21T18:00:00Z".parse::<Until>().unwrap().to_string(), "2026-11-21T18:00:00Z");
        for text in ["2026-02-30T00:00:00Z", "2026-11-21 18:00", "tomorrow", "2026-13-01T00:00:00Z"] {
            assert!(text.parse::<Until>().is_err(), "{text}");
        }
    }
}
