//! The staged roll-out of new settings: the table `config.rollout`.
use std::{fmt, num::NonZeroU32, str::FromStr};

use chassis_core::units::{PositiveSpan, Ratio, Switch};
use serde::{Deserialize, Deserializer, Serialize, de};

/// How new settings are rolled out: the table `config.rollout`; without it every instance applies them at once. Live: the
/// settings in force decide on the roll-out of the next ones.
///
/// The first instances apply new settings at once, and the others once those have had them for `bake_time`. Each instance
/// watches its own calls after it has applied them, and rolls them back if they do harm. A start applies the newest settings
/// at once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RolloutConfig {
    /// The share of the instances of this service that apply new settings first, rounded up; at least one does. Default
    /// `10%`.
    pub share: Ratio,
    /// How long the first instances have new settings before the others apply them, and how long each instance watches its
    /// calls. Default `60s`; `0s` is refused.
    pub bake_time: PositiveSpan,
    /// The longest `bake_time`, where an instance has fewer than `min_calls` calls in it; at its end 20 are
    /// enough. Default `10m`, or `bake_time` if
    /// that is longer.
    pub max_bake_time: Option<PositiveSpan>,
    /// Calls with the new settings, of incoming or of outgoing ones, below which the guard does not judge and the bake time
    /// lasts longer. Default 100; 0 is refused.
    pub min_calls: NonZeroU32,
    /// Which calls make an instance roll new settings back, or `off`: then settings are only rolled back by hand, and the
    /// bake time ends without calls too.
    pub guard: Switch<RolloutGuardConfig>,
}

/// When new settings are rolled back: the table `config.rollout.guard`. The calls since they were applied are compared with
/// those of the bake time before, incoming and outgoing ones separately.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct RolloutGuardConfig {
    /// By how many percent of all calls more calls may fail than before, or `off`. Three standard errors are added, so that
    /// chance decides nothing: of 100 calls 17 have to fail where none did before. Incoming calls fail by an error of the
    /// server (`5xx`, `INTERNAL`, …) or by cancellation, outgoing ones by any code but OK. Default `5%`; at `100%` it never
    /// acts.
    pub error_ratio: Switch<Ratio>,
    /// The same for calls that this process refused: by a limit, an open circuit, or because no node or route was there.
    /// Default `5%`; at `100%` it never acts.
    pub refusals: Switch<Ratio>,
    /// The multiple that the 90th percentile of the latency may grow to, or `off`. Latencies below 5 ms count as equal; they
    /// are not compared where there were fewer than `min_calls` before or after. From 1 to 1000; default 2.
    pub latency: Switch<Factor>,
}

/// A multiple, written as a number from 1 to 1000: `2`, `1.5`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
pub struct Factor(#[cfg_attr(feature = "cli", schemars(range(min = 1, max = 1000)))] f64);

/// The default of `max_bake_time`.
const MAX_BAKE_TIME: PositiveSpan = PositiveSpan::from_millis(600_000);

// === impl RolloutConfig ===

impl RolloutConfig {
    /// The time after which settings are no longer watched, also after few calls.
    pub fn max_bake_time(&self) -> PositiveSpan {
        self.max_bake_time.unwrap_or(MAX_BAKE_TIME).max(self.bake_time)
    }

    /// The problem, if there is one, with the key that it is about.
    pub(crate) fn check(&self) -> Result<(), (&'static str, String)> {
        match self.max_bake_time {
            Some(most) if most < self.bake_time => Err((
                "max_bake_time",
                format!("`{most}` is shorter than the `bake_time` of {}", self.bake_time),
            )),
            _ => Ok(()),
        }
    }
}

impl Default for RolloutConfig {
    fn default() -> Self {
        RolloutConfig {
            share: Ratio::percent(10),
            bake_time: PositiveSpan::from_millis(60_000),
            max_bake_time: None,
            min_calls: const { NonZeroU32::new(100).expect("100 is not 0") },
            guard: Switch::On(RolloutGuardConfig::default()),
        }
    }
}

// === impl RolloutGuardConfig ===

impl Default for RolloutGuardConfig {
    fn default() -> Self {
        let limit = Switch::On(Ratio::percent(5));
        RolloutGuardConfig { error_ratio: limit.clone(), refusals: limit, latency: Switch::On(Factor(2.0)) }
    }
}

// === impl Factor ===

impl Factor {
    /// `None` below 1 and above 1000.
    pub fn new(factor: f64) -> Option<Self> {
        (1.0..=1000.0).contains(&factor).then_some(Factor(factor))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl FromStr for Factor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let factor = text.trim().parse().ok().and_then(Factor::new);
        factor.ok_or_else(|| format!("`{text}` is no multiple; it goes from 1 to 1000"))
    }
}

/// Also reads texts: a switch does not know that a number stands in it.
impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Factor;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a multiple as in 1.5")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Factor, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Factor, E> {
                self.visit_str(&n.to_string())
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Factor, E> {
                self.visit_str(&n.to_string())
            }
            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Factor, E> {
                self.visit_str(&n.to_string())
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use chassis_config::{
        parse, read,
        tree::{Layer, Node},
    };
    use chassis_core::config::{Format, Text};

    use super::*;

    fn tree(content: &str, format: Format) -> Node {
        let text = Text { content: content.into(), format, origin: "c".into(), revision: None };
        parse(&text, Layer::File).expect("the test's text is sound")
    }

    /// The latency of the guard, or the problem.
    #[track_caller]
    fn check(content: &str, format: Format, expected: Result<Switch<Factor>, &str>) {
        let (read, problems) = read::<RolloutGuardConfig>(&tree(content, format));
        match expected {
            Ok(latency) => assert_eq!(read.map(|guard| guard.latency), Some(latency), "{problems:?}"),
            Err(why) => assert!(problems.iter().any(|problem| problem.message.contains(why)), "{problems:?}"),
        }
    }

    #[test]
    fn multiples_are_numbers() {
        let on = |factor| Ok(Switch::On(Factor(factor)));
        check("latency: 2", Format::Yaml, on(2.0));
        check("latency: 1.5", Format::Yaml, on(1.5));
        check("latency = 1.5", Format::Toml, on(1.5));
        check(r#"{ "latency": 1.5 }"#, Format::Json, on(1.5));
        check("latency: off", Format::Yaml, Ok(Switch::Off));
        check("{}", Format::Yaml, on(2.0));
        for wrong in ["0.5", "1001", "-2", "NaN", "x"] {
            check(&format!("latency: {wrong}"), Format::Yaml, Err("it goes from 1 to 1000"));
        }
    }
}
