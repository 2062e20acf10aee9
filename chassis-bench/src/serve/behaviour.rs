//! The behaviour of a service towards its calls: set on the command line, and changeable while it runs.
use std::{fmt, str::FromStr, time::Duration};

use chassis::{
    Code, Random,
    units::{Ratio, Span},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The treatment of a call before its answer. The default answers successfully and at once.
///
/// ```
/// use chassis_bench::serve::Behaviour;
///
/// let behaviour: Behaviour =
///     serde_json::from_str(r#"{ "latency": "lognormal:5ms,0.5", "errors": "10%:UNAVAILABLE", "slots": 16 }"#)?;
/// assert_eq!(behaviour.errors.to_string(), "10%:UNAVAILABLE");
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Behaviour {
    /// The duration of a call. Default `0s`.
    pub latency: Latency,
    /// The share of calls that fail, after that time. Default none.
    pub errors: Errors,
    /// The share of calls that are never answered. Default none.
    pub hang: Share,
    /// The number of calls that are processed at once; the others wait in a queue. A call that has begun is
    /// processed to its end even if its caller cancels. The capacity is `slots` divided by the mean latency,
    /// on any machine. Default 0: no limit.
    pub slots: u32,
}

/// The duration of a call: `5ms`, `2ms..20ms`, or `lognormal:5ms,0.5` with its median and its sigma.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Latency {
    /// Always the same.
    Fixed(Duration),
    /// Uniformly distributed between the two.
    Between(Duration, Duration),
    /// Log-normally distributed: around the median, with a long tail.
    LogNormal(Duration, f64),
}

/// Calls that fail: `10%:UNAVAILABLE`, or only a share, which fails with UNAVAILABLE too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Errors {
    /// The share of these calls.
    pub share: Share,
    /// Their code; over REST the HTTP status for it.
    pub code: Code,
}

/// A share of calls, as in `10%`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Share(pub Ratio);

/// Upper limit of all latencies: the tail of a distribution would have none.
const LONGEST: Duration = Duration::from_secs(600);

// === impl Latency ===

impl Latency {
    /// Draws the duration of the next call.
    pub fn draw(&self, random: &Random) -> Duration {
        match *self {
            Latency::Fixed(latency) => latency,
            Latency::Between(least, most) => random.between(least, most),
            Latency::LogNormal(median, sigma) => {
                let seconds = median.as_secs_f64() * (sigma * normal(random)).exp();
                Duration::try_from_secs_f64(seconds).unwrap_or(LONGEST).min(LONGEST)
            }
        }
    }
}

impl Default for Latency {
    fn default() -> Self {
        Latency::Fixed(Duration::ZERO)
    }
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let span = |text: &str| text.trim().parse::<Span>().map(|span| span.0);
        if let Some(shape) = text.strip_prefix("lognormal:") {
            let Some((median, sigma)) = shape.split_once(',') else {
                return Err(format!("`{text}` has no sigma; write lognormal:5ms,0.5"));
            };
            return match sigma.trim().parse::<f64>() {
                Ok(sigma) if (0.0..=5.0).contains(&sigma) => Ok(Latency::LogNormal(span(median)?, sigma)),
                _ => Err(format!("`{sigma}` is no sigma; it goes from 0 to 5")),
            };
        }
        match text.split_once("..") {
            Some((least, most)) => Ok(Latency::Between(span(least)?, span(most)?)),
            None => span(text).map(Latency::Fixed),
        }
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Latency::Fixed(latency) => Span(latency).fmt(f),
            Latency::Between(least, most) => write!(f, "{}..{}", Span(least), Span(most)),
            Latency::LogNormal(median, sigma) => write!(f, "lognormal:{},{sigma}", Span(median)),
        }
    }
}

/// A draw from the standard normal distribution, after Box and Muller.
fn normal(random: &Random) -> f64 {
    let (radius, angle) = (1.0 - random.unit(), random.unit());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

// === impl Errors ===

impl Default for Errors {
    fn default() -> Self {
        Errors { share: Share::default(), code: Code::Unavailable }
    }
}

impl FromStr for Errors {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (share, code) = text.split_once(':').unwrap_or((text, "UNAVAILABLE"));
        let known = Code::from_name(code).filter(|code| *code != Code::Ok);
        let code = known.ok_or_else(|| format!("`{code}` is no code that fails; write 10%:UNAVAILABLE"))?;
        Ok(Errors { share: share.parse()?, code })
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.share.0, self.code)
    }
}

// === impl Share ===

impl Default for Share {
    fn default() -> Self {
        Share(Ratio::percent(0))
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Share)
    }
}

/// Reads and writes the type as text.
macro_rules! as_text {
    ($($ty:ty),*) => { $(
        impl Serialize for $ty {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $ty {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(de::Error::custom)
            }
        }
    )* };
}

as_text!(Latency, Errors);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for text in ["5ms", "2ms..20ms", "lognormal:5ms,0.5"] {
            assert_eq!(text.parse::<Latency>().map(|latency| latency.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(
            "10%".parse::<Errors>().map(|errors| errors.to_string()),
            Ok("10%:UNAVAILABLE".to_owned())
        );
        for wrong in ["lognormal:5ms", "lognormal:5ms,x", "5", "1ms.."] {
            assert!(wrong.parse::<Latency>().is_err(), "{wrong}");
        }
        assert!("10%:OK".parse::<Errors>().is_err());
    }

    #[test]
    fn half_of_a_lognormal_is_below_its_median() {
        let (random, median) = (Random::seeded(7), Duration::from_millis(5));
        let below = (0..10_000).filter(|_| Latency::LogNormal(median, 0.5).draw(&random) < median).count();
        assert!((4_800..5_200).contains(&below), "{below} of 10000");
    }
}
