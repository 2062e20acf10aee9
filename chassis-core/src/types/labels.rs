//! Names with values: the labels of instances, and selections of instances by labels.
use std::{collections::BTreeMap, fmt, ops::Index};

use serde::{Deserialize, Serialize};

/// A map from text to text with a few entries, sorted by name: labels, addresses by protocol.
///
/// Replaces `BTreeMap<String, String>` at a fifth of the memory, because every instance of every service has
/// two. A change copies it.
///
/// ```
/// use chassis_core::TextMap;
///
/// let mut labels = TextMap::from([("track", "stable"), ("disk", "ssd")]);
/// labels.insert("track", "canary");
/// assert_eq!(labels.get("track"), Some("canary"));
/// assert_eq!(labels.keys().collect::<Vec<_>>(), ["disk", "track"]);
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct TextMap(Box<[(Box<str>, Box<str>)]>);

/// Labels of which an instance must have all, sorted by name.
///
/// ```
/// use chassis_core::{LabelSet, registry::Instance};
///
/// let canary = LabelSet::from_iter([("track", "canary")]);
/// assert!(canary.selects(&Instance::new("stock", "a").with_label("track", "canary")));
/// assert!(!canary.selects(&Instance::new("stock", "b")));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LabelSet(TextMap);

// === impl TextMap ===

impl TextMap {
    /// An empty map.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the value of `name`.
    pub fn insert(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.extend([(name, value)]);
    }

    /// Removes `name`; returns whether it existed.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.len();
        self.0 = std::mem::take(&mut self.0).into_iter().filter(|(other, _)| **other != *name).collect();
        self.len() < before
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// Whether `name` exists.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The number of names.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the map is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entries, sorted by name.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&str, &str)> + Clone {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// The names, sorted.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.iter().map(|(name, _)| name)
    }

    /// The values, sorted by their names.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = &str> + Clone {
        self.iter().map(|(_, value)| value)
    }
}

fn boxed(text: impl Into<String>) -> Box<str> {
    text.into().into_boxed_str()
}

impl<N: Into<String>, V: Into<String>> Extend<(N, V)> for TextMap {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, entries: I) {
        let mut all: BTreeMap<_, _> = std::mem::take(&mut self.0).into_iter().collect();
        all.extend(entries.into_iter().map(|(name, value)| (boxed(name), boxed(value))));
        self.0 = all.into_iter().collect();
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for TextMap {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(entries: I) -> Self {
        let mut map = TextMap::new();
        map.extend(entries);
        map
    }
}

impl<N: Into<String>, V: Into<String>, const K: usize> From<[(N, V); K]> for TextMap {
    fn from(entries: [(N, V); K]) -> Self {
        entries.into_iter().collect()
    }
}

impl From<BTreeMap<String, String>> for TextMap {
    fn from(entries: BTreeMap<String, String>) -> Self {
        entries.into_iter().collect()
    }
}

impl From<TextMap> for BTreeMap<String, String> {
    fn from(map: TextMap) -> Self {
        map.0.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
    }
}

impl Index<&str> for TextMap {
    type Output = str;

    /// Panics if the name does not exist.
    fn index(&self, name: &str) -> &str {
        self.get(name).unwrap_or_else(|| panic!("there is no `{name}`"))
    }
}

impl fmt::Debug for TextMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

// === impl LabelSet ===

impl LabelSet {
    /// These labels and `other`'s, whose values win.
    pub fn and(&self, other: &LabelSet) -> LabelSet {
        self.iter().chain(other.iter()).collect()
    }

    /// Whether there are no labels: every instance is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The labels, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter()
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for LabelSet {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Self {
        LabelSet(labels.into_iter().collect())
    }
}

impl From<BTreeMap<String, String>> for LabelSet {
    fn from(labels: BTreeMap<String, String>) -> Self {
        LabelSet(labels.into())
    }
}

impl From<LabelSet> for BTreeMap<String, String> {
    fn from(labels: LabelSet) -> Self {
        labels.0.into()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_in_order_and_the_last_value_wins() {
        let mut map = TextMap::from_iter([("b", "1"), ("c", "2"), ("a", "3"), ("b", "4")]);
        assert_eq!(map.iter().collect::<Vec<_>>(), [("a", "3"), ("b", "4"), ("c", "2")]);
        map.insert("aa", "5");
        map.insert(String::from("c"), "6");
        assert_eq!(map.values().collect::<Vec<_>>(), ["3", "5", "4", "6"]);
        assert!(map.remove("b") && !map.remove("b") && !map.contains_key("b"));
        assert_eq!((map.len(), &map["aa"], map.get("b")), (3, "5", None));
        assert_eq!(format!("{map:?}"), r#"{"a": "3", "aa": "5", "c": "6"}"#);
    }

    #[test]
    fn it_is_written_as_a_map_and_read_in_any_order() {
        let text = r#"{"b":"1","a":"2"}"#;
        let map: TextMap = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&map).unwrap(), r#"{"a":"2","b":"1"}"#);
        let labels: LabelSet = serde_json::from_str(text).unwrap();
        assert_eq!(
            (labels.to_string(), serde_json::to_value(&labels).unwrap()["a"].as_str()),
            ("a=2,b=1".into(), Some("2"))
        );
    }
}
