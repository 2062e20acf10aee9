//! Problems of a document, with all that is needed to correct it: position, message, and the likely intended
//! word.
use std::fmt;

use chassis_core::nearest;

use crate::{
    code::Code,
    secret,
    tree::{Layer, Path, Segment, Span},
};

/// An error or a warning at one position.
///
/// `Display` quotes the line and marks the position; [`in_a_line`](Problem::in_a_line) is for logs.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Whether the document may still be used.
    pub severity: Severity,
    /// Its code, which `docs/errors.md` explains.
    pub code: Code,
    /// The key, if the text could be read that far.
    pub path: Path,
    /// The position; `None` if nothing was written.
    pub at: Option<Span>,
    /// The message.
    pub message: String,
    /// The values that are allowed there, if they are known.
    pub allowed: Vec<String>,
    /// The allowed value that was probably meant.
    pub nearest: Option<String>,
    /// The key that is to be written at the position instead, if that is certain: `--check-config --fix` writes it.
    pub rewrite: Option<String>,
}

/// Whether a document with this problem is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is used; the problem is logged.
    Warning,
}

/// The quoted line is cut to this many characters around the position.
const QUOTED: usize = 120;

// === impl Problem ===

impl Problem {
    /// A problem that rejects the document. Its code is [`Code::WrongValue`] until [`coded`](Problem::coded).
    pub fn error(path: Path, at: Option<Span>, message: impl Into<String>) -> Self {
        Problem {
            severity: Severity::Error,
            code: Code::WrongValue,
            path,
            at,
            message: message.into(),
            allowed: Vec::new(),
            nearest: None,
            rewrite: None,
        }
    }

    /// A problem that does not reject the document.
    pub fn warning(path: Path, at: Option<Span>, message: impl Into<String>) -> Self {
        Problem { severity: Severity::Warning, ..Problem::error(path, at, message) }
    }

    /// Gives it a code.
    pub fn coded(self, code: Code) -> Self {
        Problem { code, ..self }
    }

    /// Adds the `allowed` values, and suggests the one most like `found`.
    pub fn instead(mut self, found: &str, allowed: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.allowed = allowed.into_iter().map(Into::into).collect();
        self.nearest = nearest(found, self.allowed.iter().map(String::as_str)).map(str::to_string);
        self
    }

    /// Whether a key is not known there.
    pub fn is_unknown_key(&self) -> bool {
        matches!(self.code, Code::UnknownKey | Code::UnknownVariable)
    }

    /// Whether the document is refused.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// `C002 chassis.yaml:14:16 outbound.defaults.retry.atempts: unknown key; did you mean …`
    pub fn in_a_line(&self) -> String {
        format!("{} {}", self.code, self.without_code())
    }

    pub(crate) fn without_code(&self) -> String {
        let place = self.at.as_ref().map(Span::to_string);
        let path = (!self.path.0.is_empty()).then(|| self.path.to_string());
        let mut words: Vec<String> = [place, path].into_iter().flatten().collect();
        if let Some(last) = words.last_mut() {
            last.push(':');
        }
        words.push(self.said());
        words.join(" ")
    }

    fn said(&self) -> String {
        let message: String = self.message.chars().map(harmless).collect();
        match &self.nearest {
            Some(nearest) => format!("{message}; did you mean `{nearest}`?"),
            None => message,
        }
    }

    /// The quoted line, with secrets masked, and the column that the position has in it.
    fn quote(&self) -> Option<(String, usize)> {
        let at = self.at.as_ref().filter(|at| at.line > 0)?;
        let mut line: Vec<char> = secret::mask_line(at.origin.line(at.line)?).chars().collect();
        if self.path.is_secret() {
            let pointed: String = line.iter().skip(at.column - 1).take(at.length).collect();
            let is_key = matches!(self.path.0.last(), Some(Segment::Key(key)) if *key == pointed);
            let start = at.column - 1 + if is_key { at.length + 1 } else { 0 };
            line.iter_mut().skip(start).filter(|c| !c.is_whitespace()).for_each(|c| *c = '*');
        }
        line.iter_mut().for_each(|c| *c = harmless(*c));
        // Cut a long line to the surroundings of the position.
        let start = if line.len() > QUOTED { at.column.saturating_sub(QUOTED / 2) } else { 0 };
        let end = line.len().min(start + QUOTED);
        let mut shown: String = line[start.min(end)..end].iter().collect();
        let mut column = at.column - start;
        if start > 0 {
            (shown, column) = (format!("\u{2026}{shown}"), column + 1);
        }
        if end < line.len() {
            shown.push('\u{2026}');
        }
        Some((shown.trim_end().to_string(), column))
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}[{}]:", self.code)?;
        if let Some(at) = &self.at {
            write!(f, " {at}")?;
        }
        if !self.path.0.is_empty() {
            write!(f, "{} {}", if self.at.is_some() { " " } else { "" }, self.path)?;
        }
        writeln!(f)?;
        match (self.quote(), &self.at) {
            (Some((line, column)), Some(at)) => {
                let number = match at.origin.layer {
                    Layer::Environment | Layer::Set => String::new(),
                    _ => at.line.to_string(),
                };
                let room = (line.chars().count() + 1).saturating_sub(column).max(1);
                let (pad, marks) = (" ".repeat(column - 1), "^".repeat(at.length.min(room)));
                writeln!(f, "{number:>5} | {line}")?;
                write!(f, "{:>5} | {pad}{marks} {}", "", self.said())?;
            }
            _ => write!(f, "   {}", self.said())?,
        }
        if !self.allowed.is_empty() {
            write!(f, "\n   allowed: {}", self.allowed.join(", "))?;
        }
        Ok(())
    }
}

/// Replaces characters that could move a terminal's cursor or reverse the text.
fn harmless(c: char) -> char {
    match c {
        '\t' => '\u{2192}',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}
