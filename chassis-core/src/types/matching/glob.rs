//! Globs over operations, paths and names.
use regex::bytes::{Regex, RegexBuilder};

/// A compiled glob: `*` matches any text without `/`, `**` any text; in paths `{id}` matches one segment.
///
/// Common forms are compared directly; others become a regular expression, which takes linear time for any
/// input, because paths come from the network.
#[derive(Clone, Debug)]
pub(super) enum Glob {
    /// `/orders`
    Exact(Box<str>),
    /// `shop.v1.*`: the prefix, and the least number of bytes after it, none of them `/`.
    Within(Box<str>, usize),
    /// `shop.**`
    Any(Box<str>),
    /// `/orders/**`: `/orders` itself, and all paths below it.
    Below(Box<str>),
    /// Anything else.
    Pattern(Regex),
}

#[derive(Clone, Debug, PartialEq)]
enum Piece<'a> {
    Text(&'a str),
    /// `*`
    Within,
    /// `**`
    Any,
    /// `{id}`
    Segment,
    /// `{*rest}`
    Rest,
}

const LONGEST: usize = 1_024;

// === impl Glob ===

impl Glob {
    /// For names and operations, in which braces are ordinary characters: an operation of REST is `GET
    /// /stock/{id}`.
    pub(super) fn name(text: &str) -> Result<Self, String> {
        Self::compile(text, false)
    }

    /// For paths, in which braces mean segments.
    pub(super) fn path(text: &str) -> Result<Self, String> {
        match text.as_bytes() {
            [b'/' | b'*', ..] | [] => Self::compile(text, true),
            _ => Err(format!("`{text}` is no path; it begins with / or *")),
        }
    }

    /// Whether all of `text` matches.
    pub(super) fn matches(&self, text: &str) -> bool {
        match self {
            Glob::Exact(all) => **all == *text,
            Glob::Within(start, least) => text
                .strip_prefix(&**start)
                .is_some_and(|rest| rest.len() >= *least && !rest.as_bytes().contains(&b'/')),
            Glob::Any(start) => text.starts_with(&**start),
            Glob::Below(above) => {
                text.strip_prefix(&**above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }
            Glob::Pattern(pattern) => pattern.is_match(text.as_bytes()),
        }
    }

    fn compile(text: &str, braces: bool) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a glob is not empty; write `**` for anything".to_owned());
        }
        if text.len() > LONGEST {
            return Err(format!("a glob has at most {LONGEST} characters"));
        }
        if let Some(letter) = text.chars().find(|letter| matches!(letter, '?' | '[' | ']' | '\\')) {
            return Err(format!("`{letter}` in `{text}` means nothing: globs have `*` and `**`"));
        }
        let pieces = pieces(text, braces)?;
        Ok(match *pieces {
            [Piece::Text(all)] => Glob::Exact(all.into()),
            [Piece::Within] => Glob::Within("".into(), 0),
            [Piece::Text(start), Piece::Within] => Glob::Within(start.into(), 0),
            [Piece::Text(start), Piece::Segment] => Glob::Within(start.into(), 1),
            [Piece::Any] => Glob::Any("".into()),
            [Piece::Text(start), Piece::Any] => match start.strip_suffix('/') {
                Some(above) => Glob::Below(above.into()),
                None => Glob::Any(start.into()),
            },
            _ => Glob::Pattern(pattern(&pieces).map_err(|why| format!("`{text}` is no glob: {why}"))?),
        })
    }
}

fn pieces(text: &str, braces: bool) -> Result<Vec<Piece<'_>>, String> {
    let mut pieces = Vec::new();
    let mut rest = text;
    let special = |letter: char| letter == '*' || (braces && matches!(letter, '{' | '}'));
    while !rest.is_empty() {
        let (piece, length) = match rest.find(special) {
            Some(0) if rest.starts_with("***") => {
                return Err(format!("`{text}` has more than two `*` in a row"));
            }
            Some(0) if rest.starts_with("**") => (Piece::Any, 2),
            Some(0) if rest.starts_with('*') => (Piece::Within, 1),
            Some(0) => {
                braced(rest).ok_or_else(|| format!("the braces of `{text}` don't match; write {{id}}"))?
            }
            Some(length) => (Piece::Text(&rest[..length]), length),
            None => (Piece::Text(rest), rest.len()),
        };
        if piece == Piece::Rest && length < rest.len() {
            return Err(format!("nothing can follow `{}` in `{text}`", &rest[..length]));
        }
        pieces.push(piece);
        rest = &rest[length..];
    }
    Ok(pieces)
}

/// The segment at the start of `rest`, and its length.
fn braced(rest: &str) -> Option<(Piece<'_>, usize)> {
    let (name, _) = rest.strip_prefix('{')?.split_once('}')?;
    let (piece, word) = match name.strip_prefix('*') {
        Some(word) => (Piece::Rest, word),
        None => (Piece::Segment, name),
    };
    let sound =
        !word.is_empty() && word.chars().all(|letter| letter.is_alphanumeric() || "_-.".contains(letter));
    sound.then_some((piece, name.len() + 2))
}

fn pattern(pieces: &[Piece<'_>]) -> Result<Regex, regex::Error> {
    let mut text = String::from(r"\A");
    for (i, piece) in pieces.iter().enumerate() {
        match piece {
            // Here, too, `/**` at the end also matches the path above it.
            Piece::Text(part) if part.ends_with('/') && pieces[i + 1..] == [Piece::Any] => {
                text += &regex::escape(&part[..part.len() - 1]);
                text += "(?:/.*)?";
                break;
            }
            Piece::Text(part) => text += &regex::escape(part),
            Piece::Within => text += "[^/]*",
            Piece::Any => text += ".*",
            Piece::Segment => text += "[^/]+",
            Piece::Rest => text += ".+",
        }
    }
    text += r"\z";
    RegexBuilder::new(&text).unicode(false).dot_matches_new_line(true).size_limit(1 << 18).build()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(glob: Result<Glob, String>, fits: &[&str], others: &[&str]) {
        let glob = glob.unwrap();
        fits.iter().for_each(|text| assert!(glob.matches(text), "{text} should fit {glob:?}"));
        others.iter().for_each(|text| assert!(!glob.matches(text), "{text} should not fit {glob:?}"));
    }

    #[test]
    fn names() {
        let glob = |text| Glob::name(text);
        check(glob("a.A/B"), &["a.A/B"], &["a.A/C", "a.A/BB", ""]);
        check(glob("a.A/*"), &["a.A/B", "a.A/"], &["a.A", "a.A/B/C", "a.B/B"]);
        check(glob("*"), &["batch", ""], &["a/b"]);
        check(glob("**"), &["a/b", ""], &[]);
        check(glob("a.**"), &["a.A/B", "a."], &["a", "b.A/B"]);
        check(glob("*/Get*"), &["a.A/Get", "b.B/GetAll"], &["a.A/List", "a/b/Get"]);
        check(glob("**.Stock/*"), &["a.v1.Stock/Get", "x/y.Stock/"], &["Stock/Get", "a.Stock/a/b"]);
        check(glob("GET /stock/{id}"), &["GET /stock/{id}"], &["GET /stock/5"]);
        check(glob("GET /stock/**"), &["GET /stock/{id}", "GET /stock"], &["GET /stocks", "PUT /stock/{id}"]);
    }

    #[test]
    fn paths() {
        let glob = |text| Glob::path(text);
        check(glob("/orders/**"), &["/orders", "/orders/", "/orders/1/items"], &["/orders2", "/order"]);
        check(glob("/orders/{id}"), &["/orders/1"], &["/orders/", "/orders", "/orders/1/items"]);
        check(glob("/orders/{id}/items"), &["/orders/1/items"], &["/orders//items", "/orders/1/2/items"]);
        check(glob("/a/{id}/**"), &["/a/1", "/a/1/b/c"], &["/a/", "/a//b"]);
        check(glob("/files/{*rest}"), &["/files/a/b"], &["/files/", "/files"]);
        check(glob("/a+b/*.json"), &["/a+b/x.json"], &["/aab/x.json", "/a+b/x_json", "/a+b/c/x.json"]);
        check(glob("**/items"), &["/items", "/a/b/items"], &["/a/items/b"]);
        check(glob("/ä/*/ö"), &["/ä/ü/ö", "/ä//ö"], &["/ä/u/o"]);
        check(glob("/"), &["/"], &["", "/a"]);
    }

    #[test]
    fn bad_globs() {
        for (text, expected) in [
            ("", "a glob is not empty; write `**` for anything"),
            ("orders", "`orders` is no path; it begins with / or *"),
            ("/a/***", "`/a/***` has more than two `*` in a row"),
            ("/a/{id", "the braces of `/a/{id` don't match; write {id}"),
            ("/a/id}", "the braces of `/a/id}` don't match; write {id}"),
            ("/a/{}", "the braces of `/a/{}` don't match; write {id}"),
            ("/a/{b,c}", "the braces of `/a/{b,c}` don't match; write {id}"),
            ("/{*rest}/b", "nothing can follow `{*rest}` in `/{*rest}/b`"),
            ("/a?b=c", "`?` in `/a?b=c` means nothing: globs have `*` and `**`"),
            ("/[a-z]", "`[` in `/[a-z]` means nothing: globs have `*` and `**`"),
        ] {
            assert_eq!(Glob::path(text).unwrap_err(), expected);
        }
        assert_eq!(Glob::name(&"a".repeat(2_000)).unwrap_err(), "a glob has at most 1024 characters");
    }

    proptest! {
        /// The direct comparisons agree with the regular expression.
        #[test]
        fn shapes_are_patterns(text in "(/|\\*)(a|b|/|\\{x\\}|\\*\\*?/?a?){0,4}", path in "/[ab/]{0,8}") {
            if let Ok(glob) = Glob::path(&text) {
                let by_pattern = pattern(&pieces(&text, true).unwrap()).unwrap().is_match(path.as_bytes());
                prop_assert_eq!(glob.matches(&path), by_pattern, "{} {}", text, path);
            }
        }
    }
}
