//! `grpc-timeout`: how long the caller will wait, in at most eight digits and a unit.
use std::time::Duration;

use http::HeaderValue;

/// The units from the finest on, with their length in nanoseconds.
const UNITS: [(u8, u64); 6] = [
    (b'n', 1),
    (b'u', 1_000),
    (b'm', 1_000_000),
    (b'S', 1_000_000_000),
    (b'M', 60_000_000_000),
    (b'H', 3_600_000_000_000),
];

/// The largest value of eight digits.
const MOST: u64 = 99_999_999;

/// The timeout in a header; the error is a message for the caller.
pub(crate) fn read(value: &HeaderValue) -> Result<Duration, String> {
    let malformed =
        || format!("malformed grpc-timeout {value:?}: expected 1 to 8 digits and one of H M S m u n");
    parse(value.as_bytes()).ok_or_else(malformed)
}

/// Writes `remaining` in the finest unit that holds it, rounded down.
pub(crate) fn format(remaining: Duration) -> HeaderValue {
    // A value that does not fit is over 584 years.
    let nanos = u64::try_from(remaining.as_nanos()).unwrap_or(u64::MAX);
    let fits = UNITS.iter().find(|(_, unit)| nanos / unit <= MOST);
    let (unit, mut number) = fits.map_or((b'H', MOST), |(name, unit)| (*name, nanos / unit));
    let mut text = [0; 9];
    let mut start = text.len() - 1;
    text[start] = unit;
    loop {
        start -= 1;
        text[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    HeaderValue::from_bytes(&text[start..]).expect("digits and a letter are a header's value")
}

/// Parses one to eight digits and a unit: strictly, no sign, no space.
fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    let (_, unit) = UNITS.iter().find(|(name, _)| name == unit)?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match number.checked_mul(*unit) {
        Some(nanos) => Some(Duration::from_nanos(nanos)),
        None => Some(Duration::from_secs(number * (unit / 1_000_000_000))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parses() {
        let hour = Duration::from_secs(3600);
        let table: &[(&str, Option<Duration>)] = &[
            ("0n", Some(Duration::ZERO)),
            ("1n", Some(Duration::from_nanos(1))),
            ("30000000u", Some(Duration::from_secs(30))),
            ("5m", Some(Duration::from_millis(5))),
            ("5S", Some(Duration::from_secs(5))),
            ("5M", Some(Duration::from_secs(300))),
            ("1H", Some(hour)),
            ("00000001S", Some(Duration::from_secs(1))),
            ("99999999H", Some(hour * 99_999_999)),
            ("", None),
            ("S", None),
            ("5", None),
            ("5s", None),
            ("5h", None),
            ("5 S", None),
            ("+5S", None),
            ("-5S", None),
            ("1.5S", None),
            ("5SS", None),
            ("000000001S", None),
            ("123456789m", None),
            ("５S", None),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text.as_bytes()), *expected, "{text:?}");
        }
    }

    #[test]
    fn formats() {
        let table = [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_secs(30), "30000000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::from_secs(6_000_000_000), "1666666H"),
            (Duration::MAX, "5124095H"),
        ];
        for (remaining, expected) in table {
            assert_eq!(format(remaining), expected, "{remaining:?}");
        }
    }

    #[test]
    fn says_what_is_malformed() {
        assert_eq!(read(&HeaderValue::from_static("5m")), Ok(Duration::from_millis(5)));
        let said = read(&HeaderValue::from_static("soon")).unwrap_err();
        assert!(said.contains("grpc-timeout \"soon\""), "{said}");
    }

    proptest! {
        #[test]
        fn never_grows_on_the_way(secs in 0..=u64::MAX, nanos in 0..1_000_000_000u32, shift in 0..64u32) {
            let remaining = Duration::new(secs >> shift, nanos);
            let read = parse(format(remaining).as_bytes()).unwrap();
            prop_assert!(read <= remaining);
            // The next unit is up to a thousand times as long, so at least six digits remain.
            let held = remaining.min(Duration::from_nanos(u64::MAX));
            prop_assert!(held - read <= held / 100_000, "{remaining:?} became {read:?}");
        }

        #[test]
        fn takes_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            parse(&bytes);
        }
    }
}
