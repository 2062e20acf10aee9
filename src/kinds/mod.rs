//! Kinds that the document chooses by name, and sections that others register.
use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use chassis_config::{
    Code, Finding, Problem, Renamed, read_part,
    tree::{Layer, Node, Path, Segment, Value},
};
use chassis_core::{
    BoxError, Kind, Section, Sections,
    config::ConfigSource,
    layer::balance::PickerFactory,
    registry::Registry,
    settings::{self, BUILT_IN_PICKERS, Pickers},
    units::Switch,
};
use serde::de::DeserializeOwned;

use crate::document::{RolloutConfig, TABLES};

mod composite;
#[cfg(test)]
mod tests;

/// All kinds and all sections.
#[derive(Default)]
pub struct Kinds {
    registries: Table<Arc<dyn Registry>>,
    centers: Table<Arc<dyn ConfigSource>>,
    pickers: Table<Arc<dyn PickerFactory>>,
    sections: Vec<Box<dyn ReadSection>>,
    /// Pickers made from settings: the same settings get the same picker, which keeps its state.
    made: Mutex<Vec<Made>>,
    /// Names that were registered twice.
    pub(crate) conflicts: Vec<String>,
}

/// A picker made from settings: their path, their value, and the picker.
type Made = (Path, Value, Weak<dyn PickerFactory>);

/// The kinds of one port.
struct Table<M>(Vec<Arc<dyn ReadKind<M>>>);

/// A port that has kinds: `Arc<dyn Registry>`, `Arc<dyn ConfigSource>` and `Arc<dyn PickerFactory>`.
pub trait Port: Sized + Send + Sync + 'static {
    /// Adds the kind to those of its port.
    #[doc(hidden)]
    fn add(kinds: &mut Kinds, kind: impl Kind<Made = Self>);
}

/// A kind, and how its settings are read.
trait ReadKind<M>: Send + Sync {
    fn name(&self) -> &str;
    fn described(&self) -> Described;
    /// Keys of the table that have new names.
    fn renamed(&self) -> Vec<Renamed> {
        Vec::new()
    }
    /// Reads the table at `part`, or returns the problems. The keys `beside` are not the kind's own.
    /// `kinds` are all kinds of the port, for a kind that consists of others.
    fn read(
        self: Arc<Self>,
        kinds: &Table<M>,
        tree: &Node,
        part: &Path,
        beside: &[&str],
    ) -> Result<Chosen<M>, Vec<Problem>>;
}

/// A section, and how it is read.
trait ReadSection: Send + Sync {
    fn name(&self) -> &str;
    fn is_read_once(&self) -> bool;
    fn schema(&self) -> &serde_json::Value;
    fn renamed(&self) -> Vec<Renamed>;
    /// Adds the section to `sections`, or returns the problems.
    fn read(&self, tree: &Node, sections: &mut Sections) -> Result<(), Vec<Problem>>;
}

/// The definition, in the schema of the settings, of a table with a `kind` of registry that is read once.
pub(crate) const FIXED_REGISTRY: &str = "#/definitions/registry.fixed";

/// A kind, as the schema of the settings shows it.
#[allow(dead_code, reason = "for the command line, which a build may be without")]
pub(crate) struct Described {
    pub(crate) name: String,
    /// The schema of its table, without `kind`.
    pub(crate) schema: serde_json::Value,
    /// Keys that can change while what it made is in use.
    pub(crate) live: Vec<String>,
    pub(crate) renamed: Vec<Renamed>,
}

/// All kinds and sections, as the schema of the settings shows them.
#[allow(dead_code, reason = "for the command line, which a build may be without")]
pub(crate) struct Tables {
    pub(crate) registries: Vec<Described>,
    pub(crate) centers: Vec<Described>,
    pub(crate) pickers: Vec<Described>,
    pub(crate) sections: Vec<DescribedSection>,
}

/// A section, as the schema of the settings shows it.
#[allow(dead_code, reason = "for the command line, which a build may be without")]
pub(crate) struct DescribedSection {
    pub(crate) name: String,
    pub(crate) is_read_once: bool,
    pub(crate) schema: serde_json::Value,
    pub(crate) renamed: Vec<Renamed>,
}

/// A kind with its settings, as a table chose it.
pub(crate) struct Chosen<M = Arc<dyn Registry>> {
    kind: Arc<str>,
    live: Arc<[String]>,
    make: Arc<Make<M>>,
    make_fixed: Arc<Make<M>>,
    change: Arc<Make<()>>,
}

/// A config center of the table `config`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Center {
    /// Where it stands in the settings.
    pub(crate) path: String,
    pub(crate) chosen: Chosen<Arc<dyn ConfigSource>>,
    /// There is no start without it.
    pub(crate) is_required: bool,
    /// Its text may refer to files and environment variables of this process.
    pub(crate) has_references: bool,
}

type Make<M> = dyn Fn() -> Result<M, BoxError> + Send + Sync;

/// Kinds that a build may lack, and the cargo feature that adds each.
const OPTIONAL_KINDS: [(&str, &str); 9] = [
    ("local", "local"),
    ("dns", "dns"),
    ("consul", "consul"),
    ("etcd", "etcd"),
    ("kubernetes", "kubernetes"),
    ("http", "http-center"),
    ("kie", "servicecomb"),
    ("servicecomb", "servicecomb"),
    ("ttl", "ttl"),
];
/// Sections that a build may lack, and the cargo feature that adds each.
const OPTIONAL_SECTIONS: [(&str, &str); 3] = [("admin", "admin"), ("client", "http"), ("server", "http")];

const KIND: &str = "kind";
/// The key of a service in the table `discovery.services`.
const REGISTRY: &str = "registry";
/// The key of the table `config`.
const CENTERS: &str = "centers";
/// The key of the table `config` for the directory of last good texts.
const LAST_GOOD: &str = "last_good";
/// The key of the table `config` for the staged roll-out.
const ROLLOUT: &str = "rollout";
/// The keys of the table `config`.
const CONFIG_KEYS: [&str; 3] = [CENTERS, LAST_GOOD, ROLLOUT];
/// The keys of a config center beside those of its kind.
const REQUIRED: &str = "required";
const REFERENCES: &str = "references";

// === the ports ===

impl Port for Arc<dyn Registry> {
    fn add(kinds: &mut Kinds, kind: impl Kind<Made = Self>) {
        kinds.registries.add(kind);
    }
}

impl Port for Arc<dyn ConfigSource> {
    fn add(kinds: &mut Kinds, kind: impl Kind<Made = Self>) {
        kinds.centers.add(kind);
    }
}

impl Port for Arc<dyn PickerFactory> {
    fn add(kinds: &mut Kinds, kind: impl Kind<Made = Self>) {
        kinds.pickers.add(kind);
    }
}

// === impl Kinds ===

impl Kinds {
    /// Adds a section; each has its own name and its own type.
    pub(crate) fn section<T, C>(&mut self, section: Section<T, C>)
    where
        T: Send + Sync + 'static,
        C: DeserializeOwned + 'static,
    {
        let name = section.name();
        if self.section_names().any(|other| other == name) {
            self.conflicts.push(format!("two sections are called `{name}`"));
        }
        if TABLES.contains(&name) {
            self.conflicts.push(format!("`{name}` is a table of chassis' own; a section has another name"));
        }
        self.sections.push(Box::new(section));
    }

    /// All of them, for the schema.
    #[allow(dead_code, reason = "for the command line, which a build may be without")]
    pub(crate) fn tables(&self) -> Tables {
        let section = |section: &dyn ReadSection| DescribedSection {
            name: section.name().to_owned(),
            is_read_once: section.is_read_once(),
            schema: section.schema().clone(),
            renamed: section.renamed(),
        };
        Tables {
            registries: self.registries.described(),
            centers: self.centers.described(),
            pickers: self.pickers.described(),
            sections: self.sections.iter().map(|read| section(&**read)).collect(),
        }
    }

    /// The keys of sections and kinds that have new names, where the tables of `tree` choose them.
    pub(crate) fn renamed(&self, tree: &Node) -> Vec<Renamed> {
        let mut found = Vec::new();
        for section in &self.sections {
            let part = Path::of([section.name()]);
            found.extend(section.renamed().into_iter().map(|renamed| renamed.within(&part)));
        }
        found.extend(self.registries.renamed(tree, Path::of(["registry"])));
        let centers = Path::of(["config", CENTERS]);
        if let Some(Value::List(all)) = tree.at(&centers).map(|node| &node.value) {
            found.extend(
                (0..all.len()).flat_map(|at| self.centers.renamed(tree, centers.then(Segment::Index(at)))),
            );
        }
        let keys = |part: &Path| {
            let entries = tree.at(part).map(Node::entries).unwrap_or_default();
            entries.iter().map(|entry| part.then(Segment::Key(entry.key.clone()))).collect::<Vec<_>>()
        };
        for picker in keys(&Path::of(["pickers"])) {
            found.extend(self.pickers.renamed(tree, picker));
        }
        for service in keys(&Path::of(["discovery", "services"])) {
            found.extend(self.registries.renamed(tree, service.then(Segment::Key(REGISTRY.to_owned()))));
        }
        found
    }

    pub(crate) fn section_names(&self) -> impl Iterator<Item = &str> {
        self.sections.iter().map(|section| section.name())
    }

    /// The sections that are only read at the start.
    pub(crate) fn read_once(&self) -> impl Iterator<Item = &str> {
        self.sections.iter().filter(|section| section.is_read_once()).map(|section| section.name())
    }

    pub(crate) fn read_sections(&self, tree: &Node, problems: &mut Vec<Problem>) -> Sections {
        let mut sections = Sections::default();
        for section in &self.sections {
            if let Err(wrong) = section.read(tree, &mut sections) {
                problems.extend(wrong);
            }
        }
        sections
    }

    /// The built-in kinds that consist of others.
    pub(crate) fn add_composites(&mut self) {
        self.registries.add_read(composite::CompositeKind);
    }

    /// The registry that the `registry` table chooses; `None` without such a table.
    pub(crate) fn read_registry(&self, tree: &Node, problems: &mut Vec<Problem>) -> Option<Chosen> {
        let part = Path::of(["registry"]);
        tree.at(&part).filter(|node| !matches!(node.value, Value::Null))?;
        self.registries.read(tree, &part, &[]).map_err(|wrong| problems.extend(wrong)).ok()
    }

    /// The registries of single services, in the table `discovery.services`, by service.
    pub(crate) fn read_overrides(
        &self,
        tree: &Node,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<String, Chosen> {
        let part = Path::of(["discovery", "services"]);
        let Some((services, value)) = value_of(tree, &part) else { return BTreeMap::new() };
        if !matches!(value, Value::Map(_)) {
            problems.push(wrong_type(services, part, "a map by the names of services"));
            return BTreeMap::new();
        }
        let mut read = BTreeMap::new();
        for service in services.entries() {
            let part = part.then(Segment::Key(service.key.clone()));
            if !matches!(service.node.value, Value::Map(_) | Value::Null) {
                problems.push(wrong_type(&service.node, part, "a map with `registry`"));
                continue;
            }
            for key in service.node.entries().iter().filter(|key| key.key != REGISTRY) {
                let at = part.then(Segment::Key(key.key.clone()));
                let unknown = Problem::error(at, Some(key.key_at.clone()), "unknown key");
                problems.push(unknown.coded(Code::UnknownKey).instead(&key.key, [REGISTRY]));
            }
            let part = part.then(Segment::Key(REGISTRY.to_owned()));
            if tree.at(&part).is_some() {
                match self.registries.read(tree, &part, &[]) {
                    Ok(chosen) => drop(read.insert(service.key.clone(), chosen)),
                    Err(wrong) => problems.extend(wrong),
                }
            }
        }
        read
    }

    /// The config centers of the table `config`, in their order: later ones stand over earlier ones.
    pub(crate) fn read_centers(&self, tree: &Node, problems: &mut Vec<Problem>) -> Vec<Center> {
        let part = Path::of(["config"]);
        let Some(table) = tree.at(&part).filter(|table| !matches!(table.value, Value::Null)) else {
            return Vec::new();
        };
        if !matches!(table.value, Value::Map(_)) {
            problems.push(wrong_type(table, part, "a map with `centers`"));
            return Vec::new();
        }
        for entry in table.entries().iter().filter(|entry| !CONFIG_KEYS.contains(&&*entry.key)) {
            let at = part.then(Segment::Key(entry.key.clone()));
            let unknown =
                Problem::error(at, Some(entry.key_at.clone()), "unknown key").coded(Code::UnknownKey);
            problems.push(unknown.instead(&entry.key, CONFIG_KEYS));
        }
        if let Keep::Wrong(wrong) = keep(tree) {
            problems.push(*wrong);
        }
        let part = part.then(Segment::Key(CENTERS.to_owned()));
        let Some((centers, value)) = value_of(tree, &part) else { return Vec::new() };
        let Value::List(entries) = value else {
            problems.push(wrong_type(centers, part, "a list of config centers"));
            return Vec::new();
        };
        if centers.at.origin.layer == Layer::Center {
            let message = "a config center can't name config centers: they are read before it";
            problems.push(Problem::error(part, Some(centers.at.clone()), message));
            return Vec::new();
        }
        let mut read = Vec::new();
        for at in 0..entries.len() {
            let part = part.then(Segment::Index(at));
            match self.center(tree, &part) {
                Ok(center) => read.push(center),
                Err(wrong) => problems.extend(wrong),
            }
        }
        read
    }

    /// The table `config.rollout`; `None` without it, and if it is `off`.
    pub(crate) fn read_rollout(&self, tree: &Node, problems: &mut Vec<Problem>) -> Option<RolloutConfig> {
        let part = Path::of(["config", ROLLOUT]);
        value_of(tree, &part)?;
        let (read, wrong) = read_part::<Switch<RolloutConfig>>(tree, &part, &[]);
        problems.extend(wrong);
        read?.on().cloned()
    }

    fn center(&self, tree: &Node, part: &Path) -> Result<Center, Vec<Problem>> {
        let chosen = self.centers.read(tree, part, &[REQUIRED, REFERENCES]);
        let (is_required, has_references) =
            (read_switch(tree, part, REQUIRED, true), read_switch(tree, part, REFERENCES, false));
        match (chosen, is_required, has_references) {
            (Ok(chosen), Ok(is_required), Ok(has_references)) => {
                Ok(Center { path: part.to_string(), chosen, is_required, has_references })
            }
            (chosen, is_required, has_references) => {
                let switches = [is_required.err(), has_references.err()].into_iter().flatten();
                Err(chosen.err().unwrap_or_default().into_iter().chain(switches).collect())
            }
        }
    }

    /// The pickers of the `pickers` table, and the kinds that need no settings, under their own names.
    pub(crate) fn read_pickers(&self, tree: &Node, problems: &mut Vec<Problem>) -> Pickers {
        let mut pickers = BTreeMap::new();
        let part = Path::of(["pickers"]);
        for kind in &self.pickers.0 {
            // A kind that needs settings has a picker only where the table has them.
            let own = part.then(Segment::Key(kind.name().to_owned()));
            if tree.at(&own).is_none()
                && let Ok(chosen) = kind.clone().read(&self.pickers, tree, &own, &[])
                && let Ok(picker) = self.picker(&own, &Value::Null, &chosen)
            {
                pickers.insert(kind.name().to_owned(), picker);
            }
        }
        let Some(table) = tree.at(&part) else { return Pickers(pickers) };
        if !matches!(table.value, Value::Map(_) | Value::Null) {
            problems.push(wrong_type(table, part.clone(), "a map of pickers by name"));
        }
        for entry in table.entries() {
            let part = part.then(Segment::Key(entry.key.clone()));
            if BUILT_IN_PICKERS.contains(&entry.key.as_str()) {
                let message = format!("`{}` is built in; a picker of one's own has another name", entry.key);
                problems.push(Problem::error(part, Some(entry.key_at.clone()), message));
                continue;
            }
            let made = self.pickers.read(tree, &part, &[]).and_then(|chosen| {
                let failed = |error: BoxError| vec![failed(tree, &part, &*error)];
                self.picker(&part, &entry.node.value, &chosen).map_err(failed)
            });
            match made {
                Ok(picker) => drop(pickers.insert(entry.key.clone(), picker)),
                Err(wrong) => problems.extend(wrong),
            }
        }
        Pickers(pickers)
    }

    /// The picker of these settings: the existing one as long as it is in use.
    fn picker(
        &self,
        part: &Path,
        written: &Value,
        chosen: &Chosen<Arc<dyn PickerFactory>>,
    ) -> Result<Arc<dyn PickerFactory>, BoxError> {
        let find = |made: &mut Vec<Made>| {
            made.retain(|(.., picker)| picker.strong_count() > 0);
            let same = made.iter().find(|(path, from, _)| path == part && from == written);
            same.and_then(|(.., picker)| picker.upgrade())
        };
        // A kind is code of another crate: it may panic, which leaves the list unchanged.
        if let Some(picker) = find(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(picker);
        }
        let picker = chosen.make()?;
        let entry = (part.clone(), written.clone(), Arc::downgrade(&picker));
        self.made.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        Ok(picker)
    }

    /// The registry for settings without a `registry` table.
    ///
    /// # Errors
    /// There is no default, or its instances could not be reached.
    pub(crate) fn default_registry(&self, tree: &Node) -> Result<Chosen, BoxError> {
        if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            return Err("inside Kubernetes `registry.kind` has to be set: `static` or `file`".into());
        }
        let Some(local) = self.registries.0.iter().find(|kind| kind.name() == "local") else {
            let known: Vec<_> = self.registries.names().map(|name| format!("`{name}`")).collect();
            return Err(format!(
                "`registry.kind` has to be set: this build of chassis has no `local`, which the cargo feature `local` \
                 adds; there are {}",
                known.join(", ")
            )
            .into());
        };
        local.clone().read(&self.registries, tree, &Path::of(["registry"]), &[]).map_err(|wrong| {
            let wrong: Vec<_> = wrong.iter().map(Problem::in_a_line).collect();
            wrong.join("; ").into()
        })
    }

    /// If the unknown section belongs to a cargo feature, names the feature in the problem.
    pub(crate) fn explain_left_out(&self, problems: &mut [Problem]) {
        for problem in problems {
            let [Segment::Key(key)] = &*problem.path.0 else { continue };
            let left_out = OPTIONAL_SECTIONS.iter().find(|(section, _)| section == key);
            if let Some((section, feature)) =
                left_out.filter(|_| self.section_names().all(|name| name != key))
            {
                problem.message = left_out_message(section, feature);
                problem.nearest = None;
            }
        }
    }
}

/// Where the settings say that last good texts are kept.
pub(crate) enum Keep {
    /// In the directory that the environment names.
    ByDefault,
    Off,
    In(String),
    Wrong(Box<Problem>),
}

/// The key `config.last_good`: a directory, or `off`, also in quotes, as JSON has it. A directory of that name is `./off`.
pub(crate) fn keep(tree: &Node) -> Keep {
    let at = Path::of(["config", LAST_GOOD]);
    match tree.at(&at).map(|node| (node, &node.value)) {
        None | Some((_, Value::Null)) => Keep::ByDefault,
        Some((_, Value::Plain(word) | Value::Quoted(word))) if word == "off" => Keep::Off,
        Some((_, Value::Plain(word))) if word == "false" => Keep::Off,
        Some((_, Value::Plain(path) | Value::Quoted(path))) => Keep::In(path.clone()),
        Some((node, _)) => Keep::Wrong(Box::new(wrong_type(node, at, "a directory, or `off`,"))),
    }
}

/// The switch `key` of the table at `part`.
#[allow(clippy::result_large_err)] // once for each change of the settings
fn read_switch(tree: &Node, part: &Path, key: &str, default: bool) -> Result<bool, Problem> {
    let at = part.then(Segment::Key(key.to_owned()));
    match tree.at(&at).map(|node| (node, &node.value)) {
        None | Some((_, Value::Null)) => Ok(default),
        Some((_, Value::Plain(word))) if word == "true" => Ok(true),
        Some((_, Value::Plain(word))) if word == "false" => Ok(false),
        Some((node, _)) => Err(wrong_type(node, at, "`true` or `false`")),
    }
}

fn left_out_message(name: &str, feature: &str) -> String {
    format!("this build of chassis has no `{name}`: the cargo feature `{feature}` adds it")
}

fn failed(tree: &Node, part: &Path, error: &(dyn std::error::Error + 'static)) -> Problem {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    Finding::error("", message).within(part).place(tree)
}

/// The value at `part`, unless it is null.
fn value_of<'a>(tree: &'a Node, part: &Path) -> Option<(&'a Node, &'a Value)> {
    tree.at(part).map(|node| (node, &node.value)).filter(|(_, value)| !matches!(value, Value::Null))
}

fn wrong_type(node: &Node, part: Path, wanted: &str) -> Problem {
    let found = match &node.value {
        Value::Null => "nothing".to_owned(),
        Value::Plain(word) | Value::Quoted(word) => format!("`{word}`"),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "a map".to_owned(),
    };
    Problem::error(part, Some(node.at.clone()), format!("{wanted} belongs here, not {found}"))
        .coded(Code::WrongType)
}

fn placed(tree: &Node, part: &Path, wrong: Vec<settings::Problem>) -> Vec<Problem> {
    wrong.into_iter().map(|problem| Finding::from(problem).within(part).place(tree)).collect()
}

// === impl Table ===

impl<M> Default for Table<M> {
    fn default() -> Self {
        Table(Vec::new())
    }
}

impl<M: 'static> Table<M> {
    /// The last kind of a name wins: a program may replace a built-in one.
    fn add(&mut self, kind: impl Kind<Made = M>) {
        self.add_read(Readable(kind));
    }

    fn add_read(&mut self, kind: impl ReadKind<M> + 'static) {
        self.0.retain(|other| other.name() != kind.name());
        self.0.push(Arc::new(kind));
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|kind| kind.name())
    }

    #[allow(dead_code, reason = "for the command line, which a build may be without")]
    fn described(&self) -> Vec<Described> {
        self.0.iter().map(|kind| kind.described()).collect()
    }

    /// The keys that have new names in the table at `part`, according to its `kind`.
    fn renamed(&self, tree: &Node, part: Path) -> Vec<Renamed> {
        let kind = tree.at(&part).and_then(|table| match &table.entry(KIND)?.node.value {
            Value::Plain(word) | Value::Quoted(word) => self.0.iter().find(|kind| kind.name() == word),
            _ => None,
        });
        let renamed = kind.map(|kind| (kind.name(), kind.renamed())).into_iter();
        renamed.flat_map(|(kind, all)| all.into_iter().map(|one| one.within(&part).of_kind(kind))).collect()
    }

    /// Reads the table at `part` as its `kind` requires.
    fn read(&self, tree: &Node, part: &Path, beside: &[&str]) -> Result<Chosen<M>, Vec<Problem>> {
        let Some(table) = tree.at(part) else { return Err(Vec::new()) };
        if !matches!(table.value, Value::Map(_)) {
            return Err(vec![wrong_type(table, part.clone(), "a map with a `kind`")]);
        }
        let at = part.then(Segment::Key(KIND.to_owned()));
        let Some(entry) = table.entry(KIND) else {
            return Err(vec![
                Finding::error("", "missing `kind`").within(part).place(tree).coded(Code::Missing),
            ]);
        };
        let (Value::Plain(word) | Value::Quoted(word)) = &entry.node.value else {
            return Err(vec![wrong_type(&entry.node, at, "the name of a kind")]);
        };
        if let Some(kind) = self.0.iter().find(|kind| kind.name() == word) {
            return kind.clone().read(self, tree, part, beside);
        }
        let place = Some(entry.node.at.clone());
        Err(vec![match OPTIONAL_KINDS.iter().find(|(kind, _)| kind == word) {
            Some((kind, feature)) => {
                let allowed = self.names().map(str::to_owned).collect();
                Problem {
                    allowed,
                    ..Problem::error(at, place, left_out_message(kind, feature)).coded(Code::UnknownWord)
                }
            }
            None => Problem::error(at, place, format!("`{word}` is not known here"))
                .coded(Code::UnknownWord)
                .instead(word, self.names()),
        }])
    }
}

// === impl Readable ===

/// A kind whose settings [`read_part`] reads, which needs to know their type.
struct Readable<K>(K);

impl<K: Kind> ReadKind<K::Made> for Readable<K> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn described(&self) -> Described {
        let live = self.0.live().iter().map(|key| (*key).to_owned()).collect();
        Described {
            name: self.0.name().to_owned(),
            schema: self.0.schema(),
            live,
            renamed: ReadKind::renamed(self),
        }
    }

    fn renamed(&self) -> Vec<Renamed> {
        self.0.renamed().iter().map(|(path, new)| Renamed::new(path, new)).collect()
    }

    fn read(
        self: Arc<Self>,
        _: &Table<K::Made>,
        tree: &Node,
        part: &Path,
        beside: &[&str],
    ) -> Result<Chosen<K::Made>, Vec<Problem>> {
        let others = beside.iter().chain([&KIND]).map(|key| part.then(Segment::Key((*key).to_owned())));
        let (config, problems) = read_part::<K::Config>(tree, part, &others.collect::<Vec<_>>());
        let Some(config) = config else { return Err(problems) };
        let wrong = self.0.check(&config);
        if !wrong.is_empty() {
            return Err(placed(tree, part, wrong));
        }
        let config = Arc::new(config);
        let (kind, live) =
            (self.0.name().into(), self.0.live().iter().map(|key| (*key).to_owned()).collect());
        let (this, of) = (self.clone(), config.clone());
        let (another, its) = (self.clone(), config.clone());
        Ok(Chosen {
            kind,
            live,
            make: Arc::new(move || this.0.make(&of)),
            make_fixed: Arc::new(move || another.0.make_fixed(&its)),
            change: Arc::new(move || self.0.change(&config)),
        })
    }
}

// === impl Section ===

impl<T: Send + Sync + 'static, C: DeserializeOwned + 'static> ReadSection for Section<T, C> {
    fn name(&self) -> &str {
        self.name()
    }

    fn is_read_once(&self) -> bool {
        self.is_read_once()
    }

    fn schema(&self) -> &serde_json::Value {
        self.json_schema()
    }

    fn renamed(&self) -> Vec<Renamed> {
        self.renamed_keys().iter().map(|(path, new)| Renamed::new(path, new)).collect()
    }

    fn read(&self, tree: &Node, sections: &mut Sections) -> Result<(), Vec<Problem>> {
        let part = Path::of([self.name()]);
        let (written, problems) = read_part::<C>(tree, &part, &[]);
        let Some(written) = written else { return Err(problems) };
        let value = self.compile(written).map_err(|wrong| placed(tree, &part, wrong))?;
        if sections.get::<T>().is_some() {
            let message = "another section has the same type; layers find a section by its type, so give it one of \
                           its own";
            return Err(vec![Finding::error("", message).within(&part).place(tree)]);
        }
        *sections = sections.with(self.name(), Arc::new(value));
        Ok(())
    }
}

// === impl Chosen ===

impl<M> Chosen<M> {
    pub(crate) fn kind(&self) -> &str {
        &self.kind
    }

    /// Keys that can change while the registry is in use.
    pub(crate) fn live(&self) -> &[String] {
        &self.live
    }

    /// A choice whose settings take effect at the start only.
    fn fixed(kind: &str, make: impl Fn() -> Result<M, BoxError> + Send + Sync + 'static) -> Self {
        let make: Arc<Make<M>> = Arc::new(make);
        let live = Vec::new().into();
        Chosen { kind: kind.into(), live, make: make.clone(), make_fixed: make, change: Arc::new(|| Ok(())) }
    }

    pub(crate) fn make(&self) -> Result<M, BoxError> {
        (self.make)()
    }

    /// Makes a further one, which [`change`](Self::change) does not affect.
    pub(crate) fn make_fixed(&self) -> Result<M, BoxError> {
        (self.make_fixed)()
    }

    /// Applies these settings to the registry that is in use.
    pub(crate) fn change(&self) -> Result<(), BoxError> {
        (self.change)()
    }
}

impl<M> Clone for Chosen<M> {
    fn clone(&self) -> Self {
        Chosen {
            kind: self.kind.clone(),
            live: self.live.clone(),
            make: self.make.clone(),
            make_fixed: self.make_fixed.clone(),
            change: self.change.clone(),
        }
    }
}

impl<M> Eq for Chosen<M> {}

/// Equal if it is the same choice, not only an equal one.
impl<M> PartialEq for Chosen<M> {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && Arc::ptr_eq(&self.make, &other.make)
    }
}

impl<M> fmt::Debug for Chosen<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Chosen").field(&self.kind).finish()
    }
}
