use super::*;

#[track_caller]
fn check<T: FromStr<Err = String> + fmt::Display>(text: &str, expected: &str) {
    let got = text.parse::<T>().map_or_else(|why| why, |value| value.to_string());
    assert_eq!(got, expected, "{text}");
}

#[test]
fn lengths_of_time() {
    check::<Span>("300ms", "300ms");
    check::<Span>("1.5s", "1500ms");
    check::<Span>("90m", "90m");
    check::<Span>("0s", "0s");
    check::<Span>("300", "`300` has no unit; write 300ms or 300s");
    check::<Span>("3 parsecs", "`parsecs` is no unit of time; write us, ms, s, m or h");
    check::<Span>("-1s", "`-1s` is negative; a length of time is not");
    check::<Span>("99999999h", "`99999999h` is longer than a year");
    check::<PositiveSpan>("0ms", "`0ms` is nothing; write more, or `off` where that is allowed");
}

#[test]
fn shares_and_rates() {
    check::<Ratio>("20%", "20%");
    check::<Ratio>("0.5%", "0.5%");
    check::<Ratio>("33.33333333%", "33.33333333%");
    check::<Ratio>("7%", "7%");
    assert_eq!(Ratio::new(0.07).map(|share| share.to_string()), Some("7%".to_owned()));
    check::<Ratio>("120%", "`120%` is no share; it goes from 0% to 100%");
    check::<Ratio>("0.2", "`0.2` has no unit; write a share as 20%");
    check::<Rate>("100/s", "100/s");
    check::<Rate>("100", "`100` has no unit; write 100/s or 100/m");
    check::<Rate>("-1/s", "`-1/s` is no rate; write 100/s, 5/m or 2/h");
}

#[test]
fn sizes() {
    check::<Size>("64KiB", "64KiB");
    check::<Size>("10MiB", "10MiB");
    check::<Size>("2097152", "2MiB");
    check::<Size>("1.5kib", "1536");
    check::<Size>("10MB", "10000000");
    check::<Size>("1000", "1000");
    check::<Size>("0", "`0` is no size; it goes from 1 byte to just under 2GiB");
    check::<Size>("2GiB", "`2GiB` is no size; it goes from 1 byte to just under 2GiB");
    check::<Size>("1 ton", "`1 ton` is no size; write 64KiB, 10MiB, 1GiB or a number of bytes");
    check::<Size>("-1", "`-1` is no size; write 64KiB, 10MiB, 1GiB or a number of bytes");
    let largest = u64::from(u32::MAX >> 1);
    assert_eq!(Size::new(largest).and_then(|size| size.to_string().parse().ok()), Size::new(largest));
    assert_eq!((Size::new(0), Size::new(largest + 1)), (None, None));
}

#[test]
fn other_words_for_off_name_it() {
    for word in ["no", "none", "never", "disabled"] {
        let why = serde_json::from_str::<Switch<Span>>(&format!("{word:?}")).unwrap_err().to_string();
        assert!(why.starts_with(&format!("`{word}` is no word for this; write `off`")), "{why}");
    }
}

#[test]
fn off_is_a_word_or_false() {
    let read = |json: &str| serde_json::from_str::<Switch<Span>>(json);
    assert_eq!(read("\"off\"").unwrap(), Switch::Off);
    assert_eq!(read("false").unwrap(), Switch::Off);
    assert_eq!(read("\"1s\"").unwrap(), Switch::On(Span(Duration::from_secs(1))));
    assert!(read("true").is_err());
}
