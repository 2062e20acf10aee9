//! Kinds: implementations of a port that the settings choose by name.
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::{BoxError, rule::Problem};

/// An implementation of a port that the settings choose by `kind`, with settings of its own.
///
/// A program registers a kind by `builder.kind(…)`. `registry: { kind: table, path: /etc/hosts.table }` then
/// reads [`Config`](Kind::Config) from the keys beside `kind`, checks it, and makes the registry from it.
/// Unknown keys and invalid values are errors with their line, as for built-in kinds.
///
/// [`Made`](Kind::Made) decides the port: `Arc<dyn Registry>`, `Arc<dyn PickerFactory>`.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{BoxError, Kind, layer::balance::{Candidates, Picker, PickerFactory}};
///
/// /// Always picks the node with this number, or the last one.
/// #[derive(Clone)]
/// struct Fixed(usize);
///
/// impl Picker for Fixed {
///     fn pick(&self, candidates: &Candidates<'_>) -> usize {
///         self.0.min(candidates.nodes().len() - 1)
///     }
/// }
///
/// #[derive(Default, serde::Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct FixedConfig {
///     /// Counted from 0. Default 0.
///     node: usize,
/// }
///
/// struct FixedKind;
///
/// impl Kind for FixedKind {
///     type Config = FixedConfig;
///     type Made = Arc<dyn PickerFactory>;
///
///     fn name(&self) -> &str {
///         "fixed"
///     }
///     fn make(&self, config: &FixedConfig) -> Result<Arc<dyn PickerFactory>, BoxError> {
///         Ok(Arc::new(Fixed(config.node)))
///     }
/// }
/// ```
pub trait Kind: Send + Sync + 'static {
    /// The settings beside `kind`. With `deny_unknown_fields`, a misspelt key is an error.
    type Config: DeserializeOwned + Send + Sync + 'static;
    /// The type that it makes, which decides the port.
    type Made;

    /// The value of `kind` that chooses it.
    fn name(&self) -> &str;

    /// The JSON Schema of [`Config`](Kind::Config), draft 07: a part of what a program prints as the schema of its
    /// settings. Default `{}`: everything is allowed.
    fn schema(&self) -> serde_json::Value {
        serde_json::json!({})
    }

    /// Keys of the table that have new names: path and new name. The old one is read as the new one, with a warning; see
    /// [`Section::renamed`](crate::Section::renamed). Default: none.
    fn renamed(&self) -> &[(&str, &str)] {
        &[]
    }

    /// Reports problems of settings that could be read. Paths are relative to the table: `services.stock[0]`.
    /// Default: none.
    fn check(&self, config: &Self::Config) -> Vec<Problem> {
        let _ = config;
        Vec::new()
    }

    /// Makes an implementation. The settings have passed [`check`](Kind::check).
    ///
    /// # Errors
    /// The reason: the start fails, or the new settings are refused.
    fn make(&self, config: &Self::Config) -> Result<Self::Made, BoxError>;

    /// Makes a further implementation, whose settings stay as they are: [`change`](Kind::change) does not affect it. For
    /// a member of a composite registry, and for the registry of a single service. Default: [`make`](Kind::make).
    ///
    /// # Errors
    /// As for [`make`](Kind::make).
    fn make_fixed(&self, config: &Self::Config) -> Result<Self::Made, BoxError> {
        self.make(config)
    }

    /// Keys of the table whose changes take effect while the process runs, by [`change`](Kind::change). Other
    /// changes wait for a restart. Default: none. Only used for registries: other ports are made anew.
    fn live(&self) -> &[&str] {
        &[]
    }

    /// Applies changed settings to the existing implementation. The settings have passed
    /// [`check`](Kind::check).
    ///
    /// # Errors
    /// The reason: the former settings stay in force.
    fn change(&self, config: &Self::Config) -> Result<(), BoxError> {
        let _ = config;
        Ok(())
    }
}

/// A kind made of a name and a function: see [`from_fn`].
struct FnKind<C, F> {
    name: String,
    schema: serde_json::Value,
    make: F,
    config: PhantomData<fn() -> C>,
}

/// A kind with this name, whose implementations `make` makes.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{kind, layer::balance::{PickerFactory, RandomPicker}};
///
/// #[derive(Default, serde::Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct Nothing {}
///
/// let any = kind::from_fn("any", |_: &Nothing| Ok(Arc::new(RandomPicker) as Arc<dyn PickerFactory>));
/// ```
pub fn from_fn<C, M, F>(name: impl Into<String>, make: F) -> impl Kind<Config = C, Made = M>
where
    C: DeserializeOwned + Send + Sync + 'static,
    M: 'static,
    F: Fn(&C) -> Result<M, BoxError> + Send + Sync + 'static,
{
    FnKind { name: name.into(), schema: serde_json::json!({}), make, config: PhantomData }
}

/// The same, with the JSON Schema of its settings.
pub fn described<C, M, F>(
    name: impl Into<String>,
    schema: serde_json::Value,
    make: F,
) -> impl Kind<Config = C, Made = M>
where
    C: DeserializeOwned + Send + Sync + 'static,
    M: 'static,
    F: Fn(&C) -> Result<M, BoxError> + Send + Sync + 'static,
{
    FnKind { name: name.into(), schema, make, config: PhantomData }
}

// === impl FnKind ===

impl<C, M, F> Kind for FnKind<C, F>
where
    C: DeserializeOwned + Send + Sync + 'static,
    F: Fn(&C) -> Result<M, BoxError> + Send + Sync + 'static,
{
    type Config = C;
    type Made = M;

    fn name(&self) -> &str {
        &self.name
    }

    fn schema(&self) -> serde_json::Value {
        self.schema.clone()
    }

    fn make(&self, config: &C) -> Result<M, BoxError> {
        (self.make)(config)
    }
}
