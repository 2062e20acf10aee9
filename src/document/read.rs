//! Reads a document: its own tables with serde, the others with the kinds and sections of a builder.
use chassis_core::{BoxError, Kind, Section};
use serde::{
    Deserializer,
    de::{Deserialize, DeserializeOwned, IgnoredAny},
};

use super::{
    DiscoverySection, Document, Problem, ReadOnce, Renamed, read_part,
    renamed::RENAMED,
    tree::{Node, Path},
};
use crate::{
    built_in,
    kinds::{Center, Chosen, Kinds, Port, Tables},
};

/// Reads documents with all registered kinds and sections.
pub(crate) struct Reader(Kinds);

/// Skips a value that a [`Reader`] reads later.
pub(super) fn later<'de, D: Deserializer<'de>, T: Default>(from: D) -> Result<T, D::Error> {
    IgnoredAny::deserialize(from).map(|_| T::default())
}

// === impl Reader ===

impl Default for Reader {
    /// The built-in kinds and sections.
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

    /// All kinds and sections, for the schema.
    #[allow(dead_code, reason = "for the command line, which a build may be without")]
    pub(crate) fn tables(&self) -> Tables {
        self.0.tables()
    }

    /// Names that can't be registered, with the reasons.
    pub(crate) fn conflicts(&self) -> &[String] {
        &self.0.conflicts
    }

    /// Reads a tree: the document with warnings, or all problems, in the order of the text.
    pub(crate) fn read(&self, tree: &Node) -> (Option<Document>, Vec<Problem>) {
        let others: Vec<Path> = self.0.section_names().map(|name| Path::of([name])).collect();
        let (document, mut problems) = read_part::<Document>(tree, &Path::default(), &others);
        self.0.explain_left_out(&mut problems);
        let registry = self.0.read_registry(tree, &mut problems);
        let overrides = self.0.read_overrides(tree, &mut problems);
        let config = self.0.read_centers(tree, &mut problems);
        let rollout = self.0.read_rollout(tree, &mut problems);
        let pickers = self.0.read_pickers(tree, &mut problems);
        let sections = self.0.read_sections(tree, &mut problems);
        problems.sort_by_key(place);
        let sound = document.filter(|_| !problems.iter().any(Problem::is_error));
        let whole = |document: Document| {
            let discovery = DiscoverySection { services: overrides, ..document.discovery };
            Document { config, rollout, registry, discovery, pickers, sections, ..document }
        };
        (sound.map(whole), problems)
    }

    /// The keys that have new names, where the tables of `tree` choose their kinds: chassis' own, and those of sections and
    /// kinds.
    pub(crate) fn renamed(&self, tree: &Node) -> Vec<Renamed> {
        let own = RENAMED.iter().map(|(path, new, _)| Renamed::new(path, new));
        own.chain(self.0.renamed(tree)).collect()
    }

    /// Reads the config centers of a tree, and nothing else: the rest of the settings is not whole without them.
    pub(crate) fn read_centers(&self, tree: &Node) -> (Option<Vec<Center>>, Vec<Problem>) {
        let mut problems = Vec::new();
        let centers = self.0.read_centers(tree, &mut problems);
        (Some(centers).filter(|_| problems.is_empty()), problems)
    }

    /// The registry of a document that was read from `tree`.
    pub(crate) fn registry(&self, document: &Document, tree: &Node) -> Result<Chosen, BoxError> {
        match &document.registry {
            Some(chosen) => Ok(chosen.clone()),
            None => self.0.default_registry(tree),
        }
    }

    /// The settings that take effect at the next start only, with this choice of a registry.
    pub(crate) fn read_once(&self, registry: Option<&Chosen>) -> ReadOnce {
        ReadOnce {
            sections: self.0.read_once().map(str::to_owned).collect(),
            live: registry.map(|chosen| chosen.live().to_vec()).unwrap_or_default(),
        }
    }
}

/// Sorts by layer, text and position.
fn place(problem: &Problem) -> Option<(super::tree::Layer, String, usize, usize)> {
    let at = problem.at.as_ref()?;
    Some((at.origin.layer, at.origin.name.clone(), at.line, at.column))
}
