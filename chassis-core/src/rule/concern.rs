//! What a concern supplies so that its rules can be compiled and seen.
use super::{Binding, Level, Look};

/// A concern with a key in the settings. `policy/concerns.rs` lists all of them.
pub(crate) trait Concern {
    /// What people write under the key, at one level of the settings.
    type Written;

    /// What holds for a service or for an operation, once every level has been overlaid.
    type Resolved: Clone;

    /// What a call finds in its policy.
    type Rule;

    /// What a call finds that lives under no rules.
    fn none() -> Self::Rule;

    /// What holds where nothing is written.
    fn unwritten(level: &Level<'_>) -> Self::Resolved;

    /// Overlays what one level says on what the levels above it say, and reports what is wrong with it.
    fn overlay(resolved: &mut Self::Resolved, written: &Self::Written, level: &mut Level<'_>);

    /// The rule of one operation. The state that it keeps is found by its key, so it outlives versions.
    fn rule(resolved: &Self::Resolved, binding: &mut Binding<'_>) -> Self::Rule;
}

/// A concern whose rules `inspect` shows.
pub(crate) trait Visible: Concern {
    /// What there is to see of one rule.
    type View;

    /// What there is to see of the rule of one policy. State that several policies share is shown once.
    fn view(rule: &Self::Rule, look: &mut Look<'_>) -> Vec<Self::View>;
}
