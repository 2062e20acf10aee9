//! What people write: one rule of the list `rate_limits`.
use std::{num::NonZeroU32, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, de};

use super::MostKeys;
use crate::types::{
    matching::MatchRef,
    units::{Rate, Span},
};

/// One rate limit, as people write it in `rate_limits`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimitConfig {
    /// Its name, in refusals, metrics and logs.
    pub name: String,
    /// How many in how long: `100/s`. `0/s` refuses everything.
    pub rate: Rate,
    /// How many at once after a pause. 0 refuses everything.
    pub burst: u32,
    /// What has a bucket of its own. Default `global`: all calls share one.
    #[serde(default)]
    pub key: Key,
    /// Which calls it is about. Default: all.
    #[serde(default, rename = "match", skip_serializing_if = "Option::is_none")]
    pub matching: Option<MatchRef>,
    /// How long a call may wait for its turn rather than be refused. Default `0s`.
    #[serde(default = "no_wait")]
    pub max_wait: Span,
    /// The most keys that have a bucket of their own; the rest share some. Default 10,000.
    #[serde(default = "most_keys")]
    pub max_keys: NonZeroU32,
    /// The most of them that calls of one peer address (IPv6: of one /64) may take. Further keys from there
    /// share a bucket, and others still get theirs. Calls without a peer address are not bounded by it.
    /// Default a quarter of `max_keys`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_keys_per_peer: Option<NonZeroU32>,
}

/// What has a bucket of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Key {
    /// Nothing: one bucket for all.
    #[default]
    Global,
    /// Each calling service.
    Caller,
    /// Each operation.
    Operation,
    /// Each peer address; of IPv6 each /64, which one machine has as a whole.
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

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            header: String,
        }

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
