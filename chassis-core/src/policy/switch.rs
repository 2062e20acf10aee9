//! Which of the user's layers calls pass by.
use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Whether a layer is gone through, as settings say: `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerSwitch {
    /// It is; what holds for each layer unless settings say otherwise.
    On,
    /// It is not: calls go to what is inside it.
    Off,
}

/// Which layers calls pass by, by their numbers; and for calls that come in, those of single listeners.
#[derive(Clone, Default)]
pub(crate) struct Switched {
    off: Option<Arc<[bool]>>,
    listeners: Arc<[OfListener]>,
}

/// A listener, and which layers its calls pass by.
type OfListener = (Arc<str>, Arc<[bool]>);

// === impl LayerSwitch ===

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

// === impl Switched ===

impl Switched {
    /// Is the layer of this number passed by, of a call that came in at `listener`?
    pub(crate) fn is_off(&self, number: usize, listener: Option<&str>) -> bool {
        let Some(off) = &self.off else { return false };
        let own = listener.and_then(|name| self.listeners.iter().find(|(own, _)| **own == *name));
        own.map_or(off, |(_, own)| own).get(number).copied().unwrap_or(false)
    }

    /// Overlays `layers` for all calls, listeners included. Calls `unknown` with each name that is not in `names`.
    pub(crate) fn over(
        &self,
        names: &[Arc<str>],
        layers: &BTreeMap<String, LayerSwitch>,
        unknown: impl FnMut(&str),
    ) -> Self {
        if layers.is_empty() {
            return self.clone();
        }
        let layers = numbered(names, layers, unknown);
        let listeners = self.listeners.iter().map(|(name, off)| (name.clone(), overlay(off, &layers)));
        let base = self.off.clone().unwrap_or_else(|| vec![false; names.len()].into());
        Switched { off: Some(overlay(&base, &layers)), listeners: listeners.collect() }
    }

    /// Overlays `layers` for calls that come in at `listener`.
    pub(crate) fn over_listener(
        &self,
        names: &[Arc<str>],
        listener: &str,
        layers: &BTreeMap<String, LayerSwitch>,
        unknown: impl FnMut(&str),
    ) -> Self {
        let layers = numbered(names, layers, unknown);
        let base = self.off.clone().unwrap_or_else(|| vec![false; names.len()].into());
        let own: (Arc<str>, _) = (listener.into(), overlay(&base, &layers));
        Switched { off: Some(base), listeners: self.listeners.iter().cloned().chain([own]).collect() }
    }
}

fn numbered(
    names: &[Arc<str>],
    layers: &BTreeMap<String, LayerSwitch>,
    mut unknown: impl FnMut(&str),
) -> Vec<(usize, bool)> {
    let mut numbered = Vec::with_capacity(layers.len());
    for (name, switch) in layers {
        match names.iter().position(|known| **known == **name) {
            Some(number) => numbered.push((number, *switch == LayerSwitch::Off)),
            None => unknown(name),
        }
    }
    numbered
}

fn overlay(base: &Arc<[bool]>, layers: &[(usize, bool)]) -> Arc<[bool]> {
    let mut all = base.to_vec();
    for (number, off) in layers {
        if let Some(one) = all.get_mut(*number) {
            *one = *off;
        }
    }
    all.into()
}
