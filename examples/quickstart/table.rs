//! The live table: drawn in place on a terminal, printed every few seconds elsewhere.
use std::{
    fmt::Write as _,
    io::{IsTerminal, Write as _},
    time::Duration,
};

use tokio::time::Instant;

use crate::watch::Seen;

/// The output of the table.
pub(crate) struct Table {
    in_place: bool,
    /// Lines on the terminal that the next drawing replaces.
    drawn: usize,
    next: Option<Instant>,
}

/// How often it is printed where it cannot be drawn in place.
const EVERY: Duration = Duration::from_secs(4);

// === impl Table ===

impl Table {
    /// Writes to standard output.
    pub(crate) fn new() -> Self {
        Table { in_place: std::io::stdout().is_terminal(), drawn: 0, next: None }
    }

    /// Shows `seen` under the line `head`.
    pub(crate) fn show(&mut self, now: Instant, head: &str, seen: &Seen) {
        if !self.in_place && self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + EVERY);
        let text = render(head, seen);
        let mut out = std::io::stdout().lock();
        if self.in_place && self.drawn > 0 {
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn); // move up, and clear to the end
        }
        // A closed output is no reason to stop: the exit status still reports the result.
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
        self.drawn = text.lines().count();
    }
}

fn render(head: &str, seen: &Seen) -> String {
    // Fits a terminal of 80 columns: a wrapped line could not be replaced.
    let mut text = format!(
        "\n{head}\n  {:<12} {:<6} {:>6} {:>8} {:>8} {:>9} {:>9}  {}\n",
        "stock", "track", "calls", "success", "p50", "p99", "in flight", "circuit"
    );
    for node in seen.nodes() {
        let success = match node.calls {
            0 => "-".to_owned(),
            calls => format!("{:.1} %", 100.0 * node.successes as f64 / calls as f64),
        };
        let millis = |span: Option<Duration>| {
            span.map_or("-".to_owned(), |span| format!("{:.1} ms", span.as_secs_f64() * 1e3))
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  {:<12} {:<6} {:>6} {success:>8} {:>8} {:>9} {:>9}  {}",
            node.id,
            node.labels.get("track").map_or("-", String::as_str),
            node.calls,
            millis(node.p50),
            millis(node.p99),
            node.in_flight,
            node.circuit.as_deref().unwrap_or("-"),
        );
    }
    let rules: Vec<_> = seen.rules().iter().map(|rule| format!("{} {}", rule.name, rule.hits)).collect();
    let _ = writeln!(text, "  rule hits: {}", rules.join(", "));
    text
}
