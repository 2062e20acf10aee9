//! Sections: tables of the settings that other crates and programs add.
use std::{
    any::{Any, TypeId},
    fmt,
    sync::Arc,
};

use crate::rule::Problem;

/// A table of the document that a crate or a program adds: its name, its type, and its check.
///
/// `C` is the written form, read by serde; `T` is the compiled form, which layers and services use. A section
/// is part of a version of the settings: if it is refused, nothing of that version takes effect.
///
/// A missing section is read as an empty one, so a `C` with defaults needs no table. A program that does not
/// register a section ignores its table if the name starts with `x-`, and refuses it otherwise.
///
/// ```
/// use chassis_core::{Section, settings::Problem};
///
/// #[derive(serde::Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct Audit {
///     /// Calls of which one is written down. Default 1: every call; 0 is refused.
///     one_of: u32,
/// }
///
/// impl Default for Audit {
///     fn default() -> Self {
///         Audit { one_of: 1 }
///     }
/// }
///
/// let section = Section::<Audit>::new("x-audit").check(|audit| match audit.one_of {
///     0 => Err(vec![Problem::new("one_of", "0 is refused; leave the layer out, or switch it off")]),
///     _ => Ok(()),
/// });
/// assert_eq!(section.name(), "x-audit");
/// ```
pub struct Section<T, C = T> {
    name: String,
    compile: Box<Compile<T, C>>,
    read_once: bool,
    schema: serde_json::Value,
    renamed: Vec<(String, String)>,
}

type Compile<T, C> = dyn Fn(C) -> Result<T, Vec<Problem>> + Send + Sync;

/// The compiled sections of one version, by type. Clones share them.
#[derive(Clone, Default)]
pub struct Sections(Arc<[Entry]>);

#[derive(Clone)]
struct Entry {
    of: TypeId,
    name: Arc<str>,
    value: Arc<dyn Any + Send + Sync>,
}

// === impl Section ===

impl<T: Send + Sync + 'static> Section<T> {
    /// A section whose written form is used directly.
    pub fn new(name: impl Into<String>) -> Self {
        Section::compiled(name, Ok)
    }
}

impl<T: Send + Sync + 'static, C: 'static> Section<T, C> {
    /// A section that `compile` makes from the written form. Paths of its problems are relative to the section.
    pub fn compiled(
        name: impl Into<String>,
        compile: impl Fn(C) -> Result<T, Vec<Problem>> + Send + Sync + 'static,
    ) -> Self {
        let schema = serde_json::json!({});
        Section {
            name: name.into(),
            compile: Box::new(compile),
            read_once: false,
            schema,
            renamed: Vec::new(),
        }
    }

    /// Adds a check that may refuse the section. Paths of problems are relative to the section.
    pub fn check(self, check: impl Fn(&T) -> Result<(), Vec<Problem>> + Send + Sync + 'static) -> Self {
        let compile = self.compile;
        let checked = move |written| {
            let value = compile(written)?;
            check(&value).map(|()| value)
        };
        Section { compile: Box::new(checked), ..self }
    }

    /// The section is only read at the start: a change is reported as waiting for a restart. Default: changes
    /// take effect at once.
    pub fn read_once(self) -> Self {
        Section { read_once: true, ..self }
    }

    /// The JSON Schema of the written form, draft 07: a part of what a program prints as the schema of its settings, and
    /// the source of their descriptions and defaults there. Default `{}`: everything is allowed.
    #[cfg_attr(
        feature = "schema",
        doc = "[`schema::of`](crate::schema::of) makes it of a type that derives `JsonSchema`."
    )]
    pub fn schema(self, schema: serde_json::Value) -> Self {
        Section { schema, ..self }
    }

    /// A key that has a new name: the old one is read as the new one, with a warning, and the command line's
    /// `--check-config --fix` renames it. Remove the line with the next major version of the program.
    ///
    /// In the path, which is relative to the section, `*` stands for one key that people choose, and `[*]` for each item of a
    /// list. Only the last key has a new name: it stays in its table.
    ///
    /// ```
    /// # use chassis_core::Section;
    /// # #[derive(serde::Deserialize)] struct Shop {}
    /// let shop = Section::<Shop>::new("shop").renamed("discont", "discount").renamed("tiers[*].min", "at_least");
    /// ```
    pub fn renamed(mut self, path: &str, new: &str) -> Self {
        self.renamed.push((path.to_owned(), new.to_owned()));
        self
    }

    /// The paths of its keys that have new names, and these.
    pub fn renamed_keys(&self) -> &[(String, String)] {
        &self.renamed
    }

    /// Its JSON Schema.
    pub fn json_schema(&self) -> &serde_json::Value {
        &self.schema
    }

    /// Its key at the top level of the document.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether changes wait for a restart.
    pub fn is_read_once(&self) -> bool {
        self.read_once
    }

    /// Compiles the written form.
    ///
    /// # Errors
    /// The problems of the section.
    pub fn compile(&self, written: C) -> Result<T, Vec<Problem>> {
        (self.compile)(written)
    }
}

impl<T, C> fmt::Debug for Section<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Section").field("name", &self.name).finish_non_exhaustive()
    }
}

// === impl Sections ===

impl Sections {
    /// Adds `value` as the section `name`, replacing one of the same type.
    pub fn with<T: Send + Sync + 'static>(&self, name: impl Into<Arc<str>>, value: Arc<T>) -> Self {
        let entry = Entry { of: TypeId::of::<T>(), name: name.into(), value };
        let others = self.0.iter().filter(|other| other.of != entry.of).cloned();
        Sections(others.chain([entry.clone()]).collect())
    }

    /// The section of this type.
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.entry(TypeId::of::<T>())?.value.downcast_ref()
    }

    /// The same, shared.
    pub fn shared<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.entry(TypeId::of::<T>())?.value.clone().downcast().ok()
    }

    /// The section of this type, if it has this name.
    pub fn named<T: Send + Sync + 'static>(&self, name: &str) -> Option<Arc<T>> {
        let entry = self.entry(TypeId::of::<T>()).filter(|entry| *entry.name == *name)?;
        entry.value.clone().downcast().ok()
    }

    /// The names of all sections.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|entry| &*entry.name)
    }

    /// There are few sections: comparing each is faster than hashing.
    fn entry(&self, of: TypeId) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.of == of)
    }
}

/// Equal if the values are the same, not only equal.
impl PartialEq for Sections {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Entry, &Entry)| a.of == b.of && Arc::ptr_eq(&a.value, &b.value);
        self.0.len() == other.0.len() && self.0.iter().zip(other.0.iter()).all(same)
    }
}

impl fmt::Debug for Sections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Price(u32);

    #[test]
    fn a_section_is_found_by_its_type() {
        let sections = Sections::default().with("shop", Arc::new(Price(1))).with("x-on", Arc::new(true));
        assert_eq!((sections.get::<Price>(), sections.get::<u8>()), (Some(&Price(1)), None));
        assert_eq!(sections.named::<Price>("shop"), Some(Arc::new(Price(1))));
        assert_eq!(sections.named::<Price>("x-on"), None);
        let newer = sections.with("shop", Arc::new(Price(2)));
        assert_eq!((newer.get::<Price>(), sections.get::<Price>()), (Some(&Price(2)), Some(&Price(1))));
        assert_eq!(newer.names().count(), 2);
    }
}
