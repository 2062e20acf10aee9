//! Words that docs, comments and messages avoid: readers whose first language is not English stumble over them.

use crate::source::File;

/// Things do not speak, and readers look for a noun as the subject.
const AVOIDED: [&str; 8] = ["tell", "tells", "told", "hear", "hears", "heard", "whoever", "nobody"];

/// The lines of doc comments that begin with "What", as in "What a call carries": they name no thing.
pub(crate) fn openings(files: &[File]) -> Vec<String> {
    let opens = |line: &str| {
        let doc = ["///", "//!"].iter().find_map(|mark| line.trim_start().strip_prefix(mark));
        doc.is_some_and(|text| words(text).next() == Some("What"))
    };
    found(files, opens)
}

/// The lines with one of the [`AVOIDED`] words.
pub(crate) fn avoided(files: &[File]) -> Vec<String> {
    found(files, |line| words(line).any(|word| AVOIDED.contains(&word.to_ascii_lowercase().as_str())))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn found(files: &[File], is_it: impl Fn(&str) -> bool) -> Vec<String> {
    let lines = files.iter().flat_map(|file| file.text.lines().enumerate().map(move |line| (file, line)));
    let lines = lines.filter(|(_, (_, line))| is_it(line));
    lines.map(|(file, (number, line))| format!("{}:{}: {}", file.path, number + 1, line.trim())).collect()
}
