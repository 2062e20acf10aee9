//! The token of an admission, and its form as one number.
use super::word::{ERA_BITS, mask};

/// Identifies an admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(super) era: u32,
    pub(super) probe: bool,
    /// The call was a probe, and its answer has a good head.
    pub(super) answered: bool,
    /// The time of the admission, in milliseconds on the circuit's clock.
    pub(super) at: u64,
}

/// The lowest bits of a token: whether it is a probe's, and whether the probe has an answer.
const TOKEN_FLAGS: u32 = 2;

/// The first bit of a token above its era.
const TOKEN_ERA_END: u32 = TOKEN_FLAGS + ERA_BITS + 1;

/// The latest admission time that a token can hold: after 69 years. One less than fits, so that no token
/// consists of ones only.
pub(super) const LATEST: u64 = mask(64 - TOKEN_ERA_END) - 1;

// === impl Token ===

impl Token {
    /// As one number, for places that only hold a number.
    pub(crate) fn to_bits(self) -> u64 {
        let flags = u64::from(self.answered) << 1 | u64::from(self.probe);
        self.at.min(LATEST) << TOKEN_ERA_END | u64::from(self.era) << TOKEN_FLAGS | flags
    }

    /// The inverse of [`Token::to_bits`].
    pub(crate) fn from_bits(bits: u64) -> Self {
        let era = (bits >> TOKEN_FLAGS & mask(ERA_BITS + 1)) as u32;
        Token { era, probe: bits & 1 == 1, answered: bits & 2 == 2, at: bits >> TOKEN_ERA_END }
    }

    /// Whether the call was admitted as a probe.
    pub(crate) fn is_probe(self) -> bool {
        self.probe
    }
}
