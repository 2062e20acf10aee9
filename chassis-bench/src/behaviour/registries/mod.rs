//! Experiments with the real servers of registries and config centers: they are away, and services change meanwhile.
mod bad_settings;
mod calls;
mod change;
mod cold_start;
mod outage;
mod rolling;
mod server;
mod spread;

use self::server::{Kind, Server};
use super::{Figures, Pace};
use crate::Result;

/// The registries that can be chosen.
pub(super) const ALL: [Kind; 4] = Kind::ALL;

/// The registry of this name.
pub(super) fn known(name: &str) -> Result<Kind, String> {
    let found = ALL.into_iter().find(|kind| kind.name() == name);
    found.ok_or_else(|| format!("there is no `{name}`; there are etcd, consul, ttl and dns"))
}

/// Runs an experiment over each of these registries. One whose server is not installed is left out, with a message.
pub(super) async fn run(experiment: &'static str, pace: Pace, over: &[Kind]) -> Result<Vec<Figures>> {
    let mut all = Vec::new();
    for kind in over {
        let figures = match experiment {
            "outage" => outage::run(*kind, pace).await,
            "rolling" => rolling::run(*kind, pace).await,
            "cold-start" => cold_start::run(*kind, pace).await,
            "change" => change::run(*kind, pace).await,
            "bad-settings" => bad_settings::run(*kind, pace).await,
            _ => spread::run(*kind, pace).await,
        };
        all.extend(figures.map_err(|error| format!("{}: {error}", kind.name()))?);
    }
    Ok(all)
}

/// Starts the server of a registry; `None` if it is not installed, which is reported.
async fn start(experiment: &str, kind: Kind) -> Result<Option<Server>> {
    match kind.start().await? {
        Ok(server) => Ok(Some(server)),
        Err(why) => {
            eprintln!("{experiment} over {}: not run: {}", kind.name(), why.0);
            Ok(None)
        }
    }
}
