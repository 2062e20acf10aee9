//! Units of settings: `250ms`, `100/s`, `20%`, `off`; and settings in layers.
use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

mod secret;
#[cfg(test)]
mod tests;

pub use secret::Secret;

/// A length of time, written `250ms`, `1.5s`, `2m` or `1h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A length of time above zero: `0s` is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PositiveSpan(Duration);

/// A share from 0 to 1, written `20%`.
///
/// Stores the percentage, so that `33.33333333%` is printed as it was written.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Ratio(f64);

/// A number of bytes, written `64KiB`, `10MiB`, `1GiB`, `10MB`, or `2097152` without a unit. From 1 byte to 2
/// GiB - 1, the largest window of HTTP/2.
///
/// ```
/// use chassis_core::units::Size;
///
/// let size: Size = "10MiB".parse().unwrap();
/// assert_eq!((size.get(), size.to_string()), (10_485_760, "10MiB".to_owned()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u32);

/// A number in a length of time, written `100/s`, `5/m` or `2/h`. 0 means none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    count: u32,
    per: Duration,
}

/// A mechanism's settings, or the word `off`.
#[derive(Clone, Debug, PartialEq)]
pub enum Switch<T> {
    /// Disabled.
    Off,
    /// Enabled, with these settings.
    On(T),
}

/// Settings of one or more layers, which overlay a complete `T`.
pub trait Patch: Clone + Default {
    /// The complete settings.
    type Full: Clone + Default;

    /// Replaces the settings that this patch has; the others stay.
    fn apply(&self, full: &mut Self::Full);
}

/// Declares settings twice: complete with defaults, and as the patch that users write, in which every key is
/// optional. Unknown keys are errors.
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $doc:literal])*
        pub struct $full:ident, $patch:ident {
            $( $(#[doc = $field_doc:literal])* pub $field:ident : $ty:ty = $default:expr ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $full { $( $(#[doc = $field_doc])* pub $field: $ty ),* }

        impl Default for $full {
            fn default() -> Self {
                $full { $( $field: $default ),* }
            }
        }

        #[doc = concat!("The keys of [`", stringify!($full), "`].")]
        #[derive(Clone, Debug, Default, PartialEq, ::serde::Deserialize, ::serde::Serialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $patch {
            $(
                $(#[doc = $field_doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                pub $field: Option<$ty>
            ),*
        }

        $crate::patch_schema! { $patch, $full, [$($doc)*], $( $field: $ty = [$($field_doc)*] ),* }

        impl $crate::units::Patch for $patch {
            type Full = $full;
            fn apply(&self, full: &mut $full) {
                $( if let Some(value) = &self.$field { full.$field = value.clone(); } )*
            }
        }
    };
}

/// A build without the schema of the settings.
#[cfg(not(feature = "schema"))]
#[doc(hidden)]
#[macro_export]
macro_rules! patch_schema {
    ($($ignored:tt)*) => {};
}

// === impl Span ===

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || format!("`{text}` is no length of time; write 300ms, 1.5s, 2m or 1h");
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = (text[..split].trim(), &text[split..]);
        if number.starts_with('-') {
            return Err(format!("`{text}` is negative; a length of time is not"));
        }
        let value: f64 = number.parse().map_err(|_| help())?;
        let seconds = match unit {
            "us" => value / 1e6,
            "ms" => value / 1e3,
            "s" => value,
            "m" => value * 60.0,
            "h" => value * 3600.0,
            "" => return Err(format!("`{text}` has no unit; write {text}ms or {text}s")),
            _ => return Err(format!("`{unit}` is no unit of time; write us, ms, s, m or h")),
        };
        Duration::try_from_secs_f64(seconds)
            .ok()
            .filter(|span| *span <= Duration::from_secs(366 * 24 * 3600))
            .map(Span)
            .ok_or_else(|| format!("`{text}` is longer than a year"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        match micros {
            0 => f.write_str("0s"),
            m if m % 3_600_000_000 == 0 => write!(f, "{}h", m / 3_600_000_000),
            m if m % 60_000_000 == 0 => write!(f, "{}m", m / 60_000_000),
            m if m % 1_000_000 == 0 => write!(f, "{}s", m / 1_000_000),
            m if m % 1_000 == 0 => write!(f, "{}ms", m / 1_000),
            m if m >= 1_000_000 => write!(f, "{}s", m as f64 / 1e6),
            m if m >= 1_000 => write!(f, "{}ms", m as f64 / 1e3),
            m => write!(f, "{m}us"),
        }
    }
}

impl From<Duration> for Span {
    fn from(span: Duration) -> Self {
        Span(span)
    }
}

// === impl PositiveSpan ===

impl PositiveSpan {
    /// `None` for a length of zero.
    pub fn new(span: Duration) -> Option<Self> {
        (!span.is_zero()).then_some(PositiveSpan(span))
    }

    /// `millis` milliseconds, at least one.
    pub const fn from_millis(millis: u64) -> Self {
        PositiveSpan(Duration::from_millis(if millis == 0 { 1 } else { millis }))
    }

    /// The length.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for PositiveSpan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Span(span) = text.parse()?;
        Self::new(span)
            .ok_or_else(|| format!("`{text}` is nothing; write more, or `off` where that is allowed"))
    }
}

impl fmt::Display for PositiveSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Span(self.0).fmt(f)
    }
}

// === impl Ratio ===

impl Ratio {
    /// `percent` hundredths; anything above 100 is 100.
    pub const fn percent(percent: u8) -> Self {
        Ratio(if percent > 100 { 100.0 } else { percent as f64 })
    }

    /// `None` outside 0 to 1. Digits beyond a ten-billionth of a percent are rounded: 0.07 is `7%`.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then(|| Ratio((share * 1e12).round() / 1e10))
    }

    /// From 0 to 1.
    pub const fn get(self) -> f64 {
        self.0 / 100.0
    }
}

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else {
            return Err(format!("`{text}` has no unit; write a share as 20%"));
        };
        let percent: f64 = number.trim().parse().map_err(|_| format!("`{text}` is no share; write 20%"))?;
        match (0.0..=100.0).contains(&percent) {
            true => Ok(Ratio(percent)),
            false => Err(format!("`{text}` is no share; it goes from 0% to 100%")),
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

// === impl Size ===

/// The units of a [`Size`], the largest first; it is printed in the first binary unit that divides it.
const UNITS: [(&str, u64); 6] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

impl Size {
    /// `None` for zero bytes, and for 2 GiB and more.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes == 0 || bytes > i32::MAX as u64 { None } else { Some(Size(bytes as u32)) }
    }

    /// `kib` times 1,024 bytes; at least 1 and at most 2,097,151 KiB.
    pub const fn from_kib(kib: u32) -> Self {
        let most = (1 << 21) - 1;
        Size(
            1024 * if kib == 0 {
                1
            } else if kib > most {
                most
            } else {
                kib
            },
        )
    }

    /// The number of bytes.
    pub const fn get(self) -> usize {
        self.0 as usize
    }

    /// The same as a `u32`.
    pub const fn as_u32(self) -> u32 {
        self.0
    }
}

impl TryFrom<usize> for Size {
    type Error = String;

    fn try_from(bytes: usize) -> Result<Self, String> {
        Size::new(bytes as u64).ok_or_else(|| format!("{bytes} bytes are not from 1 byte to 2GiB - 1"))
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || format!("`{text}` is no size; write 64KiB, 10MiB, 1GiB or a number of bytes");
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = (text[..split].trim(), &text[split..]);
        let scale = match unit {
            "" | "B" => 1,
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(help)?.1,
        };
        let bytes = match number.parse::<u64>() {
            Ok(whole) => whole.saturating_mul(scale),
            Err(_) => {
                let number: f64 = number.parse().map_err(|_| help())?;
                let bytes = number * scale as f64;
                match bytes.fract() == 0.0 && bytes >= 0.0 {
                    true => bytes as u64,
                    false => return Err(help()),
                }
            }
        };
        Size::new(bytes).ok_or_else(|| format!("`{text}` is no size; it goes from 1 byte to just under 2GiB"))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u64::from(self.0);
        match UNITS[..3].iter().find(|(_, scale)| bytes.is_multiple_of(*scale)) {
            Some((unit, scale)) => write!(f, "{}{unit}", bytes / scale),
            None => write!(f, "{bytes}"),
        }
    }
}

// === impl Rate ===

impl Rate {
    /// `count` in every second.
    pub const fn per_second(count: u32) -> Self {
        Rate { count, per: Duration::from_secs(1) }
    }

    /// `count` in every `per`.
    pub const fn new(count: u32, per: Duration) -> Self {
        Rate { count, per }
    }

    /// The time between two calls at this rate; `None` if the rate is 0.
    pub fn interval(self) -> Option<Duration> {
        (self.count > 0).then(|| self.per / self.count)
    }

    /// The number per second.
    pub fn hertz(self) -> f64 {
        f64::from(self.count) / self.per.as_secs_f64()
    }

    /// The number before the slash.
    pub const fn count(self) -> u32 {
        self.count
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || format!("`{text}` is no rate; write 100/s, 5/m or 2/h");
        let (count, unit) = text.split_once('/').ok_or_else(|| match text.trim().parse::<u32>() {
            Ok(_) => format!("`{text}` has no unit; write {text}/s or {text}/m"),
            Err(_) => help(),
        })?;
        let per = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(help()),
        };
        Ok(Rate { count: count.trim().parse().map_err(|_| help())?, per: Duration::from_secs(per) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.per.as_secs() {
            3600 => write!(f, "{}/h", self.count),
            60 => write!(f, "{}/m", self.count),
            _ => write!(f, "{}/s", self.count),
        }
    }
}

// === impl Switch ===

impl<T> Switch<T> {
    /// The settings, unless `off`.
    pub fn on(&self) -> Option<&T> {
        match self {
            Switch::Off => None,
            Switch::On(value) => Some(value),
        }
    }
}

impl<P: Patch> Switch<P> {
    /// Overlays `layer` on `below`: switching on starts from the settings below, or from the defaults.
    pub fn over(layer: Option<&Self>, below: Option<P::Full>) -> Option<P::Full> {
        match layer {
            None => below,
            Some(Switch::Off) => None,
            Some(Switch::On(patch)) => {
                let mut full = below.unwrap_or_default();
                patch.apply(&mut full);
                Some(full)
            }
        }
    }
}

/// Reads the words `off` and, for users of YAML 1.1, `false`; `T` reads any other value.
impl<'de, T: Deserialize<'de>> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Switch<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("settings, or off")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Self::Value, E> {
                match on {
                    false => Ok(Switch::Off),
                    true => Err(E::invalid_type(de::Unexpected::Bool(true), &self)),
                }
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Self::Value, E> {
                match word {
                    "off" => Ok(Switch::Off),
                    "no" | "none" | "never" | "disabled" => {
                        Err(E::custom(format!("`{word}` is no word for this; write `off`")))
                    }
                    word => T::deserialize(de::value::StrDeserializer::new(word)).map(Switch::On),
                }
            }
            fn visit_u64<E: de::Error>(self, n: u64) -> Result<Self::Value, E> {
                T::deserialize(de::value::U64Deserializer::new(n)).map(Switch::On)
            }
            fn visit_i64<E: de::Error>(self, n: i64) -> Result<Self::Value, E> {
                T::deserialize(de::value::I64Deserializer::new(n)).map(Switch::On)
            }
            fn visit_f64<E: de::Error>(self, n: f64) -> Result<Self::Value, E> {
                T::deserialize(de::value::F64Deserializer::new(n)).map(Switch::On)
            }
            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                T::deserialize(de::value::MapAccessDeserializer::new(map)).map(Switch::On)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
                T::deserialize(de::value::SeqAccessDeserializer::new(seq)).map(Switch::On)
            }
        }
        from.deserialize_any(Visitor(std::marker::PhantomData))
    }
}

impl<T: Serialize> Serialize for Switch<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Switch::Off => to.serialize_str("off"),
            Switch::On(value) => value.serialize(to),
        }
    }
}

/// Written as text by `Display`, read by `FromStr`; a bare number gets the error message of its text.
macro_rules! text {
    ($($ty:ty: $expects:literal),*) => { $(
        impl ::serde::Serialize for $ty {
            fn serialize<S: ::serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }

        impl<'de> ::serde::Deserialize<'de> for $ty {
            fn deserialize<D: ::serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                use ::serde::de;
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $ty;
                    fn expecting(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                        f.write_str($expects)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$ty, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, n: i64) -> Result<$ty, E> {
                        n.to_string().parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, n: u64) -> Result<$ty, E> {
                        n.to_string().parse().map_err(E::custom)
                    }
                    fn visit_f64<E: de::Error>(self, n: f64) -> Result<$ty, E> {
                        n.to_string().parse().map_err(E::custom)
                    }
                }
                from.deserialize_any(Visitor)
            }
        }
    )* };
}

pub(crate) use text;

text!(Span: "a length of time as in 300ms", PositiveSpan: "a length of time as in 300ms", Ratio: "a share as in 20%", Rate: "a rate as in 100/s", Size: "a size as in 64KiB");
