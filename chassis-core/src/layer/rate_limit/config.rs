//! The settings of one rule in the list `rate_limits`.
use std::{num::NonZeroU32, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::MostKeys;
use crate::types::{
    matching::MatchRef,
    units::{Rate, Span},
};

/// One rate limit of the list `rate_limits`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Its name, in refusals, metrics and logs.
    pub name: String,
    /// Calls per time: `100/s`. `0/s` refuses all calls.
    pub rate: Rate,
    /// The most calls at once after a pause. 0 refuses all calls.
    pub burst: u32,
    /// The calls that share a bucket: all, those of a caller, … Default `global`.
    #[serde(default)]
    pub key: Key,
    /// The calls that it applies to. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// How long a call may wait for its turn instead of being refused. Default `0s`.
    #[serde(default = "no_wait")]
    pub max_wait: Span,
    /// The most keys with a bucket of their own; further keys share buckets. Default 10,000.
    #[serde(default = "most_keys")]
    pub max_keys: NonZeroU32,
    /// The most of them for calls of one peer address (IPv6: of one /64). Further keys of that peer share a
    /// bucket, and other peers still get theirs. It does not apply to calls without a peer address. Default: a
    /// quarter of `max_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_keys_per_peer: Option<NonZeroU32>,
}

/// The calls that share a bucket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Key {
    /// All calls: one bucket.
    #[default]
    Global,
    /// Each calling service.
    Caller,
    /// Each operation.
    Operation,
    /// Each peer address; for IPv6 each /64, because one machine has all of it.
    Peer,
    /// Each value of a header.
    Header(String),
}

fn no_wait() -> Span {
    Span(Duration::ZERO)
}

fn most_keys() -> NonZeroU32 {
    const { NonZeroU32::new(10_000).expect("10,000 is not 0") }
}

impl RateLimitConfig {
    pub(super) fn most_keys(&self) -> MostKeys {
        let all = self.max_keys.get() as usize;
        let of_a_peer = self.max_keys_per_peer.map_or(all.div_ceil(4), |most| most.get() as usize);
        MostKeys { all, of_a_peer }
    }
}

/// A key with a name of its own.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "HeaderKey"))]
#[serde(deny_unknown_fields)]
struct Table {
    /// The header whose values have a bucket each.
    header: String,
}

#[cfg(feature = "schema")]
crate::types::schema::written! {
    Key: |generator| {
        "anyOf": [ { "enum": ["global", "caller", "operation", "peer"] }, generator.subschema_for::<Table>() ],
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = Key;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`global`, `caller`, `operation`, `peer` or `{ header: x-tenant }`")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Key, E> {
                match word {
                    "global" => Ok(Key::Global),
                    "caller" => Ok(Key::Caller),
                    "operation" => Ok(Key::Operation),
                    "peer" => Ok(Key::Peer),
                    "header" => Err(E::custom("`header` needs a name; write `key: { header: x-tenant }`")),
                    word => {
                        Err(E::unknown_variant(word, &["global", "caller", "operation", "peer", "header"]))
                    }
                }
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Key, A::Error> {
                let Table { header } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Key::Header(header))
            }
        }
        from.deserialize_any(Visitor)
    }
}
