//! How far the answers of registries are trusted: keys of the table `discovery`.
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{PositiveSpan, Ratio};

/// When removed instances are kept for a while: the table `discovery.hold`. A registry that has lost its data lists few
/// instances, or none, although they run.
///
/// An instance that was kept is removed once it cannot be connected to. A service that is deleted explicitly is removed
/// at once.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct HoldConfig {
    /// The share of a service's instances that one answer may remove. If it removes more, or all, they are kept. Default
    /// `50%`; at `100%` they are kept only if none is left, at `0%` each that is removed is kept.
    pub share: Ratio,
    /// How long they are kept while the registry answers. Default `60s`: longer than a registry takes to restart and its
    /// instances to register again. `0s` is refused; `hold: off` removes at once.
    pub time: PositiveSpan,
}

// === impl HoldConfig ===

impl HoldConfig {
    /// Whether an answer of `left` instances removes too many of those `before`.
    pub(super) fn is_loss(&self, before: usize, left: usize) -> bool {
        let lost = before.saturating_sub(left);
        lost > 0 && (left == 0 || lost as f64 > before as f64 * self.share.get())
    }

    /// The time for which instances are kept.
    pub(super) fn time(&self) -> Duration {
        self.time.get()
    }
}

impl Default for HoldConfig {
    fn default() -> Self {
        HoldConfig { share: Ratio::percent(50), time: PositiveSpan::from_millis(60_000) }
    }
}
