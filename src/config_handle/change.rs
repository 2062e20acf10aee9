//! A setting that has changed, with its values before and after.
use std::{fmt, sync::Arc};

use chassis_config::{
    Overrides, Problem, read_part,
    tree::{Node, Path, Value},
};
use serde::de::DeserializeOwned;

/// A setting that has changed, as a listener sees it. `Debug` shows no values, which may be secrets.
///
/// [`read_old`](SettingChange::read_old) and [`read_new`](SettingChange::read_new) read its values as documents are read:
/// `250ms` as a [`PositiveSpan`](crate::units::PositiveSpan), `20%` as a [`Ratio`](crate::units::Ratio), a word as an enum of
/// your own.
#[derive(Clone)]
#[non_exhaustive]
pub struct SettingChange {
    /// The version in force now.
    pub version: u64,
    /// Its path: `outbound.defaults.timeout`.
    pub path: String,
    /// The value before; `None` if no source set it.
    pub old: Option<Value>,
    /// The value now; `None` if no source sets it any more.
    pub new: Option<Value>,
    at: Path,
    before: Arc<Node>,
    after: Arc<Node>,
}

/// A setting that can't be read as the type that was asked for. Secrets are not shown.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct UnreadableSetting {
    /// All that does not fit, with the position in its source.
    pub problems: Vec<Problem>,
}

// === impl SettingChange ===

impl SettingChange {
    /// The value before; `None` if no source set it: then its default or the setting of a level above was in force.
    ///
    /// # Errors
    /// It is no `T`.
    pub fn read_old<T: DeserializeOwned>(&self) -> Result<Option<T>, UnreadableSetting> {
        read(&self.before, &self.at)
    }

    /// The value now; `None` if no source sets it any more: then its default or the setting of a level above is in force.
    ///
    /// # Errors
    /// It is no `T`.
    pub fn read_new<T: DeserializeOwned>(&self) -> Result<Option<T>, UnreadableSetting> {
        read(&self.after, &self.at)
    }

    /// Any value of the version before, such as the whole table or the whole list that the setting is a part of; `None` if
    /// no source set it.
    ///
    /// ```
    /// # async fn example(app: chassis::Chassis) {
    /// app.config().on_change("propagate", |change| {
    ///     let old = change.read_old_at::<Vec<String>>("propagate");
    ///     println!("{old:?} -> {:?}", change.read_new_at::<Vec<String>>("propagate"));
    /// });
    /// # }
    /// ```
    ///
    /// # Errors
    /// It is no `T`.
    pub fn read_old_at<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, UnreadableSetting> {
        read_at(&self.before, path)
    }

    /// Any value of the version in force now: see [`read_old_at`](SettingChange::read_old_at).
    ///
    /// # Errors
    /// It is no `T`.
    pub fn read_new_at<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, UnreadableSetting> {
        read_at(&self.after, path)
    }

    /// The values that differ between two trees, with their paths: in the order of the new one, removed ones last.
    pub(super) fn between(before: &Arc<Node>, after: &Arc<Node>, version: u64) -> Vec<(Path, Self)> {
        let (old, new) = (before.leaves(), after.leaves());
        let mut found = Vec::new();
        let change = |at: &Path, old: Option<&Node>, new: Option<&Node>| {
            let value = |node: Option<&Node>| node.map(|node| node.value.clone());
            let (before, after, path) = (before.clone(), after.clone(), at.to_string());
            let (old, new) = (value(old), value(new));
            (at.clone(), SettingChange { version, path, old, new, at: at.clone(), before, after })
        };
        for (path, node) in &new {
            // A table that took the place of a value has no value before.
            let was = before.at(path).filter(|was| !leads_on(&was.value));
            if was.is_none_or(|was| was.value != node.value) {
                found.push(change(path, was, Some(node)));
            }
        }
        for (path, node) in &old {
            if after.at(path).is_none_or(|now| leads_on(&now.value)) {
                found.push(change(path, Some(node), None));
            }
        }
        found
    }
}

fn leads_on(value: &Value) -> bool {
    match value {
        Value::Map(entries) => !entries.is_empty(),
        Value::List(items) => !items.is_empty(),
        _ => false,
    }
}

fn read_at<T: DeserializeOwned>(tree: &Node, path: &str) -> Result<Option<T>, UnreadableSetting> {
    Overrides::path(path, tree).map_or(Ok(None), |path| read(tree, &path))
}

fn read<T: DeserializeOwned>(tree: &Node, at: &Path) -> Result<Option<T>, UnreadableSetting> {
    if tree.at(at).is_none_or(|node| matches!(node.value, Value::Null)) {
        return Ok(None);
    }
    match read_part(tree, at, &[]) {
        (Some(value), _) => Ok(Some(value)),
        (None, problems) => Err(UnreadableSetting { problems }),
    }
}

impl fmt::Debug for SettingChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SettingChange")
            .field("version", &self.version)
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

// === impl UnreadableSetting ===

/// `C006 chassis.yaml:3:14 shop.share: …`
impl fmt::Display for UnreadableSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<_> = self.problems.iter().map(Problem::in_a_line).collect();
        f.write_str(&all.join("; "))
    }
}

impl std::error::Error for UnreadableSetting {}
