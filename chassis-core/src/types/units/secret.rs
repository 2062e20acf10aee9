//! A text that nothing prints.
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A text of the settings that nothing prints: `Debug`, `Display` and serialization show `***`.
///
/// ```
/// use chassis_core::units::Secret;
///
/// #[derive(Debug, serde::Deserialize)]
/// struct Database { user: String, login: Secret }
///
/// let database: Database = serde_json::from_str(r#"{ "user": "shop", "login": "hunter2" }"#).unwrap();
/// assert_eq!(format!("{database:?}"), r#"Database { user: "shop", login: *** }"#);
/// assert_eq!(database.login.expose(), "hunter2");
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

/// What is shown in its place.
const SHOWN: &str = "***";

// === impl Secret ===

impl Secret {
    /// A secret of this text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself: hand it to what needs it, and print it nowhere.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Secret)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(SHOWN)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}
