//! Compiles `balance`. Prepared pickers and turns belong to the subset, the history of a node to the node.
use std::{collections::BTreeMap, sync::Arc};

use super::{P2c, Picker, PickerFactory, Pickers, RandomPicker, RoundRobin};
use crate::{
    rule::{Binding, Concern, Level},
    types::Side,
};

/// Compiles `balance`.
pub(crate) struct PickerRule;

/// The picker of a call.
#[derive(Clone)]
pub(crate) struct Balancer {
    /// The value that the settings named. Subsets find their pickers by it.
    pub(super) factory: Arc<dyn PickerFactory>,
    /// The picker of all subsets, if the factory prepares nothing.
    pub(super) shared: Option<Arc<dyn Picker>>,
}

/// The names of the pickers that are built in.
pub const BUILT_IN_PICKERS: [&str; 3] = ["p2c", "random", "round_robin"];

// === impl PickerRule ===

impl Concern for PickerRule {
    type Written = String;
    type Resolved = Balancer;
    type Rule = Balancer;

    fn none() -> Self::Rule {
        Balancer::new(Arc::new(P2c))
    }

    fn default_of(_: Side) -> Option<Self::Written> {
        Some("p2c".to_owned())
    }

    fn unwritten(_: &Level<'_>) -> Self::Resolved {
        Balancer::new(Arc::new(P2c))
    }

    fn overlay(resolved: &mut Self::Resolved, written: &String, level: &mut Level<'_>) {
        let own = named(level);
        *resolved = Balancer::new(match written.as_str() {
            "p2c" => Arc::new(P2c),
            "random" => Arc::new(RandomPicker),
            "round_robin" => Arc::new(RoundRobin),
            name => match own.get(&name.to_owned()) {
                Some(factory) => (*factory).clone(),
                None => {
                    let allowed =
                        BUILT_IN_PICKERS.map(str::to_owned).into_iter().chain(own.into_keys().cloned());
                    let allowed = allowed.collect();
                    return level.problem_among("", format!("no picker is called `{name}`"), allowed);
                }
            },
        });
    }

    fn rule(resolved: &Self::Resolved, _: &mut Binding<'_>) -> Self::Rule {
        resolved.clone()
    }
}

// === impl Balancer ===

impl Balancer {
    fn new(factory: Arc<dyn PickerFactory>) -> Self {
        let shared = factory.shared();
        Balancer { factory, shared }
    }
}

/// Pickers by name: those of the settings override those of the program.
fn named<'a>(level: &Level<'a>) -> BTreeMap<&'a String, &'a Arc<dyn PickerFactory>> {
    level.extensions::<Pickers>().flat_map(|pickers| &pickers.0).collect()
}
