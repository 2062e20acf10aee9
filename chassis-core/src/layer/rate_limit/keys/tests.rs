use super::*;

const S: Duration = Duration::from_secs(1);

fn up_to(all: usize) -> Keyed {
    Keyed::new(Instant::now(), MostKeys { all, of_a_peer: all })
}

#[test]
fn a_peer_that_makes_keys_up_shuts_nobody_out() {
    let (now, rate) = (Instant::now(), Rate::per_second(1));
    for (attacker, neighbour, other) in
        [("10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"), ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1")]
    {
        let ip = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let keyed = Keyed::new(now, MostKeys { all: 1_600, of_a_peer: 160 });
        for i in 0..20_000 {
            let from = if i % 2 == 0 { attacker } else { neighbour };
            let _ = keyed.take(&i.to_string(), ip(from), now, rate, 1, 1);
        }
        assert!(keyed.len() <= 160, "{}", keyed.len());
        let fresh = (0..500).filter(|i| keyed.take(&format!("n{i}"), ip(other), now, rate, 1, 1).is_ok());
        assert!(fresh.count() >= 160, "{other} has room of its own");
        // A peer at its bound gets room from its own full buckets.
        for i in 0..100 {
            let later = now + (i + 2) * S;
            assert!(keyed.take(&format!("l{i}"), ip(attacker), later, rate, 1, 1).is_ok());
        }
        assert!(keyed.len() <= 320 + 16);
    }
}

#[test]
fn every_key_has_its_own() {
    let (now, rate) = (Instant::now(), Rate::per_second(1));
    let keyed = up_to(100);
    for key in ["a", "b", ""] {
        assert_eq!((0..5).filter(|_| keyed.take(key, None, now, rate, 2, 1).is_ok()).count(), 2, "{key}");
    }
    assert_eq!((keyed.len(), keyed.overflows()), (3, 0));
}

#[test]
fn full_buckets_make_room() {
    let (mut now, rate) = (Instant::now(), Rate::per_second(1));
    let keyed = up_to(160);
    for i in 0..10_000 {
        now += S / 10;
        assert!(keyed.take(&i.to_string(), None, now, rate, 1, 1).is_ok(), "{i}");
    }
    assert!(keyed.len() <= 160);
    assert_eq!(keyed.overflows(), 0);
}

#[test]
fn buckets_in_use_stay() {
    let (now, rate) = (Instant::now(), Rate::per_second(1));
    let keyed = up_to(16);
    (0..1_000).for_each(|i| _ = keyed.take(&i.to_string(), None, now, rate, 1, 1));
    let again = (0..1_000).filter(|i| keyed.take(&i.to_string(), None, now, rate, 1, 1).is_ok()).count();
    assert_eq!(again, 0, "an old key in a new bucket would get through");
    assert!(keyed.len() <= 16 && keyed.overflows() >= 2 * (1_000 - 16));
}

#[test]
fn new_keys_share_what_is_left() {
    let (now, rate) = (Instant::now(), Rate::per_second(1));
    let keyed = up_to(0);
    let through = (0..1_000).filter(|i| keyed.take(&i.to_string(), None, now, rate, 5, 1).is_ok()).count();
    assert_eq!((through, keyed.len()), (5, 0));
    keyed.set_most(MostKeys { all: 1_000, of_a_peer: 1_000 });
    assert!(keyed.take("a", None, now, rate, 5, 1).is_ok());
}

#[test]
fn reservations_and_changes_reach_the_bucket() {
    let (now, slow) = (Instant::now(), Rate::per_second(1));
    let keyed = up_to(16);
    assert_eq!(keyed.reserve("a", None, now, slow, 1, 1, S), Ok(Duration::ZERO));
    assert_eq!(keyed.reserve("a", None, now, slow, 1, 1, S), Ok(S));
    keyed.give_back("a", None, now, 1, 1, S);
    assert_eq!(keyed.reserve("a", None, now, slow, 1, 1, S), Ok(S));
    keyed.retune(now, Rate::per_second(10));
    let wait = keyed.take("a", None, now, Rate::per_second(10), 1, 1).unwrap_err().retry_after;
    assert_eq!(wait, Some(S / 5));
}

#[test]
fn is_small() {
    // A place is a key, an index and a control byte; maps and lists are at least half full.
    let place = 2 * (size_of::<(u64, u32)>() + 1) + 2 * size_of::<Bucket>();
    assert!(place <= 200, "{place}");
}
