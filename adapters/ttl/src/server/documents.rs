//! The documents of settings with their revisions: a plain value.
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

/// All documents of a server.
///
/// A revision is the time of the change in milliseconds since 1970, or more if the clock has gone back: so the newest of
/// the versions that several servers have is the one that was put last. A deletion is a version too, and is kept.
pub(super) struct Documents {
    all: BTreeMap<String, Document>,
    /// The last revision that was given.
    last: u64,
    most: usize,
}

/// The newest version of a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Document {
    pub(super) revision: u64,
    /// `None`: it was deleted.
    pub(super) content: Option<Arc<str>>,
}

/// The revision that a document has to have, to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    None,
    /// It is not there.
    Absent,
    At(u64),
}

/// Why a document is not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There are as many as the server keeps.
    Full,
    /// It has another revision: this one, or none.
    Other(Option<u64>),
}

// === impl Documents ===

impl Documents {
    pub(super) fn new(most: usize) -> Self {
        Documents { all: BTreeMap::new(), last: 0, most }
    }

    /// Takes in a document of a snapshot.
    pub(super) fn restore(&mut self, key: String, document: Document) -> Result<(), Refused> {
        if self.all.len() >= self.most {
            return Err(Refused::Full);
        }
        self.last = self.last.max(document.revision);
        self.all.insert(key, document);
        Ok(())
    }

    /// Replaces a document; its revision. One that has this content already keeps its revision.
    pub(super) fn put(
        &mut self,
        key: &str,
        content: &str,
        condition: Condition,
        now: SystemTime,
    ) -> Result<u64, Refused> {
        self.check(key, condition)?;
        if let Some(before) = self.all.get(key).filter(|it| it.content.as_deref() == Some(content)) {
            return Ok(before.revision);
        }
        if !self.all.contains_key(key) && self.all.len() >= self.most {
            let deleted = self.all.iter().filter(|(_, document)| document.content.is_none());
            let oldest = deleted.min_by_key(|(_, document)| document.revision).map(|(key, _)| key.clone());
            self.all.remove(&oldest.ok_or(Refused::Full)?);
        }
        Ok(self.set(key, Some(content.into()), now))
    }

    /// Deletes a document; the revision of that. One that is not there stays as it is.
    pub(super) fn delete(
        &mut self,
        key: &str,
        condition: Condition,
        now: SystemTime,
    ) -> Result<u64, Refused> {
        self.check(key, condition)?;
        match self.all.get(key) {
            Some(Document { content: Some(_), .. }) => Ok(self.set(key, None, now)),
            Some(deleted) => Ok(deleted.revision),
            None => Ok(0),
        }
    }

    /// The newest version; one that was never there has the revision 0.
    pub(super) fn get(&self, key: &str) -> Document {
        self.all.get(key).cloned().unwrap_or(Document { revision: 0, content: None })
    }

    /// All, also those that were deleted.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&String, &Document)> {
        self.all.iter()
    }

    /// The last revision that was given.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    fn check(&self, key: &str, condition: Condition) -> Result<(), Refused> {
        let there = self.all.get(key).filter(|it| it.content.is_some()).map(|document| document.revision);
        match condition {
            Condition::None => Ok(()),
            Condition::Absent if there.is_none() => Ok(()),
            Condition::At(revision) if there == Some(revision) => Ok(()),
            _ => Err(Refused::Other(there)),
        }
    }

    fn set(&mut self, key: &str, content: Option<Arc<str>>, now: SystemTime) -> u64 {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.last = u64::try_from(now).unwrap_or(u64::MAX).max(self.last.saturating_add(1));
        self.all.insert(key.to_owned(), Document { revision: self.last, content });
        self.last
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn revisions_grow_also_where_the_clock_does_not() {
        let mut all = Documents::new(9);
        let mut put = |content: &str, millis| all.put("a", content, Condition::None, at(millis)).unwrap();
        assert_eq!(
            [put("1", 100), put("2", 100), put("2", 500), put("3", 50), put("4", 300)],
            [100, 101, 101, 102, 300]
        );
        assert_eq!(all.delete("a", Condition::None, at(300)), Ok(301));
        assert_eq!(all.delete("a", Condition::None, at(999)), Ok(301));
        assert_eq!(all.delete("b", Condition::None, at(999)), Ok(0));
        assert_eq!(all.get("a"), Document { revision: 301, content: None });
        let mut again = Documents::new(9);
        again.restore("a".into(), all.get("a")).unwrap();
        assert_eq!(again.put("b", "1", Condition::None, at(7)), Ok(302));
    }

    #[test]
    fn a_change_may_depend_on_the_revision() {
        let mut all = Documents::new(9);
        assert_eq!(all.put("a", "1", Condition::At(1), at(1)), Err(Refused::Other(None)));
        assert_eq!(all.put("a", "1", Condition::Absent, at(1)), Ok(1));
        assert_eq!(all.put("a", "2", Condition::Absent, at(2)), Err(Refused::Other(Some(1))));
        assert_eq!(all.put("a", "2", Condition::At(1), at(2)), Ok(2));
        assert_eq!(all.delete("a", Condition::At(1), at(3)), Err(Refused::Other(Some(2))));
        assert_eq!(all.delete("a", Condition::At(2), at(3)), Ok(3));
        assert_eq!(all.put("a", "1", Condition::At(3), at(4)), Err(Refused::Other(None)));
        assert_eq!(all.put("a", "1", Condition::Absent, at(4)), Ok(4));
    }

    #[test]
    fn deleted_documents_make_room() {
        let mut all = Documents::new(2);
        for (key, millis) in [("a", 1), ("b", 2)] {
            all.put(key, "1", Condition::None, at(millis)).unwrap();
        }
        assert_eq!(all.put("c", "1", Condition::None, at(3)), Err(Refused::Full));
        assert_eq!(all.put("b", "2", Condition::None, at(4)), Ok(4));
        all.delete("a", Condition::None, at(5)).unwrap();
        assert_eq!(all.put("c", "1", Condition::None, at(6)), Ok(6));
        assert_eq!(all.iter().map(|(key, _)| key.as_str()).collect::<String>(), "bc");
    }
}
