//! The contents of requests and answers.
use std::{
    fmt::{self, Write as _},
    str::FromStr,
    time::Duration,
};

use chassis_core::{registry::Instance, units::PositiveSpan};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};

/// The body of `POST /v1/services`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Register<I = Instance> {
    pub(crate) instance: I,
    /// How long it is kept without a heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ttl: Option<PositiveSpan>,
}

/// The answer to it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Registered {
    pub(crate) lease: String,
    pub(crate) revision: Revision,
}

/// The answer to `DELETE /v1/services/{lease}`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Removed {
    pub(crate) revision: Revision,
}

/// The data of the event `delete`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Gone {
    pub(crate) id: String,
}

/// A contract in the answer to `GET /v1/contracts`.
#[derive(Serialize, Deserialize)]
pub(crate) struct ListedContract {
    pub(crate) service: String,
    pub(crate) version: String,
    pub(crate) environment: String,
    pub(crate) name: String,
    pub(crate) media_type: String,
    pub(crate) etag: String,
    pub(crate) bytes: usize,
}

/// A moment in the history of a server: which history, and how many changes it has. A server begins another history
/// when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Revision {
    pub(crate) history: u64,
    pub(crate) number: u64,
}

/// A watch has an event at least so often.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The content type of a watch.
pub(crate) const EVENTS: &str = "text/event-stream";

/// The names of events.
pub(crate) const RESET: &str = "reset";
pub(crate) const PUT: &str = "put";
pub(crate) const DELETE: &str = "delete";
pub(crate) const READY: &str = "ready";
/// The changes after what was sent are no longer kept.
pub(crate) const BEHIND: &str = "behind";

/// The longest key of a document.
const MAX_KEY: usize = 256;

/// The etag of a contract: SHA-256 of its content in hexadecimal digits.
pub(crate) fn etag_of(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold(String::with_capacity(64), |mut hash, byte| {
        let _ = write!(hash, "{byte:02x}"); // a string takes all
        hash
    })
}

/// Why `key` can't be the key of a document.
pub(crate) fn check_key(key: &str) -> Result<(), String> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte);
    let is_part = |part: &str| !matches!(part, "" | "." | "..");
    if key.len() > MAX_KEY || !key.bytes().all(is_plain) || !key.split('/').all(is_part) {
        return Err(format!(
            "a key has at most {MAX_KEY} of the characters A-Z, a-z, 0-9, `-`, `_`, `.` and `/`"
        ));
    }
    Ok(())
}

// === impl Revision ===

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}", self.history, self.number)
    }
}

impl FromStr for Revision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` is no revision", text.escape_debug());
        let (history, number) = text.split_once('.').ok_or_else(wrong)?;
        let history = u64::from_str_radix(history, 16).map_err(|_| wrong())?;
        Ok(Revision { history, number: number.parse().map_err(|_| wrong())? })
    }
}

impl Serialize for Revision {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Revision {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_path() {
        for good in ["a", "orders/chassis.yaml", "a-b_c.D/9"] {
            assert_eq!(check_key(good), Ok(()), "{good}");
        }
        for bad in ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "ä", "a?b", &"a".repeat(MAX_KEY + 1)] {
            assert!(check_key(bad).is_err(), "{bad}");
        }
    }
}
