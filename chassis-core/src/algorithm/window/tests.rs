use super::*;

const TEN: Duration = Duration::from_secs(10);

/// Counts one success at each of `at`, in seconds, then compares the sum at `now`.
#[track_caller]
fn check(at: &[u64], now: u64, length: Duration, expected: u32) {
    let window = Window::default();
    at.iter().for_each(|s| window.add(false, s * 1000, s * 1000, TEN));
    assert_eq!(window.tally(now * 1000, length, UnderWay::All).calls, expected);
}

#[test]
fn slides() {
    check(&[], 5, TEN, 0);
    check(&[0, 1, 1, 9], 9, TEN, 4);
    check(&[0, 1, 1, 9], 10, TEN, 3);
    check(&[0, 1, 1, 9], 11, TEN, 1);
    check(&[0, 1, 1, 9], 19, TEN, 0);
    check(&[0, 10, 20], 20, TEN, 1);
    check(&[50], 1_000_000, TEN, 0);
}

#[test]
fn another_length_looks_at_the_same_counts() {
    check(&[0, 3, 6, 9], 9, Duration::from_secs(4), 2);
    check(&[0, 3, 6, 9], 12, Duration::from_secs(30), 4);
}

#[test]
fn a_longer_length_goes_on_with_what_is_there() {
    let window = Window::default();
    (0..10).for_each(|s| window.add(true, s * 1000, s * 1000, TEN));
    (10..12).for_each(|s| window.add(false, s * 1000, s * 1000, 3 * TEN));
    let tally = window.tally(12_000, 3 * TEN, UnderWay::All);
    assert!(tally.failures >= 9 && tally.calls - tally.failures == 2, "{tally:?}");
}

#[test]
fn counts_failures_apart() {
    let window = Window::default();
    (0..30).for_each(|i| window.add(i % 3 == 0, i, i, TEN));
    assert_eq!(window.tally(30, TEN, UnderWay::All), Tally { calls: 30, failures: 10, under_way: 0 });
    window.clear();
    assert_eq!(window.tally(30, TEN, UnderWay::All), Tally::default());
}

#[test]
fn a_late_call_counts_where_time_is() {
    let window = Window::default();
    window.add(true, 10_500, 10_500, TEN);
    window.add(true, 400, 400, TEN);
    assert_eq!(window.tally(10_500, TEN, UnderWay::All), Tally { calls: 2, failures: 2, under_way: 0 });
}

#[test]
fn all_threads_count_into_one_window() {
    let window = Window::default();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| (0..1_000).for_each(|i| window.add(i % 4 == 0, i, i, TEN)));
        }
    });
    assert_eq!(
        window.tally(1_000, TEN, UnderWay::All),
        Tally { calls: 20_000, failures: 5_000, under_way: 0 }
    );
    window.clear();
    assert_eq!(window.tally(1_000, TEN, UnderWay::All), Tally::default());
}

#[test]
fn large_counts_keep_their_ratio() {
    let window = Window::default();
    (0..200_000).for_each(|i| window.add(i % 4 == 0, 5, 5, TEN));
    let Tally { calls, failures, .. } = window.tally(5, TEN, UnderWay::All);
    assert!(calls > 30_000);
    assert!((f64::from(failures) / f64::from(calls) - 0.25).abs() < 0.001);
}

/// Starts one call at each of `started`, in milliseconds, and cancels those of `over`; compares the calls
/// under way at `now`.
#[track_caller]
fn check_under_way(started: &[u64], over: &[u64], now: u64, which: UnderWay, expected: u32) {
    let window = Window::default();
    started.iter().for_each(|at| window.start(*at, TEN));
    over.iter().for_each(|at| window.cancel(*at, TEN));
    let tally = window.tally(now, TEN, which);
    assert_eq!(tally, Tally { calls: 0, failures: 0, under_way: expected });
}

#[test]
fn counts_what_is_under_way() {
    use UnderWay::{All, SinceBefore};
    check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, All, 4);
    check_under_way(&[0, 1, 1_500, 9_000], &[1, 1_500], 9_000, All, 2);
    // They leave the window by their start, and their ends with them.
    check_under_way(&[0, 1, 1_500, 9_000], &[1], 10_500, All, 2);
    check_under_way(&[0, 10_000], &[0], 10_000, All, 1);
    check_under_way(&[10_000], &[0], 10_000, All, 1);
    // Calls that took less time than the failed call.
    check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(8_999), 3);
    check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(9_000), 4);
    check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(1_600), 2);
    check_under_way(&[0, 1, 1_500, 9_000], &[], 9_000, SinceBefore(900), 0);
}

#[test]
fn counts_what_is_under_way_after_weeks() {
    for day in [0, 10, 30, 49, 51, 100] {
        let (window, begin) = (Window::default(), day * u64::from(DAY));
        for day in [0, 26, 27] {
            let at = begin + day * u64::from(DAY);
            (0..100).for_each(|i| window.start(at + i, TEN));
            (0..90).for_each(|i| window.add(false, at + i, at + 100, TEN));
            assert_eq!(window.tally(at + 100, TEN, UnderWay::All).under_way, 10, "{at}");
        }
    }
}

#[test]
fn a_call_that_ended_is_not_under_way() {
    let window = Window::default();
    for i in 0..1_000 {
        window.start(i, TEN);
        window.add(i % 2 == 0, i, i + 3_000, TEN);
    }
    assert_eq!(window.tally(4_000, TEN, UnderWay::All), Tally { calls: 1_000, failures: 500, under_way: 0 });
}

#[test]
fn clocks_wrap() {
    let (window, near) = (Window::default(), u64::from(u32::MAX) - 2_000);
    window.add(true, near, near, TEN);
    window.add(true, near + 4_000, near + 4_000, TEN);
    assert_eq!(window.tally(near + 4_000, TEN, UnderWay::All).calls, 2);
}

#[test]
fn the_longest_window() {
    let window = Window::default();
    window.add(true, 7, 7, Duration::MAX);
    assert_eq!(window.tally(1 << 30, Duration::MAX, UnderWay::All).failures, 1);
}

#[test]
fn the_shortest_window() {
    let window = Window::default();
    window.add(true, 7, 7, Duration::from_micros(1));
    assert_eq!(window.tally(7, Duration::from_micros(1), UnderWay::All).failures, 1);
    assert_eq!(window.tally(17, Duration::from_micros(1), UnderWay::All).failures, 0);
}
