//! What `balance` is compiled to: a picker. What it keeps of nodes lives with them; turns live with the subset.
use std::{collections::BTreeMap, sync::Arc};

use super::{P2c, Picker, Pickers, RandomPicker, RoundRobin};
use crate::rule::{Binding, Concern, Level};

/// Compiles `balance`.
pub(crate) struct PickerRule;

/// The names that `balance` knows without being told.
pub const BUILT_IN_PICKERS: [&str; 3] = ["p2c", "random", "round_robin"];

impl Concern for PickerRule {
    type Written = String;
    type Resolved = Arc<dyn Picker>;
    type Rule = Arc<dyn Picker>;

    fn none() -> Self::Rule {
        Arc::new(P2c)
    }

    fn unwritten(_: &Level<'_>) -> Self::Resolved {
        Arc::new(P2c)
    }

    fn overlay(resolved: &mut Self::Resolved, written: &String, level: &mut Level<'_>) {
        let own = named(level);
        *resolved = match written.as_str() {
            "p2c" => Arc::new(P2c),
            "random" => Arc::new(RandomPicker),
            "round_robin" => Arc::new(RoundRobin),
            name => match own.get(&name.to_owned()) {
                Some(picker) => (*picker).clone(),
                None => {
                    let allowed =
                        BUILT_IN_PICKERS.map(str::to_owned).into_iter().chain(own.into_keys().cloned());
                    let allowed = allowed.collect();
                    return level.problem_among("", format!("no picker is called `{name}`"), allowed);
                }
            },
        };
    }

    fn rule(resolved: &Self::Resolved, _: &mut Binding<'_>) -> Self::Rule {
        resolved.clone()
    }
}

/// Pickers that have a name: those of the settings stand over those of the program.
fn named<'a>(level: &Level<'a>) -> BTreeMap<&'a String, &'a Arc<dyn Picker>> {
    level.extensions::<Pickers>().flat_map(|pickers| &pickers.0).collect()
}
