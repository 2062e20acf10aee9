//! Sections whose `kind` decides what else they hold.
use std::{fmt, marker::PhantomData};

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, value::MapAccessDeserializer};

/// Which kinds a section has, and how each is read.
///
/// serde's own way, an internally tagged enum, reads the whole section before it knows the kind, and
/// forgets where everything stood. [`read_kind`] keeps it.
pub trait Kinds: Sized {
    /// The words that `kind` takes.
    const KINDS: &'static [&'static str];
    /// What the section is called in messages, with its article: `a registry`.
    const WHAT: &'static str;

    /// Reads the rest of the section, for one of [`KINDS`](Kinds::KINDS).
    fn read<'de, D: Deserializer<'de>>(kind: &str, rest: D) -> Result<Self, D::Error>;
}

/// Reads a section by its `kind`: the body of a `Deserialize` impl.
///
/// Readers of other documents than ours must put `kind` first.
///
/// ```
/// use chassis_config::document::{Kinds, read_kind};
/// use serde::{Deserialize, Deserializer};
///
/// #[derive(Debug, PartialEq)]
/// enum Store { Memory, Disk(Disk) }
///
/// #[derive(Debug, PartialEq, Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Disk { path: String }
///
/// #[derive(Deserialize)]
/// #[serde(deny_unknown_fields)]
/// struct Nothing {}
///
/// impl Kinds for Store {
///     const KINDS: &'static [&'static str] = &["memory", "disk"];
///     const WHAT: &'static str = "a store";
///     fn read<'de, D: Deserializer<'de>>(kind: &str, rest: D) -> Result<Self, D::Error> {
///         match kind {
///             "disk" => Disk::deserialize(rest).map(Store::Disk),
///             _ => Nothing::deserialize(rest).map(|_| Store::Memory),
///         }
///     }
/// }
///
/// impl<'de> Deserialize<'de> for Store {
///     fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
///         read_kind(from)
///     }
/// }
///
/// let store: Store = serde_json::from_str(r#"{ "kind": "disk", "path": "/var/lib" }"#)?;
/// assert_eq!(store, Store::Disk(Disk { path: "/var/lib".into() }));
/// # Ok::<(), serde_json::Error>(())
/// ```
pub fn read_kind<'de, K: Kinds, D: Deserializer<'de>>(from: D) -> Result<K, D::Error> {
    from.deserialize_map(Section(PhantomData))
}

struct Section<K>(PhantomData<K>);
struct Word<K>(PhantomData<K>);

// === impl Section ===

impl<'de, K: Kinds> de::Visitor<'de> for Section<K> {
    type Value = K;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, written as a map with a `kind`", K::WHAT)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<K, A::Error> {
        match map.next_key::<String>()?.as_deref() {
            Some("kind") => {
                let kind = map.next_value_seed(Word::<K>(PhantomData))?;
                K::read(kind, MapAccessDeserializer::new(map))
            }
            _ => Err(de::Error::missing_field("kind")),
        }
    }
}

// === impl Word ===

impl<'de, K: Kinds> DeserializeSeed<'de> for Word<K> {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<&'static str, D::Error> {
        let word = String::deserialize(from)?;
        let known = K::KINDS.iter().find(|k| **k == word);
        known.copied().ok_or_else(|| de::Error::unknown_variant(&word, K::KINDS))
    }
}
