//! The files of the tree, and the lists of deny.toml.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

/// A file of the tree, its path relative to the root.
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
}

/// The texts of the tree whose names end in one of `extensions`; "" stands for names without one. Hidden
/// folders and build output are left out.
pub(crate) fn files(extensions: &[&str]) -> Vec<File> {
    let mut found = Vec::new();
    collect(root(), extensions, &mut found);
    assert!(!found.is_empty(), "no {extensions:?} file below {}", root().display());
    found
}

/// `path:line: text` for each line that contains one of `words`, without these tests, which contain the
/// words.
pub(crate) fn lines_with(extensions: &[&str], words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut files = files(extensions);
    files.retain(|file| !file.path.starts_with("tests/workspace/"));
    for File { path, text } in files {
        let lines = text.lines().enumerate().filter(|(_, line)| words.iter().any(|word| line.contains(word)));
        found.extend(lines.map(|(number, line)| format!("{path}:{}: {}", number + 1, line.trim())));
    }
    found
}

/// The strings of the list of deny.toml that begins with `opening`, one a line, each after `key`.
pub(crate) fn deny_list(opening: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join("deny.toml")).expect("deny.toml lies at the root");
    let list = text.lines().skip_while(|line| *line != opening).skip(1).take_while(|line| *line != "]");
    let quoted = list.filter_map(|line| line.split_once(&format!("{key}\""))?.1.split('"').next());
    quoted.map(str::to_owned).collect()
}

fn collect(folder: &Path, extensions: &[&str], found: &mut Vec<File>) {
    let entries = fs::read_dir(folder).expect("the tree can be read");
    for entry in entries.map(|entry| entry.expect("the tree can be read")) {
        let (path, name) = (entry.path(), entry.file_name());
        if name.to_string_lossy().starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            collect(&path, extensions, found);
        } else if extensions.iter().any(|wanted| path.extension().unwrap_or_default() == OsStr::new(wanted)) {
            let text = String::from_utf8_lossy(&fs::read(&path).expect("the tree can be read")).into_owned();
            let path = path.strip_prefix(root()).expect("it lies below the root").display().to_string();
            found.push(File { path, text });
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
