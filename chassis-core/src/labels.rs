//! Which instances are meant: by the values of their labels.
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::registry::Instance;

/// Labels that all have to be there, in the order of their names.
///
/// ```
/// use chassis_core::{labels::LabelSet, registry::Instance};
///
/// let canary = LabelSet::from_iter([("track", "canary")]);
/// assert!(canary.selects(&Instance::new("stock", "a").with_label("track", "canary")));
/// assert!(!canary.selects(&Instance::new("stock", "b")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(
    from = "std::collections::BTreeMap<String, String>",
    into = "std::collections::BTreeMap<String, String>"
)]
pub struct LabelSet(Vec<(String, String)>);

// === impl LabelSet ===

impl LabelSet {
    /// Does `instance` have all of them?
    pub fn selects(&self, instance: &Instance) -> bool {
        self.0.iter().all(|(name, value)| instance.label(name) == Some(value))
    }

    /// These and `other`'s, whose values win.
    pub fn and(&self, other: &LabelSet) -> LabelSet {
        let mut all: std::collections::BTreeMap<_, _> = self.0.iter().cloned().collect();
        all.extend(other.0.iter().cloned());
        all.into()
    }

    /// None at all: everything is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for LabelSet {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        let sorted: std::collections::BTreeMap<String, String> =
            labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        sorted.into()
    }
}

impl From<std::collections::BTreeMap<String, String>> for LabelSet {
    fn from(labels: std::collections::BTreeMap<String, String>) -> Self {
        LabelSet(labels.into_iter().collect())
    }
}

impl From<LabelSet> for std::collections::BTreeMap<String, String> {
    fn from(labels: LabelSet) -> Self {
        labels.0.into_iter().collect()
    }
}

impl fmt::Display for LabelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, value)) in self.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}
