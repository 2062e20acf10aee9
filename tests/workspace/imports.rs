//! Which file of a crate imports which, read from its sources.
//!
//! An import is followed through re-exports to the file that has the item. A `mod.rs` that names its own files, and
//! `lib.rs`, import nothing: they say where things are. Tests within a file do not count.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{self, File};

/// A file that imports an item of another file; both are relative to the sources of the crate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Empty for the module itself.
    pub(crate) item: String,
}

/// The modules of a crate, by their paths.
type Modules = BTreeMap<Vec<String>, String>;

/// A file's tokens, and where it stands.
struct Module {
    path: Vec<String>,
    file: String,
    tokens: Vec<Token>,
}

/// As much of Rust's grammar as paths need.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    /// `::`
    Path,
    Mark(char),
}

/// A path in a `use`, and the name that it brings into its file.
#[derive(Debug, PartialEq, Eq)]
struct Used {
    path: Vec<String>,
    name: String,
}

/// All imports among the files below `root`, but for those in a folder `testing` and for files of tests.
pub(crate) fn imports(root: &str) -> BTreeSet<Import> {
    let mut files = source::files(&["rs"]);
    files.retain(|file| {
        let name = file.path.rsplit('/').next().unwrap_or_default();
        let is_test = file.path.contains("/testing/") || ["tests.rs", "model.rs"].contains(&name);
        file.path.starts_with(root) && !is_test
    });
    for file in &mut files {
        file.path = file.path[root.len()..].to_owned();
    }
    among(&files)
}

/// The most files that all import each other, directly or not.
pub(crate) fn largest_circle(imports: &BTreeSet<Import>) -> BTreeSet<String> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for Import { from, to, .. } in imports {
        next.entry(from).or_default().insert(to);
    }
    let reached: BTreeMap<&str, _> = next.keys().map(|file| (*file, reached(file, &next))).collect();
    let circle = |file: &str| {
        let both = |other: &&&str| reached.get(**other).is_some_and(|back| back.contains(file));
        reached[file].iter().filter(both).map(|other| (*other).to_owned()).collect::<BTreeSet<_>>()
    };
    next.keys().map(|file| circle(file)).max_by_key(BTreeSet::len).unwrap_or_default()
}

/// Every file that `from` imports, directly or not.
fn reached<'a>(from: &'a str, next: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        let further = next.get(file).into_iter().flatten().copied();
        open.extend(further.filter(|to| reached.insert(*to)));
    }
    reached
}

fn among(files: &[File]) -> BTreeSet<Import> {
    let modules: Vec<Module> = files.iter().map(Module::of).collect();
    let by_path: Modules = modules.iter().map(|module| (module.path.clone(), module.file.clone())).collect();
    let mut found = BTreeSet::new();
    // By the file and the name that it gives an item: the file that the item comes from, and its name there.
    let mut exports: BTreeMap<(String, String), (String, String)> = BTreeMap::new();
    for module in &modules {
        let used = module.used();
        for Used { path, name } in &used {
            let Some((to, item)) = module.resolve(path, &by_path) else { continue };
            if is_within(&to, &module.file) {
                exports.insert((module.file.clone(), name.clone()), (to.clone(), item.clone()));
            }
            found.insert(Import { from: module.file.clone(), to, item });
        }
        for path in module.paths(&used) {
            let Some((to, item)) = module.resolve(&path, &by_path) else { continue };
            found.insert(Import { from: module.file.clone(), to, item });
        }
    }
    let follow = |Import { from, mut to, mut item }: Import| {
        while let Some(origin) = exports.get(&(to.clone(), item.clone())) {
            if *origin == (to.clone(), item.clone()) || !is_within(&origin.0, &to) {
                break;
            }
            (to, item) = origin.clone();
        }
        Import { from, to, item }
    };
    let is_import = |import: &Import| {
        let names_its_own = import.from.ends_with("mod.rs") && is_within(&import.to, &import.from);
        import.from != import.to && import.from != "lib.rs" && import.to != "lib.rs" && !names_its_own
    };
    found.into_iter().map(follow).filter(is_import).collect()
}

/// Does `file` stand in a module below that of `parent`?
fn is_within(file: &str, parent: &str) -> bool {
    file != parent && module_path(file).starts_with(&module_path(parent))
}

/// `layer/fault/rule.rs` is the module `layer::fault::rule`; `mod.rs` is its folder, `lib.rs` the crate.
fn module_path(file: &str) -> Vec<String> {
    let path = file.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

// === impl Module ===

impl Module {
    fn of(file: &File) -> Self {
        let mut tokens = tokens(&file.text);
        let tests =
            [word("cfg"), Token::Mark('('), word("test"), Token::Mark(')'), Token::Mark(']'), word("mod")];
        if let Some(at) = tokens.windows(tests.len()).position(|window| window == tests) {
            tokens.truncate(at);
        }
        Module { path: module_path(&file.path), file: file.path.clone(), tokens }
    }

    /// Everything that its `use` declarations name.
    fn used(&self) -> Vec<Used> {
        let mut used = Vec::new();
        let mut at = 0;
        while let Some(token) = self.tokens.get(at) {
            at += 1;
            // `use<'a>` is a bound.
            if *token == word("use") && self.tokens.get(at) != Some(&Token::Mark('<')) {
                at = tree(&self.tokens, at, &[], &mut used);
            }
        }
        used
    }

    /// The paths outside of `use` declarations that lead to another file: from `crate`, `super` or `self`, or from a
    /// name that a `use` brings in.
    fn paths(&self, used: &[Used]) -> Vec<Vec<String>> {
        let mut found = Vec::new();
        let mut at = 0;
        while at < self.tokens.len() {
            let mut path = Vec::new();
            while let Some(Token::Word(word)) = self.tokens.get(at) {
                path.push(word.clone());
                at += 1;
                match self.tokens.get(at) {
                    Some(Token::Path) => at += 1,
                    _ => break,
                }
            }
            match path.as_slice() {
                [] => at += 1,
                [first, _, ..] if ["crate", "super", "self"].contains(&first.as_str()) => found.push(path),
                [first, rest @ ..] if !rest.is_empty() => {
                    let brought = used.iter().find(|used| used.name == *first);
                    found.extend(brought.map(|used| [used.path.as_slice(), rest].concat()));
                }
                _ => {}
            }
        }
        found
    }

    /// The file that `path` leads to from here, and the item in it. `None`: it leads to another crate.
    fn resolve(&self, path: &[String], modules: &Modules) -> Option<(String, String)> {
        let mut base = self.path.clone();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (base, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {
                while rest.first().is_some_and(|word| word == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            child => {
                let below = [base.as_slice(), &[child.to_owned()]].concat();
                modules.get(&below)?;
            }
        }
        let full = [base.as_slice(), rest].concat();
        let length = (0..=full.len()).rev().find(|length| modules.contains_key(&full[..*length]))?;
        let item = full.get(length).cloned().unwrap_or_default();
        Some((modules[&full[..length]].clone(), item))
    }
}

/// Reads one tree of a `use` from `at` on; `before` is what it is below. Where it ends.
fn tree(tokens: &[Token], mut at: usize, before: &[String], used: &mut Vec<Used>) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at) {
            Some(Token::Word(word)) if word == "as" => {
                if let Some(Token::Word(name)) = tokens.get(at + 1) {
                    used.push(Used { path, name: name.clone() });
                }
                return at + 2;
            }
            // A module itself, by its own name: `layer::{self, …}`.
            Some(Token::Word(word)) if word == "self" && path.len() == before.len() && !before.is_empty() => {
                at += 1
            }
            Some(Token::Word(word)) => {
                path.push(word.clone());
                at += 1;
            }
            Some(Token::Path) => at += 1,
            Some(Token::Mark('*')) => {
                used.push(Used { path, name: "*".to_owned() });
                return at + 1;
            }
            Some(Token::Mark('{')) => {
                at += 1;
                while tokens.get(at).is_some_and(|token| *token != Token::Mark('}')) {
                    at = tree(tokens, at, &path, used);
                    at += usize::from(tokens.get(at) == Some(&Token::Mark(',')));
                }
                return at + 1;
            }
            _ => {
                let name = path.last().cloned().unwrap_or_default();
                used.push(Used { path, name });
                return at;
            }
        }
    }
}

fn word(text: &str) -> Token {
    Token::Word(text.to_owned())
}

/// The tokens of `text`, without comments and literals.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = literal(rest);
        if skipped > 0 {
            rest = &rest[skipped..];
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(word(&rest[..end]));
            rest = &rest[end..];
        } else if let Some(after) = rest.strip_prefix("::") {
            tokens.push(Token::Path);
            rest = after;
        } else {
            if !first.is_whitespace() {
                tokens.push(Token::Mark(first));
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    tokens
}

/// How many bytes the comment, the literal or the lifetime has that `text` begins with; 0 if it begins with none.
fn literal(text: &str) -> usize {
    let until = |end: &str| text.find(end).map_or(text.len(), |at| at + end.len());
    let raw = text.trim_start_matches(['b', 'c']).strip_prefix('r');
    let hashes = raw.map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
    if text.starts_with("//") {
        until("\n")
    } else if text.starts_with("/*") {
        until("*/")
    } else if let Some(body) = raw.and_then(|raw| raw[hashes..].strip_prefix('"')) {
        let end = format!("\"{}", "#".repeat(hashes));
        text.len() - body.len() + body.find(&end).map_or(body.len(), |at| at + end.len())
    } else if let Some(quoted) = text.strip_prefix('"') {
        let mut escaped = false;
        let end = quoted.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        end.map_or(text.len(), |at| at + 2)
    } else if let Some(quoted) = text.strip_prefix('\'') {
        let mut chars = quoted.char_indices();
        match (chars.next(), chars.next()) {
            (Some((_, '\\')), _) => quoted.get(2..).and_then(|rest| rest.find('\'')).map_or(2, |at| at + 4),
            (Some(_), Some((at, '\''))) => at + 2,
            _ => 1 + quoted.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(quoted.len()),
        }
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let file = |(path, text): &(&str, &str)| File { path: (*path).to_owned(), text: (*text).to_owned() };
        let files: Vec<File> = files.iter().map(file).collect();
        let text = |import: Import| format!("{} -> {} {}", import.from, import.to, import.item);
        among(&files).into_iter().map(text).collect()
    }

    #[test]
    fn imports_are_followed_to_the_file_that_has_the_item() {
        let files = [
            ("lib.rs", "mod call;\nmod layer;\nmod types;\npub use types::Code;\npub use call::Call;"),
            (
                "call.rs",
                "use crate::{Code, layer::fault::{self, Rule as Fault}};\nfn a() { fault::check(); }",
            ),
            ("layer/mod.rs", "pub mod fault;\npub use self::fault::Faults;"),
            ("layer/fault/mod.rs", "mod rule;\npub use self::rule::{Rule, check};\npub use rule::Faults;"),
            ("layer/fault/rule.rs", "// use crate::call::Comment;\nfn a(_: &'static crate::types::Error) {}"),
            ("types/mod.rs", "mod code;\npub use self::{code::Code};\npub struct Error;"),
            (
                "types/code.rs",
                "const TEXT: &str = \"use crate::call::Text;\";\n#[cfg(test)]\nmod tests { use crate::call::X; }",
            ),
        ];
        let expected = [
            "call.rs -> layer/fault/mod.rs ",
            "call.rs -> layer/fault/rule.rs Rule",
            "call.rs -> layer/fault/rule.rs check",
            "call.rs -> types/code.rs Code",
            "layer/fault/rule.rs -> types/mod.rs Error",
        ];
        assert_eq!(found(&files), expected);
    }

    #[test]
    fn comments_literals_and_bounds_are_no_imports() {
        let text = r##"/* use super::a; */ const A: &str = r#"use super::b; "quoted""#; const B: char = '\''; const C: char = '"';
            fn f<'a>(x: &'a u8) -> impl Sized + use<'a> { "\"; use super::c;" } use super::other::Item;"##;
        assert_eq!(found(&[("one.rs", text), ("other.rs", ""), ("lib.rs", "")]), ["one.rs -> other.rs Item"]);
    }

    #[test]
    fn a_circle_is_found_with_all_that_is_in_it() {
        let imports = |pairs: &[(&str, &str)]| -> BTreeSet<Import> {
            let import = |(from, to): &(&str, &str)| Import {
                from: (*from).into(),
                to: (*to).into(),
                item: String::new(),
            };
            pairs.iter().map(import).collect()
        };
        let circle = |pairs| largest_circle(&imports(pairs)).into_iter().collect::<Vec<_>>();
        assert_eq!(circle(&[("a", "b"), ("b", "c")]), [""; 0]);
        assert_eq!(
            circle(&[("a", "b"), ("b", "a"), ("c", "d"), ("d", "e"), ("e", "c"), ("a", "c")]),
            ["c", "d", "e"]
        );
    }
}
