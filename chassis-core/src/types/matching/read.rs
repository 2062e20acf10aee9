//! Reads values that are a text or a larger structure.
use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, value::MapAccessDeserializer, value::SeqAccessDeserializer},
};

/// A text (numbers and booleans are taken as written), or a map from which a `T` is read.
pub(super) fn text_or_map<'de, D, T, R>(
    from: D,
    expecting: &'static str,
    text: impl FnOnce(String) -> R,
    map: impl FnOnce(T) -> R,
) -> Result<R, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Visitor<T, F, G>(&'static str, F, G, PhantomData<T>);

    impl<'de, T, R, F, G> de::Visitor<'de> for Visitor<T, F, G>
    where
        T: Deserialize<'de>,
        F: FnOnce(String) -> R,
        G: FnOnce(T) -> R,
    {
        type Value = R;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<R, E> {
            Ok(self.1(text.to_owned()))
        }
        fn visit_bool<E: de::Error>(self, value: bool) -> Result<R, E> {
            Ok(self.1(value.to_string()))
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<R, E> {
            Ok(self.1(value.to_string()))
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<R, E> {
            Ok(self.1(value.to_string()))
        }
        fn visit_f64<E: de::Error>(self, value: f64) -> Result<R, E> {
            Ok(self.1(value.to_string()))
        }
        fn visit_map<A: de::MapAccess<'de>>(self, mut entries: A) -> Result<R, A::Error> {
            let read = T::deserialize(MapAccessDeserializer::new(&mut entries))?;
            // An enum reads one entry and ignores the rest.
            match entries.next_key::<String>()? {
                None => Ok(self.2(read)),
                Some(key) => {
                    entries.next_value::<IgnoredAny>()?;
                    Err(de::Error::custom(format!("`{key}` is one too many here; write one, or use `all`")))
                }
            }
        }
    }
    from.deserialize_any(Visitor(expecting, text, map, PhantomData))
}

/// A text, or a list of texts.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    struct Visitor;

    impl<'de> de::Visitor<'de> for Visitor {
        type Value = Vec<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a text, or a list of texts")
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![text.to_owned()])
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }
    from.deserialize_any(Visitor)
}
