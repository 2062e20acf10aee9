//! Compares the counts with the recorded ones: ratios to bare tonic of the same run, and allocations.
//!
//! Routines that copy memory differ between processors, and rows copy more or less of it than bare tonic
//! does. So a larger ratio counts only if the row's own instructions have grown as well: on the processor of
//! the record both are the same, on another one it is the effect that both share.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::table::Measured;
use crate::Result;

/// The record of a row: its instructions, also relative to `bare_tonic`'s, and its allocations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Recorded {
    ratio: f64,
    instructions: f64,
    allocations: f64,
}

type Record = BTreeMap<String, Recorded>;

/// The tolerated growth over the record.
const TOLERANCE: f64 = 0.02;

/// Instructions by which two runs differ because names fall into other slots of a hash table, which is seeded anew in
/// each run.
const HASH_ORDER_INSTRUCTIONS: f64 = 50.0;

/// Allocations are exact except for those that happen once in many calls: a growing table.
const PARTIAL_ALLOCATION: f64 = 0.5;

/// The names of the rows in `file`.
pub(super) fn rows(file: &Path) -> Result<BTreeSet<String>> {
    let names = read(file)?.into_keys().map(|key| key.split('/').next().unwrap_or_default().to_owned());
    Ok(names.collect())
}

/// Writes `measured` to the file.
pub(super) fn record(file: &Path, measured: &[Measured]) -> Result {
    Ok(fs::write(file, serde_json::to_string_pretty(&of(measured)?)? + "\n")?)
}

/// Fails if `measured` exceeds the record in `file`.
pub(super) fn check(file: &Path, measured: &[Measured]) -> Result {
    match exceeding(&read(file)?, &of(measured)?) {
        found if found.is_empty() => Ok(()),
        found => Err(format!("a call has become dearer:\n  {}", found.join("\n  ")).into()),
    }
}

fn read(file: &Path) -> Result<Record> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()).into())
}

fn of(measured: &[Measured]) -> Result<Record> {
    let mut record = Record::new();
    for row in measured {
        let bare = |other: &&Measured| other.name == "bare_tonic" && other.concurrency == row.concurrency;
        let bare = measured.iter().find(bare).ok_or("the guard needs bare_tonic measured too")?;
        let recorded = Recorded {
            ratio: rounded(row.instructions / bare.instructions, 5),
            instructions: row.instructions.round(),
            allocations: rounded(row.allocations, 2),
        };
        record.insert(format!("{}/{}", row.name, row.concurrency), recorded);
    }
    Ok(record)
}

fn exceeding(recorded: &Record, now: &Record) -> Vec<String> {
    let mut found = Vec::new();
    for (row, recorded) in recorded {
        let Some(now) = now.get(row) else {
            found.push(format!("{row}: recorded, but not measured"));
            continue;
        };
        let most = recorded.instructions * (1.0 + TOLERANCE);
        if now.ratio > recorded.ratio * (1.0 + TOLERANCE)
            && now.instructions > most.max(recorded.instructions + HASH_ORDER_INSTRUCTIONS)
        {
            found.push(format!(
                "{row}: {} of bare tonic's instructions, recorded {}; {} in all, recorded {}",
                now.ratio, recorded.ratio, now.instructions, recorded.instructions
            ));
        }
        if now.allocations > recorded.allocations + PARTIAL_ALLOCATION {
            found.push(format!("{row}: {} allocations, recorded {}", now.allocations, recorded.allocations));
        }
    }
    found
}

fn rounded(number: f64, digits: i32) -> f64 {
    let scale = 10_f64.powi(digits);
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(recorded: (f64, f64, f64), now: (f64, f64, f64), found: &[&str]) {
        let record = |(ratio, instructions, allocations)| {
            Record::from([("a/1".to_owned(), Recorded { ratio, instructions, allocations })])
        };
        assert_eq!(exceeding(&record(recorded), &record(now)), found);
    }

    #[test]
    fn two_per_cent_are_tolerated_and_no_allocation() {
        let recorded = (0.9, 90_000.0, 50.0);
        check(recorded, recorded, &[]);
        check(recorded, (0.917, 91_700.0, 50.05), &[]);
        check(recorded, (0.5, 50_000.0, 40.0), &[]);
        let dearer = "a/1: 0.919 of bare tonic's instructions, recorded 0.9; 91900 in all, recorded 90000";
        check(recorded, (0.919, 91_900.0, 50.0), &[dearer]);
        check(recorded, (0.9, 90_000.0, 51.0), &["a/1: 51 allocations, recorded 50"]);
    }

    #[test]
    fn another_processor_is_no_dearer_call() {
        check((0.9, 90_000.0, 50.0), (0.93, 89_000.0, 50.0), &[]); // copies cost less: bare tonic more so
        check((0.9, 90_000.0, 50.0), (0.9, 99_000.0, 50.0), &[]); // copies cost more, in both
    }

    #[test]
    fn small_ratios_are_recorded_as_finely_as_large_ones() {
        let row = |name: &str, instructions| Measured {
            name: name.to_owned(),
            concurrency: 1,
            instructions,
            allocations: 0.0,
            ns: 0.0,
        };
        let of = |small| of(&[row("bare_tonic", 120_000.0), row("small", small)]).unwrap();
        assert_eq!(exceeding(&of(5_000.0), &of(5_050.0)), [""; 0]);
        assert_eq!(exceeding(&of(5_000.0), &of(5_150.0)).len(), 1);
        assert_eq!(exceeding(&of(400.0), &of(440.0)), [""; 0]);
        assert_eq!(exceeding(&of(400.0), &of(460.0)).len(), 1);
    }

    #[test]
    fn what_was_recorded_is_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), r#"{"a_row/64": {"ratio": 0.5, "instructions": 9.0, "allocations": 1.0}}"#)
            .unwrap();
        assert_eq!(rows(file.path()).unwrap(), BTreeSet::from(["a_row".to_owned()]));
    }

    #[test]
    fn a_row_that_is_gone_is_found() {
        let recorded =
            Record::from([("a/1".to_owned(), Recorded { ratio: 1.0, instructions: 1.0, allocations: 1.0 })]);
        assert_eq!(exceeding(&recorded, &Record::new()), ["a/1: recorded, but not measured"]);
    }
}
