//! A serde deserializer over the tree.
use serde::{
    Deserializer,
    de::{
        self, DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Unexpected, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::fault::Fault;
use crate::tree::{Entry, Node, Path, Segment, Value};

/// The key that is read first.
const KIND: &str = "kind";

/// A value of the tree, and the paths below it that are skipped.
#[derive(Clone)]
pub(super) struct Place<'a> {
    node: &'a Node,
    /// The path from the root; kept up to date only while something may have to be skipped.
    path: Path,
    skipped: &'a [Path],
}

/// The entries of a map, without those that are skipped.
///
/// `kind` comes first, wherever it is in the text, because it decides which other keys are allowed.
struct Entries<'a> {
    above: Place<'a>,
    kind: Option<&'a Entry>,
    left: std::slice::Iter<'a, Entry>,
    next: Option<&'a Entry>,
    /// The keys that the type knows, if it has fixed ones. Other keys that start with `x-` are the writer's
    /// own.
    fields: Option<&'static [&'static str]>,
}

/// The items of a list, without those that are skipped.
struct Items<'a> {
    above: Place<'a>,
    left: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

/// A number that an unquoted word can be read as.
enum Number {
    Natural(u64),
    Negative(i64),
    Fraction(f64),
}

/// An enum's word with a value, `{ word: value }`, or the word alone.
struct Variant<'a>(Option<(Place<'a>, &'a str)>);

// === impl Place ===

impl<'a> Place<'a> {
    pub(super) fn at(node: &'a Node, path: &Path, skipped: &'a [Path]) -> Self {
        Place { node, path: path.clone(), skipped }
    }

    fn enter(&self, node: &'a Node, segment: impl FnOnce() -> Segment) -> Self {
        let path = if self.skipped.is_empty() { Path::default() } else { self.path.then(segment()) };
        Place { node, path, skipped: self.skipped }
    }

    fn is_skipped(&self, segment: impl FnOnce() -> Segment) -> bool {
        !self.skipped.is_empty() && self.skipped.contains(&self.path.then(segment()))
    }

    /// The word, if it was written without quotes.
    fn plain(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Plain(word) => Some(word),
            _ => None,
        }
    }

    fn map<V: Visitor<'a>>(
        self,
        entries: &'a [Entry],
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let kind = entries.iter().find(|e| e.key == KIND && !self.is_skipped(|| Segment::Key(KIND.into())));
        visitor.visit_map(Entries { above: self, kind, left: entries.iter(), next: None, fields })
    }

    fn number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Quoted(text) if text.parse::<f64>().is_ok() => {
                Err(Fault::invalid_type(Unexpected::Other(&format!("`{text}` in quotes")), &visitor))
            }
            Value::Plain(word) => match Number::read(word) {
                Some(number) => number.visit(visitor),
                None => self.deserialize_any(visitor),
            },
            _ => self.deserialize_any(visitor),
        }
    }
}

// === impl Number ===

impl Number {
    /// Reads any of YAML's spellings.
    fn read(word: &str) -> Option<Self> {
        let (minus, digits) = match word.as_bytes().first()? {
            b'-' => (true, &word[1..]),
            b'+' => (false, &word[1..]),
            _ => (false, word),
        };
        let (digits, radix) = match digits.get(..2) {
            Some("0x") => (&digits[2..], 16),
            Some("0o") => (&digits[2..], 8),
            Some("0b") => (&digits[2..], 2),
            _ => (digits, 10),
        };
        if let Some(n) = i128::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with(['+', '-']))
        {
            let n = if minus { -n } else { n };
            let whole =
                u64::try_from(n).map(Number::Natural).or_else(|_| i64::try_from(n).map(Number::Negative));
            return whole.ok();
        }
        let numeric = word.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
        numeric.then(|| word.parse().ok().map(Number::Fraction)).flatten()
    }

    /// Whether this number, written out, gives `word` again.
    fn is_written(&self, word: &str) -> bool {
        match self {
            Number::Natural(n) => n.to_string() == word,
            Number::Negative(n) => n.to_string() == word,
            Number::Fraction(n) => n.to_string() == word,
        }
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Number::Natural(n) => visitor.visit_u64(n),
            Number::Negative(n) => visitor.visit_i64(n),
            Number::Fraction(n) => visitor.visit_f64(n),
        }
    }
}

macro_rules! forward_to {
    ($to:ident: $($from:ident)*) => {
        $(fn $from<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.$to(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Place<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Quoted(text) => visitor.visit_borrowed_str(text),
            // A visitor that accepts anything may need the spelling: `1.10` may be a version.
            Value::Plain(word) => match (word.as_str(), Number::read(word)) {
                ("true", _) => visitor.visit_bool(true),
                ("false", _) => visitor.visit_bool(false),
                (word, Some(number)) if number.is_written(word) => number.visit(visitor),
                (word, _) => visitor.visit_borrowed_str(word),
            },
            Value::List(items) => visitor.visit_seq(Items { above: self, left: items.iter().enumerate() }),
            Value::Map(entries) => self.map(entries, None, visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.plain() {
            Some("on" | "True" | "TRUE") => visitor.visit_bool(true),
            Some("off" | "False" | "FALSE") => visitor.visit_bool(false),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Plain(text) | Value::Quoted(text) => visitor.visit_borrowed_str(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => visitor.visit_seq(Items { above: self, left: [].iter().enumerate() }),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self.node.value {
            Value::Null => self.map(&[], None, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Null => self.map(&[], Some(fields), visitor),
            Value::Map(entries) => self.map(entries, Some(fields), visitor),
            // serde would accept a list for a struct, in the order of its fields.
            Value::List(_) => Err(Fault::invalid_type(Unexpected::Seq, &visitor)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.node.value {
            Value::Plain(word) | Value::Quoted(word) => visitor.visit_enum(word.as_str().into_deserializer()),
            Value::Map(entries) if entries.len() == 1 => {
                let entry = &entries[0];
                let inner = self.enter(&entry.node, || Segment::Key(entry.key.clone()));
                visitor.visit_enum(Variant(Some((inner, &entry.key))))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to! { deserialize_str: deserialize_string deserialize_char deserialize_identifier }
    forward_to! {
        number: deserialize_f32 deserialize_f64 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
    }
    forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit unit_struct tuple tuple_struct ignored_any
    }
}

impl<'a> IntoDeserializer<'a, Fault> for Place<'a> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

// === impl Entries ===

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'a>>(&mut self, seed: K) -> Result<Option<K::Value>, Fault> {
        let (above, fields) = (&self.above, self.fields);
        let own = |key: &str| key.starts_with("x-") && fields.is_some_and(|fields| !fields.contains(&key));
        let passed = |e: &Entry| own(&e.key) || above.is_skipped(|| Segment::Key(e.key.clone()));
        let rest = || self.left.by_ref().find(|e| e.key != KIND && !passed(e));
        self.next = self.kind.take().or_else(rest);
        let Some(entry) = self.next else { return Ok(None) };
        let key = StrDeserializer::<Fault>::new(&entry.key);
        let below = |fault: Fault| match fault.is_unknown_key() {
            true => fault, // the position is looked up by the key
            false => fault.below(Segment::Key(entry.key.clone())),
        };
        seed.deserialize(key).map(Some).map_err(below)
    }

    fn next_value_seed<V: DeserializeSeed<'a>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = self.next.take().ok_or_else(|| Fault::custom("a value was asked for before its key"))?;
        let segment = || Segment::Key(entry.key.clone());
        seed.deserialize(self.above.enter(&entry.node, segment)).map_err(|e| e.below(segment()))
    }
}

// === impl Items ===

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'a>>(&mut self, seed: T) -> Result<Option<T::Value>, Fault> {
        let above = &self.above;
        let Some((index, node)) = self.left.find(|(i, _)| !above.is_skipped(|| Segment::Index(*i))) else {
            return Ok(None);
        };
        let segment = || Segment::Index(index);
        seed.deserialize(above.enter(node, segment)).map(Some).map_err(|e| e.below(segment()))
    }
}

// === impl Variant ===

impl<'a> de::EnumAccess<'a> for Variant<'a> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'a>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let word = self.0.as_ref().map_or("", |(_, word)| word);
        let below = |e: Fault| e.below(Segment::Key(word.to_string()));
        Ok((seed.deserialize(StrDeserializer::<Fault>::new(word)).map_err(below)?, self))
    }
}

impl<'a> Variant<'a> {
    fn inner<T>(self, read: impl FnOnce(Place<'a>) -> Result<T, Fault>) -> Result<T, Fault> {
        let (inner, word) = self.0.ok_or_else(|| Fault::custom("a word with nothing behind it"))?;
        read(inner).map_err(|e| e.below(Segment::Key(word.to_string())))
    }
}

impl<'a> de::VariantAccess<'a> for Variant<'a> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        self.inner(<() as serde::Deserialize>::deserialize)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'a>>(self, seed: T) -> Result<T::Value, Fault> {
        self.inner(|place| seed.deserialize(place))
    }

    fn tuple_variant<V: Visitor<'a>>(self, _: usize, visitor: V) -> Result<V::Value, Fault> {
        self.inner(|place| place.deserialize_seq(visitor))
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.inner(|place| place.deserialize_struct("", fields, visitor))
    }
}
