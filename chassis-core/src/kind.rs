//! Kinds: implementations of a port that the settings choose by name.
use std::marker::PhantomData;

use serde::de::DeserializeOwned;

use crate::{BoxError, rule::Problem};

/// An implementation of a port that the settings choose by `kind`, with settings of its own.
///
/// A program registers a kind by `builder.kind(…)`. `registry: { kind: table, path: /etc/hosts.table }` then reads
/// [`Config`](Kind::Config) from what stands beside `kind`, checks it, and makes the registry from it. Unknown keys
/// and values that can't be read are errors with their line, as for the kinds that are built in.
///
/// [`Made`](Kind::Made) says which port it is: `Arc<dyn Registry>`, `Arc<dyn Picker>`.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{BoxError, Kind, layer::balance::{Candidates, Picker}};
///
/// /// Always the node of this number, where there are so many.
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
///     type Made = Arc<dyn Picker>;
///
///     fn name(&self) -> &str {
///         "fixed"
///     }
///     fn make(&self, config: &FixedConfig) -> Result<Arc<dyn Picker>, BoxError> {
///         Ok(Arc::new(Fixed(config.node)))
///     }
/// }
/// ```
pub trait Kind: Send + Sync + 'static {
    /// What people write beside `kind`. With `deny_unknown_fields`, a misspelt key is an error.
    type Config: DeserializeOwned + Send + Sync + 'static;
    /// What it makes: the port it implements.
    type Made;

    /// The word that `kind` takes.
    fn name(&self) -> &str;

    /// What is wrong with settings that could be read. Paths are relative to the table: `services.stock[0]`.
    /// Default: nothing.
    fn check(&self, config: &Self::Config) -> Vec<Problem> {
        let _ = config;
        Vec::new()
    }

    /// Makes one. The settings have passed [`check`](Kind::check).
    ///
    /// # Errors
    /// Why it can't be had: the start fails, or the new settings are refused.
    fn make(&self, config: &Self::Config) -> Result<Self::Made, BoxError>;

    /// Keys of the table whose changes take effect while the process runs, by [`change`](Kind::change). The others
    /// wait for a restart. Default: none. It is asked of registries only: other ports are made anew.
    fn live(&self) -> &[&str] {
        &[]
    }

    /// Puts changed settings in force in the one that was made. The settings have passed [`check`](Kind::check).
    ///
    /// # Errors
    /// Why they can't be used: what was in force stays.
    fn change(&self, config: &Self::Config) -> Result<(), BoxError> {
        let _ = config;
        Ok(())
    }
}

/// A kind that needs a name and a function, and nothing else: see [`from_fn`].
struct FnKind<C, F> {
    name: String,
    make: F,
    config: PhantomData<fn() -> C>,
}

/// A kind of this name, made by `make`.
///
/// ```
/// use std::sync::Arc;
///
/// use chassis_core::{kind, layer::balance::{Picker, RandomPicker}};
///
/// #[derive(Default, serde::Deserialize)]
/// #[serde(default, deny_unknown_fields)]
/// struct Nothing {}
///
/// let any = kind::from_fn("any", |_: &Nothing| Ok(Arc::new(RandomPicker) as Arc<dyn Picker>));
/// ```
pub fn from_fn<C, M, F>(name: impl Into<String>, make: F) -> impl Kind<Config = C, Made = M>
where
    C: DeserializeOwned + Send + Sync + 'static,
    M: 'static,
    F: Fn(&C) -> Result<M, BoxError> + Send + Sync + 'static,
{
    FnKind { name: name.into(), make, config: PhantomData }
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

    fn make(&self, config: &C) -> Result<M, BoxError> {
        (self.make)(config)
    }
}
