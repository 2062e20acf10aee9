//! Reads a document: its own tables by serde, the others by the kinds and sections that a builder knows.
use chassis_core::{BoxError, Kind, Section};
use serde::{
    Deserializer,
    de::{Deserialize, DeserializeOwned, IgnoredAny},
};

use super::{
    Document, Problem, ReadOnce, read_part,
    tree::{Node, Path},
};
use crate::{
    built_in,
    kinds::{Chosen, Kinds, Port},
};

/// Knows everything that a document can hold.
pub(crate) struct Reader(Kinds);

/// Passes over what a [`Reader`] reads.
pub(super) fn later<'de, D: Deserializer<'de>, T: Default>(from: D) -> Result<T, D::Error> {
    IgnoredAny::deserialize(from).map(|_| T::default())
}

// === impl Reader ===

impl Default for Reader {
    /// With what is built in.
    fn default() -> Self {
        let mut kinds = Kinds::default();
        built_in::register(&mut kinds);
        Reader(kinds)
    }
}

impl Reader {
    pub(crate) fn kind<K: Kind>(&mut self, kind: K)
    where
        K::Made: Port,
    {
        K::Made::add(&mut self.0, kind);
    }

    pub(crate) fn section<T, C>(&mut self, section: Section<T, C>)
    where
        T: Send + Sync + 'static,
        C: DeserializeOwned + 'static,
    {
        self.0.section(section);
    }

    /// The names of all sections.
    pub(crate) fn sections(&self) -> impl Iterator<Item = &str> {
        self.0.section_names()
    }

    /// What was registered and can't be.
    pub(crate) fn conflicts(&self) -> &[String] {
        &self.0.conflicts
    }

    /// Reads a tree: with warnings, or all that is wrong, in the order in which it is written.
    pub(crate) fn read(&self, tree: &Node) -> (Option<Document>, Vec<Problem>) {
        let others: Vec<Path> = self.0.section_names().map(|name| Path::of([name])).collect();
        let (document, mut problems) = read_part::<Document>(tree, &Path::default(), &others);
        self.0.explain_left_out(&mut problems);
        let registry = self.0.read_registry(tree, &mut problems);
        let pickers = self.0.read_pickers(tree, &mut problems);
        let sections = self.0.read_sections(tree, &mut problems);
        problems.sort_by_key(place);
        let sound = document.filter(|_| !problems.iter().any(Problem::is_error));
        (sound.map(|document| Document { registry, pickers, sections, ..document }), problems)
    }

    /// The registry of a document that was read from `tree`.
    pub(crate) fn registry(&self, document: &Document, tree: &Node) -> Result<Chosen, BoxError> {
        match &document.registry {
            Some(chosen) => Ok(chosen.clone()),
            None => self.0.default_registry(tree),
        }
    }

    /// What takes effect at the next start only, with a registry of this choice.
    pub(crate) fn read_once(&self, registry: Option<&Chosen>) -> ReadOnce {
        ReadOnce {
            sections: self.0.read_once().map(str::to_owned).collect(),
            live: registry.map(|chosen| chosen.live().to_vec()).unwrap_or_default(),
        }
    }
}

/// Texts in the order of their layers, and each from its top.
fn place(problem: &Problem) -> Option<(super::tree::Layer, String, usize, usize)> {
    let at = problem.at.as_ref()?;
    Some((at.origin.layer, at.origin.name.clone(), at.line, at.column))
}
