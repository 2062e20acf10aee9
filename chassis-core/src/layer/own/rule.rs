//! Compiles `layers`: the user's layers that calls skip. It has no state.
use std::{collections::BTreeMap, sync::Arc};

use super::{LayerNames, LayerSwitch};
use crate::rule::{Binding, Concern, Level};

/// The layers that calls skip, by their numbers; also those that incoming calls of single listeners skip.
#[derive(Clone, Default)]
pub(crate) struct Switched {
    off: Option<Arc<[bool]>>,
    listeners: Arc<[OfListener]>,
}

/// A listener, and the layers that its calls skip.
type OfListener = (Arc<str>, Arc<[bool]>);

/// Compiles `layers`.
pub(crate) struct LayersRule;

// === impl LayersRule ===

impl Concern for LayersRule {
    type Written = BTreeMap<String, LayerSwitch>;
    type Resolved = Switched;
    type Rule = Switched;

    fn none() -> Switched {
        Switched::default()
    }

    fn unwritten(_: &Level<'_>) -> Switched {
        Switched::default()
    }

    fn overlay(resolved: &mut Switched, written: &Self::Written, level: &mut Level<'_>) {
        let names = names(level);
        *resolved = resolved.over(names, written, |name| unknown(level, name));
    }

    fn rule(resolved: &Switched, _: &mut Binding<'_>) -> Switched {
        resolved.clone()
    }
}

impl LayersRule {
    /// Overlays the settings for calls of `listener`.
    pub(crate) fn overlay_listener(
        resolved: &mut Switched,
        listener: &str,
        written: &BTreeMap<String, LayerSwitch>,
        level: &mut Level<'_>,
    ) {
        let names = names(level);
        *resolved = resolved.over_listener(names, listener, written, |name| unknown(level, name));
    }
}

/// The names of the user's layers, by their numbers.
fn names<'a>(level: &Level<'a>) -> &'a [Arc<str>] {
    level.environment.extensions.get().map_or(&[], |LayerNames(names)| names)
}

fn unknown(level: &mut Level<'_>, name: &str) {
    let allowed = names(level).iter().map(ToString::to_string).collect();
    level.problem_with_key(name, format!("no layer of the program is called `{name}`"), allowed);
}

// === impl Switched ===

impl Switched {
    /// Whether calls of `listener` skip the layer with this number.
    pub(crate) fn is_off(&self, number: usize, listener: Option<&str>) -> bool {
        let Some(off) = &self.off else { return false };
        let own = listener.and_then(|name| self.listeners.iter().find(|(own, _)| **own == *name));
        own.map_or(off, |(_, own)| own).get(number).copied().unwrap_or(false)
    }

    /// Overlays `layers` for all calls, also those of listeners. Calls `unknown` with each name that is not in
    /// `names`.
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

    /// Overlays `layers` for calls of `listener`.
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
