//! Sets of outcomes that count as failures, as the settings of breakers, balancers and retries name them.
use std::{fmt, ops::RangeInclusive};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeSeq};

use super::{Code, Reason, Verdict};

/// A set of outcomes, written as a list of words: `[UNAVAILABLE, 5xx, 429, connect, deadline]`.
///
/// - a gRPC code by its name: an answer with this status, or an error of this side with this code;
/// - `4xx`, `5xx` or one status from 400 to 599: an HTTP answer with it. A status is never translated into
///   a code here, so that a REST service's 409 is not taken for ABORTED;
/// - `connect`: no connection could be made;
/// - `deadline`: the deadline passed before an answer came.
///
/// A call is in the set if any of its words applies. An empty list contains no outcome.
///
/// ```
/// use chassis_core::{Code, layer::breaker::FailureSet};
///
/// let read: FailureSet = serde_json::from_str(r#"["UNAVAILABLE", 503, "connect"]"#).unwrap();
/// let made = FailureSet::NONE.with_codes([Code::Unavailable]).with_statuses([503]).with_connect();
/// assert_eq!(read, made);
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FailureSet {
    codes: u32,
    statuses: [u64; 4],
    connect: bool,
    deadline: bool,
}

/// The parts of a call's outcome that decide whether it is a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// The gRPC code of the answer, or the code of the error if there was no answer.
    pub code: Code,
    /// The HTTP status of the answer; 0 for gRPC and for errors.
    pub status: u16,
    /// No connection could be made.
    pub connect: bool,
    /// The deadline passed.
    pub deadline: bool,
}

const STATUSES: RangeInclusive<u16> = 400..=599;

/// The words, apart from single statuses.
pub(super) const WORDS: &[&str] = &[
    "4xx",
    "5xx",
    "connect",
    "deadline",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

// === impl FailureSet ===

impl FailureSet {
    /// The empty set.
    pub const NONE: FailureSet = FailureSet { codes: 0, statuses: [0; 4], connect: false, deadline: false };

    /// Failures of the server: the codes that OpenTelemetry counts as a server's errors, except UNIMPLEMENTED,
    /// which says nothing about health; every 5xx, failed connects and missed deadlines.
    pub fn server_faults() -> Self {
        use Code::*;
        Self::NONE
            .with_codes([Unknown, DeadlineExceeded, Internal, Unavailable, DataLoss])
            .with_statuses(500..=599)
            .with_connect()
            .with_deadline()
    }

    /// Adds these codes.
    pub fn with_codes(mut self, codes: impl IntoIterator<Item = Code>) -> Self {
        self.codes |= codes.into_iter().fold(0, |all, code| all | 1 << code.number());
        self
    }

    /// Adds these HTTP statuses, if they are between 400 and 599.
    pub fn with_statuses(mut self, statuses: impl IntoIterator<Item = u16>) -> Self {
        for (word, bit) in statuses.into_iter().filter_map(place) {
            self.statuses[word] |= bit;
        }
        self
    }

    /// Adds failed connects.
    pub fn with_connect(mut self) -> Self {
        self.connect = true;
        self
    }

    /// Adds missed deadlines.
    pub fn with_deadline(mut self) -> Self {
        self.deadline = true;
        self
    }

    /// Whether the set contains this outcome.
    pub(crate) fn contains(&self, ended: Ended) -> bool {
        let answer = match ended.status {
            0 => self.codes & 1 << ended.code.number() != 0,
            status => self.has_status(status),
        };
        answer || (self.connect && ended.connect) || (self.deadline && ended.deadline)
    }

    fn has_status(&self, status: u16) -> bool {
        place(status).is_some_and(|(word, bit)| self.statuses[word] & bit != 0)
    }

    /// Adds the meaning of `text`; `None` if it has none.
    fn with_word(self, text: &str) -> Option<Self> {
        Some(match text {
            "4xx" => self.with_statuses(400..=499),
            "5xx" => self.with_statuses(500..=599),
            "connect" => self.with_connect(),
            "deadline" => self.with_deadline(),
            name => match Code::from_name(name) {
                Some(Code::Ok) => return None,
                Some(code) => self.with_codes([code]),
                None => self.with_statuses([text.parse().ok().filter(|status| STATUSES.contains(status))?]),
            },
        })
    }

    /// The shortest list of words for this set.
    fn words(&self) -> Vec<String> {
        let codes = Code::ALL.into_iter().filter(|code| self.codes & 1 << code.number() != 0);
        let mut words: Vec<String> = codes.map(|code| code.name().to_owned()).collect();
        for (class, name) in [(400..=499, "4xx"), (500..=599, "5xx")] {
            let here: Vec<u16> = class.filter(|&status| self.has_status(status)).collect();
            match here.len() {
                100 => words.push(name.to_owned()),
                _ => words.extend(here.iter().map(u16::to_string)),
            }
        }
        words.extend(self.connect.then(|| "connect".to_owned()));
        words.extend(self.deadline.then(|| "deadline".to_owned()));
        words
    }
}

/// The position of a status' bit.
fn place(status: u16) -> Option<(usize, u64)> {
    let at = status - STATUSES.contains(&status).then_some(*STATUSES.start())?;
    Some((usize::from(at / 64), 1 << (at % 64)))
}

impl fmt::Debug for FailureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.words()).finish()
    }
}

impl Serialize for FailureSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let words = self.words();
        let mut list = to.serialize_seq(Some(words.len()))?;
        words.iter().try_for_each(|word| list.serialize_element(word))?;
        list.end()
    }
}

impl<'de> Deserialize<'de> for FailureSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let words = Vec::<Word>::deserialize(from)?;
        Ok(words.into_iter().fold(Self::NONE, |set, Word(word)| set.with_word(&word).unwrap_or(set)))
    }
}

/// One valid word, so that an error points at the word and not at the list.
struct Word(String);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a code as in UNAVAILABLE, 4xx, 5xx, an HTTP status as in 503, connect or deadline",
                )
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Word, E> {
                match FailureSet::NONE.with_word(text) {
                    Some(_) => Ok(Word(text.to_owned())),
                    None if text.parse::<i64>().is_ok() => Err(E::custom(format!(
                        "`{text}` is no failure; HTTP statuses here go from 400 to 599"
                    ))),
                    None => Err(E::unknown_variant(text, WORDS)),
                }
            }
            fn visit_u64<E: de::Error>(self, status: u64) -> Result<Word, E> {
                self.visit_str(&status.to_string())
            }
            fn visit_i64<E: de::Error>(self, status: i64) -> Result<Word, E> {
                self.visit_str(&status.to_string())
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// A verdict in the form that failure sets compare.
pub(crate) fn ended(verdict: &Verdict) -> Ended {
    Ended {
        code: verdict.code,
        // gRPC codes are below 100; they are compared as codes.
        status: if verdict.status >= 100 { verdict.status } else { 0 },
        connect: verdict.reason == Some(Reason::ConnectFailed),
        deadline: verdict.reason == Some(Reason::DeadlineExceeded),
    }
}

// === impl Ended ===

impl Ended {
    /// A gRPC answer, or an error of this side, with this code.
    pub(crate) fn with_code(code: Code) -> Self {
        Ended { code, status: 0, connect: false, deadline: false }
    }

    /// An HTTP answer with this status, and the code of the same meaning.
    #[cfg(test)]
    pub(crate) fn with_status(status: u16) -> Self {
        let code = http::StatusCode::from_u16(status).map_or(Code::Unknown, Code::from_http);
        Ended { code, status, connect: false, deadline: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<FailureSet, String> {
        serde_json::from_str(json).map_err(|why| why.to_string())
    }

    #[test]
    fn holds_what_is_written() {
        let set = read(r#"["ABORTED", "5xx", 429, "408"]"#).unwrap();
        for (ended, expected) in [
            (Ended::with_code(Code::Aborted), true),
            (Ended::with_code(Code::Internal), false),
            (Ended::with_status(500), true),
            (Ended::with_status(599), true),
            (Ended::with_status(429), true),
            (Ended::with_status(408), true),
            (Ended::with_status(409), false), // means ABORTED as well, but is no answer of such a protocol
            (Ended::with_status(200), false),
            (Ended { connect: true, ..Ended::with_code(Code::Unavailable) }, false),
        ] {
            assert_eq!(set.contains(ended), expected, "{ended:?}");
        }
    }

    #[test]
    fn server_faults_are_the_servers() {
        let set = FailureSet::server_faults();
        for code in Code::ALL {
            use Code::*;
            let expected = matches!(code, Unknown | DeadlineExceeded | Internal | Unavailable | DataLoss);
            assert_eq!(set.contains(Ended::with_code(code)), expected, "{code}");
        }
        assert!(set.contains(Ended { deadline: true, ..Ended::with_code(Code::Cancelled) }));
        assert!(!set.contains(Ended::with_status(404)));
    }

    #[test]
    fn writes_what_it_reads() {
        for json in [r#"["UNAVAILABLE","429","5xx","connect"]"#, "[]", r#"["501","503","deadline"]"#] {
            assert_eq!(serde_json::to_string(&read(json).unwrap()).unwrap(), json);
        }
    }

    #[test]
    fn refuses_other_words() {
        let why = read(r#"["UNAVAILBLE"]"#).unwrap_err();
        assert!(why.starts_with("unknown variant `UNAVAILBLE`, expected one of `4xx`, `5xx`"), "{why}");
        assert!(read(r#"["OK"]"#).is_err());
        let why = read("[200]").unwrap_err();
        assert!(why.starts_with("`200` is no failure; HTTP statuses here go from 400 to 599"), "{why}");
        assert!(read("[5.5]").is_err() && read("\"5xx\"").is_err());
    }
}
