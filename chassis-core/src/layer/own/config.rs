//! The setting `layers`: a map of names to `on` or `off`.
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Whether calls pass a layer: `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerSwitch {
    /// They pass it; the default.
    On,
    /// They skip it, and go to the next inner one.
    Off,
}

/// The names of the user's layers, by their numbers.
#[derive(Clone, Default)]
pub(crate) struct LayerNames(pub(crate) Arc<[Arc<str>]>);

// === impl LayerSwitch ===

#[cfg(feature = "schema")]
crate::types::schema::written! {
    LayerSwitch: |generator| { "enum": ["on", "off", true, false] }
}

impl<'de> Deserialize<'de> for LayerSwitch {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Word;
        impl de::Visitor<'_> for Word {
            type Value = LayerSwitch;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("`on` or `off`")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<LayerSwitch, E> {
                Ok(if on { LayerSwitch::On } else { LayerSwitch::Off })
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<LayerSwitch, E> {
                match word {
                    "on" => Ok(LayerSwitch::On),
                    "off" => Ok(LayerSwitch::Off),
                    word => Err(E::invalid_value(de::Unexpected::Str(word), &self)),
                }
            }
        }
        from.deserialize_any(Word)
    }
}

impl Serialize for LayerSwitch {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(match self {
            LayerSwitch::On => "on",
            LayerSwitch::Off => "off",
        })
    }
}
