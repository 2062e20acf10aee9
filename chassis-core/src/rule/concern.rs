//! The interface by which a concern's rules are compiled and shown.
use super::{Binding, Level, Look};
use crate::types::Side;

/// A concern with a key in the settings. `policy/concerns.rs` lists all of them.
pub(crate) trait Concern {
    /// The settings under the key, at one level.
    type Written;

    /// The settings of a service or of an operation, after every level was overlaid.
    type Resolved: Clone;

    /// The rule in a call's policy.
    type Rule;

    /// The rule of a call without settings.
    fn none() -> Self::Rule;

    /// The settings that have the same meaning as none at all; `None` if they can't be written.
    fn default_of(side: Side) -> Option<Self::Written>;

    /// The defaults, for keys that are not set.
    fn unwritten(level: &Level<'_>) -> Self::Resolved;

    /// Overlays the settings of one level on those of the levels above, and reports problems.
    fn overlay(resolved: &mut Self::Resolved, written: &Self::Written, level: &mut Level<'_>);

    /// The rule of one operation. Its state is found by a key, so it outlives versions.
    fn rule(resolved: &Self::Resolved, binding: &mut Binding<'_>) -> Self::Rule;
}

/// A concern whose rules `inspect` shows.
pub(crate) trait Visible: Concern {
    /// The view of one rule.
    type View;

    /// The views of the rule of one policy. State that several policies share is shown once.
    fn view(rule: &Self::Rule, look: &mut Look<'_>) -> Vec<Self::View>;
}
