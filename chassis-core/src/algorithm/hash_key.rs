//! A key for pickers that hash.
use std::num::NonZeroU32;

use crate::random::mix;

/// A key for pickers that hash: calls with the same key go to the same node while it is available.
///
/// It is 32 bits of a hash, so an optional one takes four bytes of a call. The hash is FNV-1a of 64 bits, whose bits are
/// mixed by the function of SplitMix64; it has the same value in every process and on every machine. Not for secrets.
///
/// ```
/// use chassis_core::HashKey;
///
/// assert_eq!(HashKey::of("user-1").get(), 0xc499_b5f8);
/// assert_ne!(HashKey::of("user-1"), HashKey::of("user-2"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HashKey(NonZeroU32);

/// The offset basis and the prime of FNV-1a with 64 bits.
const OFFSET: u64 = 0xCBF2_9CE4_8422_2325;
const PRIME: u64 = 0x0100_0000_01B3;

// === impl HashKey ===

impl HashKey {
    /// The key of a name, an id or an address.
    pub fn of(value: impl AsRef<[u8]>) -> Self {
        let hash =
            value.as_ref().iter().fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
        // The upper half; 0 becomes 1.
        HashKey(NonZeroU32::new((mix(hash) >> 32) as u32).unwrap_or(NonZeroU32::MIN))
    }

    /// The hash; never 0.
    pub fn get(self) -> u32 {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processes of other versions must agree about them.
    #[test]
    fn keys_are_the_same_everywhere() {
        let keys = ["", "ada", "user-1", "user-2"].map(|value| HashKey::of(value).get());
        assert_eq!(keys, [0xf52a_15e9, 0x7d3c_4ad3, 0xc499_b5f8, 0x4fb3_8f41]);
        assert_eq!((size_of::<Option<HashKey>>(), HashKey::of("ada")), (4, HashKey::of(b"ada")));
    }

    /// Also the keys of values that are counted up.
    #[test]
    fn keys_are_spread_evenly() {
        let mut counts = [0usize; 64];
        for i in 0..64_000 {
            counts[(HashKey::of(format!("user-{i}")).get() >> 26) as usize] += 1;
        }
        assert!(counts.iter().all(|count| count.abs_diff(1_000) < 160), "{counts:?}");
    }
}
