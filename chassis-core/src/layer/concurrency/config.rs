//! The setting `concurrency`: a number of calls, or a map; off by default.
use std::num::NonZeroU32;

use serde::{Deserialize, Deserializer, Serialize, de};

/// The most concurrent calls: `concurrency: 64`, or `{ limit: 64, scope: operation }`. Off by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConcurrencyConfig {
    /// The most calls under way at once. 0 is refused; `off` removes the bound.
    pub limit: NonZeroU32,
    /// The scope of the count. Default `service`.
    pub scope: Scope,
}

/// The scope of a count of calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Scope {
    /// All operations together.
    #[default]
    Service,
    /// Each operation.
    Operation,
    /// Each node.
    Endpoint,
}

/// The form with a scope.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "ConcurrencyTable"))]
#[serde(deny_unknown_fields)]
struct Table {
    /// The most calls under way at once. 0 is refused; `off` removes the bound.
    limit: NonZeroU32,
    /// The scope of the count. Default `service`.
    #[serde(default)]
    scope: Scope,
}

#[cfg(feature = "schema")]
crate::types::schema::written! {
    ConcurrencyConfig: |generator| {
        "anyOf": [ generator.subschema_for::<NonZeroU32>(), generator.subschema_for::<Table>() ],
    }
}

impl<'de> Deserialize<'de> for ConcurrencyConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = ConcurrencyConfig;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of calls, or a map of limit and scope")
            }
            fn visit_u64<E: de::Error>(self, limit: u64) -> Result<Self::Value, E> {
                let limit = u32::try_from(limit).ok().and_then(NonZeroU32::new);
                let limit = limit.ok_or_else(|| {
                    E::custom("a bound on concurrent calls goes from 1 to 4294967295; write `off` to lift it")
                })?;
                Ok(ConcurrencyConfig { limit, scope: Scope::Service })
            }
            fn visit_i64<E: de::Error>(self, limit: i64) -> Result<Self::Value, E> {
                self.visit_u64(u64::try_from(limit).unwrap_or(0))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                let Table { limit, scope } = Table::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(ConcurrencyConfig { limit, scope })
            }
        }
        from.deserialize_any(Visitor)
    }
}
