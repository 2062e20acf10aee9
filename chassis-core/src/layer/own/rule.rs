//! Compiles `layers`: the user's layers that calls skip. It has no state.
use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{LayerNames, LayerSwitch};
use crate::{
    rule::{Binding, Concern, Level, Look, Visible},
    types::Side,
};

/// The switches of the user's layers for the calls of one policy; without any, all layers are on.
#[derive(Clone, Default)]
pub(crate) struct Switched(Option<Arc<Switches>>);

#[derive(Clone)]
struct Switches {
    names: Arc<[Arc<str>]>,
    side: Side,
    /// Whether an operation has switches of its own.
    is_own: bool,
    /// Whether calls skip a layer, by the layer's number.
    off: Box<[bool]>,
    /// The same for the incoming calls of single listeners.
    listeners: Vec<(Arc<str>, Box<[bool]>)>,
}

/// A switch of a user's layer that is off, or one of a listener that differs; in `inspect`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerView {
    /// `client` for outgoing calls, `server` for incoming calls.
    pub side: &'static str,
    /// The service called, or this one.
    pub service: String,
    /// The operation with switches of its own; `None`: all other operations of the service.
    pub operation: Option<String>,
    /// The listener of the calls; `None`: all listeners without a row of their own.
    pub listener: Option<String>,
    /// The name of the layer.
    pub layer: String,
    /// Whether calls pass the layer.
    pub on: bool,
}

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

    fn default_of(_: Side) -> Option<Self::Written> {
        Some(BTreeMap::new())
    }

    fn unwritten(_: &Level<'_>) -> Switched {
        Switched::default()
    }

    fn overlay(resolved: &mut Switched, written: &Self::Written, level: &mut Level<'_>) {
        let written = numbered(written, level);
        if written.is_empty() {
            return;
        }
        let mut switches = resolved.switches(level);
        switches.is_own = level.is_operation();
        switch(&mut switches.off, &written);
        switches.listeners.iter_mut().for_each(|(_, off)| switch(off, &written));
        resolved.0 = Some(Arc::new(switches));
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
        let written = numbered(written, level);
        if written.is_empty() {
            return;
        }
        let mut switches = resolved.switches(level);
        let mut own = switches.off.clone();
        switch(&mut own, &written);
        switches.listeners.push((listener.into(), own));
        resolved.0 = Some(Arc::new(switches));
    }
}

impl Visible for LayersRule {
    type View = LayerView;

    fn view(Switched(switches): &Self::Rule, look: &mut Look<'_>) -> Vec<LayerView> {
        let Some(switches) = switches.as_ref().filter(|switches| look.is_first(switches)) else {
            return Vec::new();
        };
        let row = |number: usize, listener: Option<&Arc<str>>, off: bool| LayerView {
            side: switches.side.name(),
            service: look.service.to_owned(),
            operation: switches.is_own.then(|| look.operation.to_owned()),
            listener: listener.map(ToString::to_string),
            layer: switches.names[number].to_string(),
            on: !off,
        };
        let mut rows = Vec::new();
        for (number, off) in switches.off.iter().enumerate() {
            rows.extend(off.then(|| row(number, None, true)));
            let differing = switches.listeners.iter().filter(|(_, own)| own[number] != *off);
            rows.extend(differing.map(|(listener, own)| row(number, Some(listener), own[number])));
        }
        rows
    }
}

/// The switches that were written, by the numbers of their layers. Reports unknown names.
fn numbered(written: &BTreeMap<String, LayerSwitch>, level: &mut Level<'_>) -> Vec<(usize, bool)> {
    let names = names(level);
    let mut numbered = Vec::with_capacity(written.len());
    for (name, switch) in written {
        match names.iter().position(|known| **known == **name) {
            Some(number) => numbered.push((number, *switch == LayerSwitch::Off)),
            None => {
                let allowed = names.iter().map(ToString::to_string).collect();
                level.problem_with_key(name, format!("no layer of the program is called `{name}`"), allowed);
            }
        }
    }
    numbered
}

/// The names of the user's layers, by their numbers.
fn names(level: &Level<'_>) -> Arc<[Arc<str>]> {
    level.environment.extensions.get().map_or_else(Arc::default, |LayerNames(names)| names.clone())
}

fn switch(all: &mut [bool], written: &[(usize, bool)]) {
    for (number, off) in written {
        all[*number] = *off; // as long as the names are, whose places these numbers are
    }
}

// === impl Switched ===

impl Switched {
    /// Whether calls of `listener` skip the layer with this number.
    pub(crate) fn is_off(&self, number: usize, listener: Option<&str>) -> bool {
        let Some(Switches { off, listeners, .. }) = self.0.as_deref() else { return false };
        let own = listener.and_then(|name| listeners.iter().find(|(own, _)| **own == *name));
        own.map_or(off, |(_, own)| own).get(number).copied().unwrap_or(false)
    }

    /// The switch of the layer with this number, in words: `off at http`; empty if the layer is on everywhere.
    pub(crate) fn in_words(&self, number: usize) -> String {
        let Some(Switches { listeners, .. }) = self.0.as_deref() else { return String::new() };
        let at = |off: bool| {
            let same = |(name, _): &&(Arc<str>, _)| self.is_off(number, Some(name)) == off;
            listeners.iter().filter(same).map(|(name, _)| &**name).collect::<Vec<_>>().join(", ")
        };
        match (self.is_off(number, None), at(true), at(false)) {
            (true, _, on) if on.is_empty() => "off".to_owned(),
            (true, _, on) => format!("off, on at {on}"),
            (false, off, _) if off.is_empty() => String::new(),
            (false, off, _) => format!("off at {off}"),
        }
    }

    /// A copy of the switches to change.
    fn switches(&self, level: &Level<'_>) -> Switches {
        self.0.as_deref().cloned().unwrap_or_else(|| {
            let names = names(level);
            let off = vec![false; names.len()].into();
            Switches { names, side: level.side, is_own: false, off, listeners: Vec::new() }
        })
    }
}
