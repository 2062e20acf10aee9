//! Bounds how many calls are under way at once (a bulkhead): more are refused, none is queued.
//!
//! A permit is held to the end of the body. The scope `endpoint` is enforced where a node is picked:
//! a full node is not picked, and only when all are full the call is refused.
mod gauge;

use std::{num::NonZeroU32, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, de};
use tower_service::Service;

pub use self::gauge::Gauge;
use super::{Decided, forward_ready};
use crate::{
    call::{BuiltIn, Invocation, Listener, Outcome, Reply},
    event::Event,
    site::Site,
    types::{Error, Reason, Side},
};

/// How many at once: `concurrency: 64`, or `{ limit: 64, scope: operation }`. Off by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ConcurrencyConfig {
    /// The most calls under way at once. 0 is refused; `off` lifts the bound.
    pub limit: NonZeroU32,
    /// What they are counted over. Default `service`.
    pub scope: Scope,
}

/// What calls are counted over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// All operations together.
    #[default]
    Service,
    /// Each operation.
    Operation,
    /// Each node.
    Endpoint,
}

/// The bound one policy lives under: its number, and the count it shares.
#[derive(Clone)]
pub struct Bound {
    /// What is in force.
    pub config: ConcurrencyConfig,
    /// How many are under way; shared by all policies of the same scope, across versions.
    pub gauge: Arc<Gauge>,
    pub(crate) site: Arc<Site>,
}

/// Refuses calls over the bound of their policy.
#[derive(Clone, Copy, Debug)]
pub struct ConcurrencyLayer {
    /// Which side it stands on, for its figures.
    pub side: Side,
}

/// The service of [`ConcurrencyLayer`].
#[derive(Clone, Debug)]
pub struct Concurrency<S> {
    inner: S,
    side: Side,
}

impl<S> tower_layer::Layer<S> for ConcurrencyLayer {
    type Service = Concurrency<S>;
    fn layer(&self, inner: S) -> Concurrency<S> {
        Concurrency { inner, side: self.side }
    }
}

impl<S> Service<Invocation> for Concurrency<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Decided<S::Future>;

    forward_ready!();

    #[inline]
    fn call(&mut self, mut call: Invocation) -> Self::Future {
        if let Some(bound) = &call.policy.concurrency {
            let limit = bound.config.limit.get();
            if !bound.gauge.acquire(limit) {
                return Decided::refused(refuse(call, self.side, limit));
            }
            call.listen_built_in(BuiltIn::Concurrency);
        }
        Decided::inner(self.inner.call(call))
    }
}

#[cold]
fn refuse(call: Invocation, side: Side, limit: u32) -> Error {
    let service = call.policy.service.clone();
    let message = format!("{service}: {limit} calls are under way, the most at once");
    if let Some(bound) = &call.policy.concurrency {
        let (reason, rule) = (Reason::Overloaded, "concurrency".to_owned());
        bound.site.pulse(call.started, || Event::Refusing { side, service, reason, rule });
    }
    call.refuse(Error::local(Reason::Overloaded, message).with_rule("concurrency"))
}

// === impl Gauge ===

impl Listener for Gauge {
    fn judged(&self, _: u64, _: &Outcome<'_>) {}

    fn ended(&self, _: u64) {
        self.release();
    }
}

// === impl ConcurrencyConfig ===

impl<'de> Deserialize<'de> for ConcurrencyConfig {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            limit: NonZeroU32,
            #[serde(default)]
            scope: Scope,
        }
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
