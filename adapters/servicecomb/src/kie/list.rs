//! The entries of a label set, as kie lists them.
use std::collections::BTreeMap;

use serde::Deserialize;

use crate::client::{Answer, Failure};

/// The answer to a query.
#[derive(Debug)]
pub(super) struct List {
    pub(super) entries: Vec<Entry>,
    /// Counts up with each change of the whole server, also of other labels.
    pub(super) revision: i64,
}

/// An entry of kie.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Entry {
    pub(super) key: String,
    #[serde(default)]
    pub(super) value: Option<String>,
    /// `text` if it is not there.
    #[serde(default)]
    pub(super) value_type: Option<String>,
    /// Only an entry whose status is `enabled` counts, as in go-chassis.
    #[serde(default)]
    pub(super) status: Option<String>,
    #[serde(default)]
    pub(super) labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    pub(super) update_revision: i64,
}

#[derive(Deserialize)]
struct Body {
    /// `null` where there is none.
    #[serde(default)]
    data: Option<Vec<Entry>>,
}

// === impl List ===

impl List {
    /// The entries with exactly these labels, in the order of their keys.
    pub(super) fn read(answer: &Answer, labels: &BTreeMap<String, String>) -> Result<List, Failure> {
        let revision = answer.header("x-kie-revision").and_then(|revision| revision.parse().ok());
        // Without it there is nothing to wait for a change of.
        let revision = revision
            .ok_or_else(|| Failure::of("its answer has no number in the header x-kie-revision".to_owned()))?;
        let body: Body = answer.read("list of entries")?;
        let mut entries = body.data.unwrap_or_default();
        entries.retain(|entry| entry.labels.as_ref().is_none_or(|found| found == labels));
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(List { entries, revision })
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn is_enabled(&self) -> bool {
        self.status.as_deref() == Some("enabled")
    }

    pub(super) fn value(&self) -> &str {
        self.value.as_deref().unwrap_or_default()
    }

    pub(super) fn value_type(&self) -> &str {
        self.value_type.as_deref().filter(|kind| !kind.is_empty()).unwrap_or("text")
    }
}
