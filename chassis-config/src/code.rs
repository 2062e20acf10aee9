//! Codes of problems, which the page `docs/errors.md` explains.
use std::fmt;

/// The code of a problem: `C002`. Each has a section in `docs/errors.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Code {
    /// `C001`: a text is not valid YAML, TOML or JSON.
    Syntax,
    /// `C002`: a key is not known.
    UnknownKey,
    /// `C003`: a word is none of those that are allowed.
    UnknownWord,
    /// `C004`: a key is missing.
    Missing,
    /// `C005`: a value has another type than its key requires.
    WrongType,
    /// `C006`: a value has the right type, and is not allowed.
    WrongValue,
    /// `C007`: values are allowed one by one, and do not fit together.
    Conflict,
    /// `C008`: a reference `${…}` leads nowhere.
    Reference,
    /// `C009`: two environment variables set one value.
    VariableTwice,
    /// `C010`: an environment variable overrides a value. A warning.
    Hidden,
    /// `C011`: an environment variable means no setting. A warning.
    UnknownVariable,
    /// `C012`: the path of a single setting can't be read.
    SetPath,
    /// `C013`: a text is too long, too deep, or has too many values.
    TooLarge,
    /// `C014`: a source can't be read.
    Unreadable,
    /// `C015`: a key has a new name. A warning.
    Deprecated,
}

// === impl Code ===

impl Code {
    /// All codes, in the order of their numbers.
    pub const ALL: [Code; 15] = [
        Code::Syntax,
        Code::UnknownKey,
        Code::UnknownWord,
        Code::Missing,
        Code::WrongType,
        Code::WrongValue,
        Code::Conflict,
        Code::Reference,
        Code::VariableTwice,
        Code::Hidden,
        Code::UnknownVariable,
        Code::SetPath,
        Code::TooLarge,
        Code::Unreadable,
        Code::Deprecated,
    ];

    /// The code that is written `C002`, in any case.
    pub fn of(written: &str) -> Option<Self> {
        Code::ALL.into_iter().find(|code| code.to_string().eq_ignore_ascii_case(written.trim()))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "C{:03}", *self as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_numbered_in_their_order() {
        for (at, code) in Code::ALL.into_iter().enumerate() {
            assert_eq!(
                (code.to_string(), Code::of(&code.to_string())),
                (format!("C{:03}", at + 1), Some(code))
            );
        }
        assert_eq!((Code::of("c002"), Code::of("C999")), (Some(Code::UnknownKey), None));
    }
}
