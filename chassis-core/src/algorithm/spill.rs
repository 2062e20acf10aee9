//! How the calls are divided among priorities, from the health of each.

/// The sum of all shares.
pub(crate) const WHOLE: u32 = 10_000;
/// A priority takes all of its calls until less than 1 / 1.4 of it is healthy, about 71 %: Envoy's overprovisioning
/// factor, in tenths.
const OVERPROVISIONING: u128 = 14;

/// The healthy part of one priority, and all of it, in the same unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) healthy: u64,
    pub(crate) all: u64,
}

/// The division of the calls.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spill {
    /// The sum of the shares of each priority and of those before it; the last one that gets calls has [`WHOLE`].
    pub(crate) bounds: Vec<u32>,
    /// All priorities together are too unhealthy to take all calls.
    pub(crate) is_short: bool,
}

/// Divides the calls among priorities, the preferred one first.
///
/// A priority takes up to 1.4 times its healthy part; the next one takes the rest. If all together take less than
/// all calls, they are divided in proportion; if none is healthy, the first one gets them.
///
/// After Envoy's priority levels.
pub(crate) fn spill(priorities: &[Health]) -> Spill {
    let health = |it: &Health| {
        let able = u128::from(it.healthy) * OVERPROVISIONING * u128::from(WHOLE);
        let able = able / (u128::from(it.all) * 10).max(1);
        able.min(u128::from(WHOLE)) as u64
    };
    let total: u64 = priorities.iter().map(health).sum();
    let is_short = total < u64::from(WHOLE);
    if total == 0 {
        return Spill { bounds: vec![WHOLE; priorities.len()], is_short };
    }
    let divisor = total.min(u64::from(WHOLE));
    let mut taken = 0;
    let mut bounds: Vec<u32> = priorities
        .iter()
        .map(|it| {
            let share = (health(it) * u64::from(WHOLE) / divisor) as u32;
            taken = (taken + share).min(WHOLE);
            taken
        })
        .collect();
    // What rounding has left belongs to the last priority that gets calls.
    bounds.iter_mut().filter(|bound| **bound == taken).for_each(|bound| *bound = WHOLE);
    Spill { bounds, is_short }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The shares in percent of priorities of which these percentages are healthy; `!`: they are too few.
    #[track_caller]
    fn check(healthy: &[u64], expected: &str) {
        let priorities: Vec<_> =
            healthy.iter().map(|healthy| Health { healthy: *healthy, all: 100 }).collect();
        let Spill { bounds, is_short } = spill(&priorities);
        let shares = bounds.iter().scan(0, |before, bound| {
            let share = *bound - std::mem::replace(before, *bound);
            Some(format!("{}", f64::from(share) / 100.0))
        });
        let shares: Vec<_> = shares.collect();
        assert_eq!(shares.join(" ") + if is_short { " !" } else { "" }, expected, "{healthy:?}");
    }

    /// The tables of Envoy's documentation.
    #[test]
    fn calls_are_divided_as_envoy_divides_them() {
        check(&[100, 100], "100 0");
        check(&[72, 100], "100 0");
        check(&[71, 100], "99.4 0.6");
        check(&[50, 100], "70 30");
        check(&[25, 100], "35 65");
        check(&[0, 100], "0 100");
        check(&[25, 25], "50 50 !");
        check(&[5, 65], "7.14 92.86 !");
        check(&[50, 60, 100], "70 30 0");
        check(&[20, 20, 10], "40 40 20 !");
        check(&[0, 0, 100], "0 0 100");
        check(&[0, 0], "100 0 !");
        check(&[0, 20, 0], "0 100 0 !");
        check(&[100], "100");
        check(&[10], "100 !");
    }

    #[test]
    fn any_sums_of_weights_are_divided() {
        let most = u64::from(u32::MAX) * 1_000_000;
        let half = Health { healthy: most / 2, all: most };
        assert_eq!(spill(&[half, half]).bounds, [7_000, WHOLE]);
        let none = Health::default();
        assert_eq!(spill(&[none, half]).bounds, [0, WHOLE]);
        assert_eq!(spill(&[none, none]).bounds, [WHOLE, WHOLE]);
        assert_eq!(spill(&[]).bounds, [0; 0]);
    }
}
