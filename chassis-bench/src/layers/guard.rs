//! Holds the counts to what is recorded: ratios to bare tonic of the same run, because memory-copy
//! routines differ between processors, and allocations.
use std::{collections::BTreeMap, fs, path::Path};

use serde::{Deserialize, Serialize};

use super::Measured;
use crate::Result;

/// What is recorded of a row: `bare_tonic`'s share of its instructions, and its allocations.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Recorded {
    ratio: f64,
    allocations: f64,
}

type Record = BTreeMap<String, Recorded>;

/// Above the recorded ratio by this much is too much.
const TOLERANCE: f64 = 0.02;

/// Counts of allocations are exact but for what happens once in many calls: a table that grows.
const PARTIAL_ALLOCATION: f64 = 0.1;

/// Writes `measured` down.
pub(super) fn record(file: &Path, measured: &[Measured]) -> Result {
    Ok(fs::write(file, serde_json::to_string_pretty(&of(measured)?)? + "\n")?)
}

/// Fails where `measured` is above what `file` says.
pub(super) fn check(file: &Path, measured: &[Measured]) -> Result {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match exceeding(&serde_json::from_str(&text)?, &of(measured)?) {
        found if found.is_empty() => Ok(()),
        found => Err(format!("a call has become dearer:\n  {}", found.join("\n  ")).into()),
    }
}

fn of(measured: &[Measured]) -> Result<Record> {
    let mut record = Record::new();
    for row in measured {
        let bare = |other: &&Measured| other.name == "bare_tonic" && other.concurrency == row.concurrency;
        let bare = measured.iter().find(bare).ok_or("the guard needs bare_tonic measured too")?;
        let recorded = Recorded {
            ratio: thousandths(row.instructions / bare.instructions),
            allocations: thousandths(row.allocations),
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
        if now.ratio > recorded.ratio * (1.0 + TOLERANCE) {
            found.push(format!(
                "{row}: {} of bare tonic's instructions, recorded {}",
                now.ratio, recorded.ratio
            ));
        }
        if now.allocations > recorded.allocations + PARTIAL_ALLOCATION {
            found.push(format!("{row}: {} allocations, recorded {}", now.allocations, recorded.allocations));
        }
    }
    found
}

fn thousandths(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(recorded: (f64, f64), now: (f64, f64), found: &[&str]) {
        let record =
            |(ratio, allocations)| Record::from([("a/1".to_owned(), Recorded { ratio, allocations })]);
        assert_eq!(exceeding(&record(recorded), &record(now)), found);
    }

    #[test]
    fn two_per_cent_are_tolerated_and_no_allocation() {
        check((0.9, 50.0), (0.9, 50.0), &[]);
        check((0.9, 50.0), (0.917, 50.05), &[]);
        check((0.9, 50.0), (0.5, 40.0), &[]);
        check((0.9, 50.0), (0.919, 50.0), &["a/1: 0.919 of bare tonic's instructions, recorded 0.9"]);
        check((0.9, 50.0), (0.9, 51.0), &["a/1: 51 allocations, recorded 50"]);
    }

    #[test]
    fn a_row_that_is_gone_is_found() {
        let recorded = Record::from([("a/1".to_owned(), Recorded { ratio: 1.0, allocations: 1.0 })]);
        assert_eq!(exceeding(&recorded, &Record::new()), ["a/1: recorded, but not measured"]);
    }
}
