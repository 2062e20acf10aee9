//! A build without the servers of registries.
use super::{Figures, Pace};
use crate::Result;

/// No registry can be chosen.
pub(super) const ALL: [Kind; 0] = [];

#[derive(Clone)]
pub(super) enum Kind {}

/// There is no registry of this name.
pub(super) fn known(name: &str) -> Result<Kind, String> {
    Err(format!("there is no `{name}` in a build without the cargo feature `registries`"))
}

/// Reports that the experiment is not run.
pub(super) async fn run(experiment: &'static str, _: Pace, _: &[Kind]) -> Result<Vec<Figures>> {
    eprintln!("{experiment}: not run: this build is without the cargo feature `registries`");
    Ok(Vec::new())
}
