//! The public items of core that no other part of the workspace uses.
//!
//! An item counts as used if its name stands as a word in a file of another crate, of a test or of an example. This
//! overlooks unused items with common names, but never reports an item that is used.
use std::collections::BTreeSet;

use crate::{CORE, source};

/// The most unused items that the list may have.
const MOST: usize = 20;

/// Unused items that stay public, and the reason.
const KEPT: [(&str, &str); 14] = [
    ("BudgetView", "an element of a public field of `Inspection`"),
    ("CircuitView", "an element of a public field of `Inspection`"),
    ("ConcurrencyView", "an element of a public field of `Inspection`"),
    ("FaultView", "an element of a public field of `Inspection`"),
    ("FnLayer", "the return type of `from_fn`, a layer that users hold"),
    ("FnService", "the service of `FnLayer`, named by its `Layer` implementation"),
    ("LayerView", "an element of a public field of `Inspection`"),
    ("LimitView", "an element of a public field of `Inspection`"),
    ("MessageLimitsConfig", "what a `MessageLimitsPatch` of the settings is applied to"),
    ("MessageLimitsView", "an element of a public field of `Inspection`"),
    ("RuleView", "an element of a public field of `ServiceView`"),
    ("Sealed", "the supertrait that keeps others from implementing `CallError`; it cannot be reached"),
    ("default_of", "`settings!` expands to it"),
    ("server_faults", "the default of `failures`, for programs that add to it"),
];

#[test]
fn public_items_of_core_are_used_or_have_a_reason() {
    let sources = source::files(&["rs", "md"]);
    let (core, others): (Vec<_>, Vec<_>) = sources
        .iter()
        .partition(|file| file.path.starts_with(CORE) && !file.path.starts_with("chassis-core/src/testing/"));
    let others = others.into_iter().filter(|file| {
        file.path != "tests/workspace/public.rs" && (file.path.ends_with(".rs") || file.path == "README.md")
    });
    let used: BTreeSet<&str> = others.flat_map(|file| words(&file.text)).collect();
    let (mut count, mut unused) = (0, Vec::new());
    for file in &core {
        let lines = file.text.lines().enumerate().take_while(|(_, line)| *line != "mod tests {");
        for (number, name) in lines.filter_map(|(number, line)| Some((number, declared(line)?))) {
            count += 1;
            if !used.contains(name) {
                unused.push((name, format!("{}:{}: {name}", file.path, number + 1)));
            }
        }
    }
    assert!(count > 300, "the public items of core were not found: {count}");
    let is_kept = |name: &str| KEPT.iter().any(|(kept, _)| *kept == name);
    let findings = unused.iter().filter(|(name, _)| !is_kept(name)).map(|(_, place)| place.clone());
    super::refuse(
        "public items of core that only core uses: make them `pub(crate)`, or add them to `KEPT` with a reason",
        findings.collect(),
    );
    let is_unused = |name: &str| unused.iter().any(|(unused, _)| *unused == name);
    let stale = KEPT.iter().filter(|(name, _)| !is_unused(name)).map(|(name, _)| (*name).to_owned());
    super::refuse("entries of `KEPT` that are used by now, or gone", stale.collect());
    assert!(unused.len() <= MOST, "{} unused items, {MOST} are allowed", unused.len());
}

#[test]
fn declarations_are_found() {
    assert_eq!(declared("    pub const fn new(now: Instant) -> Self {"), Some("new"));
    assert_eq!(declared("pub async fn run() {"), Some("run"));
    assert_eq!(declared("pub struct Call {"), Some("Call"));
    assert_eq!(declared("pub const MOST: usize = 1;"), Some("MOST"));
    for line in
        ["pub(crate) struct Call {", "    pub started: Instant,", "pub use call::Call;", "// pub fn x()"]
    {
        assert_eq!(declared(line), None, "{line}");
    }
}

/// The name of the public item that a line declares.
fn declared(line: &str) -> Option<&str> {
    let mut rest = line.trim_start().strip_prefix("pub ")?.split_whitespace().peekable();
    loop {
        match rest.next()? {
            "async" => {}
            "const" if rest.peek() == Some(&"fn") => {}
            "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" => {
                return words(rest.next()?).next();
            }
            _ => return None,
        }
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|letter: char| letter != '_' && !letter.is_alphanumeric()).filter(|word| !word.is_empty())
}
