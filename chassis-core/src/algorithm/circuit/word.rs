//! A circuit's state in 64 bits, so that a transition is one compare-and-swap.
use std::time::Duration;

use super::{CircuitConfig, Refused, State, Transition};
use crate::random::mix;

/// The state that changes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word {
    /// Counts transitions and rounds of probes; wraps after a million.
    pub(super) era: u32,
    pub(super) phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed { consecutive: u32 },
    Open { since: u64 },
    HalfOpen { probing: u32, passed: u32, since: u64 },
}

/// After this time an undecided round of probes gives way to another, however many are under way.
pub(super) const LONGEST_ROUND: Duration = Duration::from_secs(60);
/// No round gives way before this time, at any `open`.
pub(super) const SHORTEST_ROUND: Duration = Duration::from_secs(1);
/// The most rounds under way at which another one may start after `open`: enough to find the few calls with an
/// outcome among many without.
pub(super) const MOST_ROUNDS: u32 = 10;

/// The most probes: they and a round's number fit into ten bits of a [`Word`].
pub(super) const MOST_PROBES: u32 = 1_000;

pub(super) const ERA_BITS: u32 = 20;
/// Bits for the time of an opening in milliseconds: 139 years.
const SINCE_BITS: u32 = 42;
/// Bits for the time of a half-opening in milliseconds >> 6: 8 years.
const COARSE_BITS: u32 = 22;

/// The era of calls that a forced circuit admits although it is not closed: their outcomes are ignored.
pub(super) const UNHEARD: u32 = mask(ERA_BITS + 1) as u32;

// === impl Word ===

impl Word {
    /// The word after one more call was admitted to a circuit that is not forced; `seed` is the circuit's, and
    /// `out` is the number of its probes under way.
    pub(super) fn admitting(
        self,
        millis: u64,
        config: &CircuitConfig,
        seed: u32,
        out: u32,
    ) -> Result<Word, Refused> {
        let half_open = |probing, passed, since| Phase::HalfOpen { probing, passed, since };
        match self.phase {
            Phase::Closed { .. } => Ok(self),
            Phase::Open { since } => {
                let open = self.jittered(config.open_millis(), seed);
                match since.saturating_add(open).checked_sub(millis) {
                    None | Some(0) => Ok(self.next(half_open(1, 0, millis))),
                    Some(left) => {
                        let retry_after = Some(Duration::from_millis(left));
                        Err(Refused { state: State::Open, retry_after })
                    }
                }
            }
            // The setting `probes` was lowered meanwhile.
            Phase::HalfOpen { passed, .. } if passed >= config.probes() => Ok(self.closed()),
            Phase::HalfOpen { probing, passed, since } if probing + passed < config.probes() => {
                // A round begins with its first probe.
                let since = if probing == 0 { millis } else { since };
                Ok(Word { phase: half_open(probing + 1, passed, since), ..self })
            }
            Phase::HalfOpen { passed, since, .. }
                if millis.saturating_sub(since) >= config.round_millis(passed, out) =>
            {
                Ok(self.next(half_open(1, passed, millis)))
            }
            Phase::HalfOpen { .. } => Err(Refused { state: State::HalfOpen, retry_after: None }),
        }
    }

    /// `open`, or up to a tenth less: constant within an era, different in the next.
    fn jittered(self, open: u64, seed: u32) -> u64 {
        if seed == 0 {
            return open;
        }
        let drawn = mix(u64::from(seed) << 32 | u64::from(self.era));
        open - ((u128::from(drawn) * u128::from(open / 10)) >> 64) as u64
    }

    pub(super) fn opened(self, millis: u64) -> Word {
        self.next(Phase::Open { since: millis })
    }

    pub(super) fn closed(self) -> Word {
        self.next(Phase::Closed { consecutive: 0 })
    }

    fn next(self, phase: Phase) -> Word {
        Word { era: (self.era + 1) & mask(ERA_BITS) as u32, phase }
    }

    /// The number of transitions and rounds since `era`.
    pub(super) fn eras_since(self, era: u32) -> u32 {
        self.era.wrapping_sub(era) & mask(ERA_BITS) as u32
    }

    pub(super) fn is_closed(self) -> bool {
        matches!(self.phase, Phase::Closed { .. })
    }

    pub(super) fn moved_to(self, next: Word) -> Option<Transition> {
        let (from, to) = (self.phase.state(), next.phase.state());
        (from != to).then_some(Transition { from, to })
    }

    /// Two bits for the phase, twenty for the era, the rest for the phase's data.
    pub(super) fn pack(self) -> u64 {
        let (kind, rest) = match self.phase {
            Phase::Closed { consecutive } => (0, u64::from(consecutive)),
            Phase::Open { since } => (1, since.min(mask(SINCE_BITS))),
            Phase::HalfOpen { probing, passed, since } => {
                let since = (since >> 6).min(mask(COARSE_BITS));
                (2, u64::from(probing) << 32 | u64::from(passed) << 22 | since)
            }
        };
        kind << 62 | u64::from(self.era) << SINCE_BITS | rest
    }

    pub(super) fn unpack(word: u64) -> Self {
        let phase = match word >> 62 {
            0 => Phase::Closed { consecutive: word as u32 },
            1 => Phase::Open { since: word & mask(SINCE_BITS) },
            _ => Phase::HalfOpen {
                probing: (word >> 32 & mask(10)) as u32,
                passed: (word >> 22 & mask(10)) as u32,
                since: (word & mask(COARSE_BITS)) << 6,
            },
        };
        Word { era: (word >> SINCE_BITS & mask(ERA_BITS)) as u32, phase }
    }
}

pub(super) const fn mask(bits: u32) -> u64 {
    (1 << bits) - 1
}

// === impl Phase ===

impl Phase {
    pub(super) fn state(self) -> State {
        match self {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { .. } => State::Open,
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_what_they_are_given() {
        for phase in [
            Phase::Closed { consecutive: u32::MAX },
            Phase::Open { since: mask(SINCE_BITS) },
            Phase::HalfOpen { probing: 1_000, passed: 999, since: 64 * 12_345 },
        ] {
            let word = Word { era: 0xF_0F0F, phase };
            assert_eq!(Word::unpack(word.pack()), word);
        }
        let last = Word { era: mask(ERA_BITS) as u32, phase: Phase::Closed { consecutive: 0 } };
        assert_eq!(last.closed().era, 0);
    }
}
