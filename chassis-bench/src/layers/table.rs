//! The results, for people, for machines, and for the documentation.
use std::fmt::{self, Write};

use serde::Serialize;

/// The result of one row, with this number of callers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    pub name: String,
    pub concurrency: usize,
    pub instructions: f64,
    pub allocations: f64,
    pub ns: f64,
}

/// All rows; `--json` prints it.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    pub rows: Vec<Measured>,
}

// === impl Measured ===

impl Measured {
    /// Subtracts the counts of `base`; the time is measured without them.
    pub fn take_off(&mut self, base: &Measured) {
        self.instructions -= base.instructions;
        self.allocations -= base.allocations;
    }
}

// === impl Table ===

impl Table {
    /// The table in Markdown.
    pub fn markdown(&self) -> String {
        let mut text = String::from(
            "| row | concurrency | instructions | ÷ `bare_tonic` | allocations | ns |\n|---|---:|---:|---:|---:|---:|\n",
        );
        for row in &self.rows {
            let Measured { name, concurrency, instructions, allocations, ns } = row;
            let (instructions, ratio) = (grouped(*instructions), self.ratio(row));
            let _ = writeln!(
                text,
                "| `{name}` | {concurrency} | {instructions} | {ratio} | {allocations:.1} | {} |",
                grouped(*ns)
            );
        }
        text
    }

    /// The ratio to `bare_tonic`'s instructions with the same number of callers, if that was measured.
    fn ratio(&self, row: &Measured) -> String {
        let bare = |other: &&Measured| other.name == "bare_tonic" && other.concurrency == row.concurrency;
        let bare = self.rows.iter().find(bare);
        bare.map_or_else(String::new, |bare| format!("{:.3}", row.instructions / bare.instructions))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:32} {:>5} {:>12} {:>7} {:>8} {:>10}",
            "row", "conc", "instructions", "÷ bare", "allocs", "ns"
        )?;
        self.rows.iter().try_for_each(|row| {
            let Measured { name, concurrency, instructions, allocations, ns } = row;
            let (ratio, ns) =
                (self.ratio(row), if ns.is_nan() { "-".to_owned() } else { format!("{ns:.0}") });
            writeln!(
                f,
                "{name:32} {concurrency:>5} {instructions:>12.0} {ratio:>7} {allocations:>8.2} {ns:>10}"
            )
        })
    }
}

/// A whole number with its digits in groups of three.
fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number <= -0.5 { "−" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, instructions: f64) -> Measured {
        Measured { name: name.to_owned(), concurrency: 1, instructions, allocations: 8.0, ns: 1234.5 }
    }

    #[test]
    fn rows_are_printed_relative_to_bare_tonic() {
        let table = Table { rows: vec![row("bare_tonic", 120_000.0), row("chassis_on", 90_000.0)] };
        let text = table.markdown();
        assert!(text.ends_with("| `chassis_on` | 1 | 90,000 | 0.750 | 8.0 | 1,234 |\n"), "{text}");
    }

    #[test]
    fn digits_stand_in_threes() {
        for (number, text) in [(0.4, "0"), (999.0, "999"), (1_000.0, "1,000"), (-1_234_567.0, "−1,234,567")]
        {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn what_is_no_part_of_a_row_is_taken_off() {
        let mut pick = row("pick_10", 6_000.0);
        pick.take_off(&row("make_call", 5_600.0));
        assert_eq!((pick.instructions, pick.allocations, pick.ns), (400.0, 0.0, 1234.5));
    }
}
