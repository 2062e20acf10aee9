//! Headers that are carried on along a chain of hops.
use chassis_core::reexports::http::HeaderName;
use serde::{Deserialize, Deserializer, de};

/// The `propagate` list: headers of an incoming call that are copied to the calls its handler makes. Default
/// none; trace headers and deadlines are always carried on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct Propagate(
    #[serde(deserialize_with = "names")]
    #[cfg_attr(feature = "cli", schemars(with = "Vec<String>"))]
    pub Vec<HeaderName>,
);

/// Headers that belong to one hop, or are written anew for every call.
const OF_ONE_HOP: [&str; 9] = [
    "connection",
    "content-length",
    "content-type",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// One name.
struct Name(HeaderName);

// === impl Propagate ===

fn names<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<HeaderName>, D::Error> {
    Ok(Vec::<Name>::deserialize(from)?.into_iter().map(|name| name.0).collect())
}

// === impl Name ===

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let name: HeaderName =
            text.parse().map_err(|_| de::Error::custom(format!("`{text}` can't be the name of a header")))?;
        match OF_ONE_HOP.contains(&name.as_str()) || name.as_str().starts_with("grpc-") {
            true => Err(de::Error::custom(format!("`{text}` is about one hop and can't be carried on"))),
            false => Ok(Name(name)),
        }
    }
}
