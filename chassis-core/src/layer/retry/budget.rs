//! The budget of retries: the load that they may add to a service.
use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::BudgetConfig;
use crate::{clock::Instant, striped::StripedCells};

/// Counts calls and retries of the last ten seconds. In any such period there are at most as many retries as
/// the share of the calls plus ten seconds of the minimum.
///
/// After Finagle's `RetryBudget`, with its ten rotating slots. Calls and retries are counted separately, so
/// that both settings are arguments and can change while the counts stay. Calls are read only when one fails,
/// so each thread counts them separately; retries are counted in one place, so that the limit holds for all
/// threads together.
#[derive(Debug)]
pub(crate) struct Budget {
    epoch: Instant,
    calls: StripedCells<Calls>,
    /// The current slot, counted from the epoch.
    head: AtomicU64,
    /// Retries in each slot, and their sum.
    retries: [AtomicU64; SLOTS],
    total: AtomicU64,
}

/// Calls in each slot, 32 bits; above them the number of the slot, counted from the epoch.
#[derive(Debug, Default)]
struct Calls([AtomicU64; SLOTS]);

const SLOTS: usize = 10;
const SLOT: Duration = Duration::from_secs(1);

/// With this factor, shares with up to four decimals of a number of calls are whole numbers.
const SCALE: u64 = 1_000_000;

// === impl Budget ===

impl Budget {
    /// Creates a budget without counts; its clock starts at `now`.
    pub(crate) fn new(now: Instant) -> Self {
        Budget {
            epoch: now,
            calls: StripedCells::new(),
            head: AtomicU64::new(0),
            retries: Default::default(),
            total: AtomicU64::new(0),
        }
    }

    /// Counts a call: its first attempt, not a retry.
    pub(crate) fn deposit(&self, now: Instant) {
        self.calls.cell().count(self.tick(now));
    }

    /// Whether a retry is allowed. If so, it is counted.
    pub(crate) fn withdraw(&self, now: Instant, config: &BudgetConfig) -> bool {
        let head = self.turn(now);
        let calls = self.calls(head);
        let granted = self.total.fetch_update(Relaxed, Relaxed, |retries| {
            (left(calls, retries, config) >= SCALE as i64).then(|| retries + 1)
        });
        if granted.is_ok() {
            self.retries[head as usize % SLOTS].fetch_add(1, Relaxed);
        }
        granted.is_ok()
    }

    /// The number of retries that are allowed now.
    pub(crate) fn balance(&self, now: Instant, config: &BudgetConfig) -> u32 {
        let calls = self.calls(self.turn(now));
        (left(calls, self.total.load(Relaxed), config) / SCALE as i64).max(0) as u32
    }

    /// Calls and retries of the last ten seconds.
    pub(crate) fn figures(&self, now: Instant) -> (u64, u64) {
        (self.calls(self.turn(now)), self.total.load(Relaxed))
    }

    fn tick(&self, now: Instant) -> u64 {
        now.nanos_since(self.epoch) / SLOT.as_nanos() as u64
    }

    /// The slot of `now`; before, removes the retries of expired slots.
    fn turn(&self, now: Instant) -> u64 {
        let tick = self.tick(now);
        let mut head = self.head.load(Relaxed);
        while head < tick {
            // The thread that advances the slot removes the expired retries: all of them after a long pause.
            match self.head.compare_exchange(head, tick, Relaxed, Relaxed) {
                Ok(_) => {
                    (head + 1..=tick.min(head + SLOTS as u64)).for_each(|slot| self.expire(slot));
                    head = tick;
                }
                Err(further) => head = further,
            }
        }
        head
    }

    fn expire(&self, slot: u64) {
        let counted = self.retries[slot as usize % SLOTS].swap(0, Relaxed);
        self.total.fetch_sub(counted, Relaxed);
    }

    /// The calls of the slots up to `head`.
    fn calls(&self, head: u64) -> u64 {
        self.calls.cells().map(|calls| calls.sum(head)).sum()
    }
}

// === impl Calls ===

impl Calls {
    fn count(&self, tick: u64) {
        let _ = self.0[tick as usize % SLOTS].fetch_update(Relaxed, Relaxed, |word| {
            // A thread with an older time counts in the existing slot.
            let current = word >> 32 >= tick;
            Some(if current { word + 1 } else { tick << 32 | 1 })
        });
    }

    fn sum(&self, head: u64) -> u64 {
        let words = self.0.iter().map(|word| word.load(Relaxed));
        words.filter(|word| (word >> 32) + SLOTS as u64 > head).map(|word| word & u64::from(u32::MAX)).sum()
    }
}

/// The remaining retries, in millionths.
fn left(calls: u64, retries: u64, config: &BudgetConfig) -> i64 {
    let share = (config.share.get() * SCALE as f64).round() as u64;
    let reserve = config.min.hertz() * (SLOT * SLOTS as u32).as_secs_f64() * SCALE as f64;
    // At most 2⁴⁰ · 10⁶ and 2³² · 10⁶: both fit into an i64; a larger reserve saturates.
    ((calls * share) as i64).saturating_add(reserve as i64).saturating_sub((retries * SCALE) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    const S: Duration = Duration::from_secs(1);

    fn config(share: &str, min: &str) -> BudgetConfig {
        BudgetConfig { share: share.parse().unwrap(), min: min.parse().unwrap() }
    }

    fn drain(budget: &Budget, now: Instant, config: &BudgetConfig) -> u32 {
        (0..10_000).take_while(|_| budget.withdraw(now, config)).count() as u32
    }

    #[track_caller]
    fn check(calls: u32, config: BudgetConfig, expected: u32) {
        let now = Instant::now();
        let budget = Budget::new(now);
        (0..calls).for_each(|_| budget.deposit(now));
        assert_eq!(budget.balance(now, &config), expected);
        assert_eq!(drain(&budget, now, &config), expected);
    }

    #[test]
    fn a_share_of_the_calls_and_a_minimum() {
        check(0, config("20%", "10/s"), 100);
        check(1_000, config("20%", "10/s"), 300);
        check(1_000, config("0%", "10/s"), 100);
        check(1_000, config("20%", "0/s"), 200);
        check(1_000, config("60%", "0/s"), 600);
        check(1_000, config("75%", "0/s"), 750);
        check(1_000, config("100%", "0/s"), 1_000);
        check(1_000, config("0%", "0/s"), 0);
        check(3, config("33.3333%", "0/s"), 0);
        check(0, config("0%", "6/m"), 1);
        check(0, config("0%", "1/h"), 0); // not one in ten seconds
    }

    #[test]
    fn slides() {
        let (start, config) = (Instant::now(), config("50%", "1/s"));
        let budget = Budget::new(start);
        (0..100).for_each(|_| budget.deposit(start));
        assert_eq!(drain(&budget, start + 5 * S, &config), 60);
        assert_eq!(drain(&budget, start + 9 * S, &config), 0);
        // The calls have expired, their retries have not.
        assert_eq!(drain(&budget, start + 10 * S, &config), 0);
        assert_eq!(drain(&budget, start + 15 * S, &config), 10);
        assert_eq!(drain(&budget, start + 1_000 * S, &config), 10);
        assert_eq!(drain(&budget, start, &config), 0, "an earlier now changes nothing");
    }

    #[test]
    fn a_change_of_settings_keeps_the_counts() {
        let now = Instant::now();
        let budget = Budget::new(now);
        (0..100).for_each(|_| budget.deposit(now));
        assert_eq!(drain(&budget, now, &config("20%", "0/s")), 20);
        assert_eq!(drain(&budget, now, &config("10%", "0/s")), 0);
        assert_eq!(drain(&budget, now, &config("50%", "0/s")), 30);
    }

    /// A backend that fails every call, with at most two attempts per call.
    #[test]
    fn a_storm_is_bounded() {
        let (start, config) = (Instant::now(), BudgetConfig::default());
        let budget = Budget::new(start);
        let calls = 500 * 60;
        let retries = (0..calls)
            .filter(|i| {
                let now = start + S / 500 * *i;
                budget.deposit(now);
                budget.withdraw(now, &config)
            })
            .count();
        let ratio = (f64::from(calls) + retries as f64) / f64::from(calls);
        assert!((1.15..=1.25).contains(&ratio), "{ratio}");
    }

    /// In any ten slots retries ≤ reserve + share · calls, in any order of events.
    #[test]
    fn random_schedules_stay_within() {
        for seed in 0..200 {
            let (random, start) = (Random::seeded(seed), Instant::now());
            let config =
                config(["0%", "20%", "70%"][random.below(3)], ["0/s", "1/s", "30/m"][random.below(3)]);
            let reserve = config.min.hertz() * 10.0;
            let budget = Budget::new(start);
            let (mut now, mut events) = (start, Vec::new());
            for _ in 0..500 {
                let second = (now - start).as_secs();
                if random.below(2) == 0 {
                    budget.deposit(now);
                    events.push((second, false));
                } else if budget.withdraw(now, &config) {
                    events.push((second, true));
                } else {
                    let (calls, retries) = count(&events, second);
                    assert!(
                        reserve + config.share.get() * calls < retries + 1.0,
                        "seed {seed}: refused {retries} retries of {calls} calls"
                    );
                }
                let (calls, retries) = count(&events, second);
                // An expired call removes its share, but not the retry that it allowed.
                if matches!(events.last(), Some((at, true)) if *at == second) {
                    assert!(retries <= reserve + config.share.get() * calls + 1e-6, "seed {seed}");
                }
                now += random.between(Duration::ZERO, S / [1, 20, 100][random.below(3)]);
                if random.below(100) == 0 {
                    now += 25 * S;
                }
            }
        }
    }

    /// Calls and retries in the ten slots up to `second`.
    fn count(events: &[(u64, bool)], second: u64) -> (f64, f64) {
        let inside = events.iter().filter(|(at, _)| at + 10 > second);
        inside.fold((0.0, 0.0), |(calls, retries), (_, retry)| match retry {
            true => (calls, retries + 1.0),
            false => (calls + 1.0, retries),
        })
    }

    #[test]
    fn calls_of_all_threads_count() {
        let (start, config) = (Instant::now(), config("50%", "0/s"));
        let budget = Budget::new(start);
        std::thread::scope(|scope| {
            for i in 0..20 {
                let budget = &budget;
                scope.spawn(move || (0..100).for_each(|_| budget.deposit(start + S * (i % 2))));
            }
        });
        assert_eq!(budget.balance(start + S, &config), 1_000);
        assert_eq!(budget.balance(start + 10 * S, &config), 500);
        assert_eq!(budget.balance(start + 11 * S, &config), 0);
    }

    #[test]
    fn threads_get_no_more_than_there_is() {
        let (now, config) = (Instant::now(), config("20%", "0/s"));
        let budget = Budget::new(now);
        let granted: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..10_000)
                            .filter(|_| {
                                budget.deposit(now);
                                budget.withdraw(now, &config)
                            })
                            .count() as u32
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted + budget.balance(now, &config), 8_000);
    }
}
