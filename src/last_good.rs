//! The last good texts of config centers on disk, for a start while a center is down.
//!
//! A text is kept once a version with it was put in force. It is the text as the center has it: what `${…}` stands for
//! is not written. Files are replaced as a whole, have a checksum, and belong to their user alone.
use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use chassis_config::Environment;
use chassis_core::{
    config::{Format, Text},
    files,
};

/// A directory with a file for each config center.
#[derive(Clone, Debug)]
pub(crate) struct LastGood(PathBuf);

/// A text that was kept, and since when.
#[derive(Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) text: Text,
    pub(crate) age: Duration,
}

/// The first word of each file, with the version of its form.
const MARK: &str = "chassis-last-good-1";
/// The most bytes of a file: the longest text, and its head.
const MOST: u64 = 5 << 20;

// === impl LastGood ===

impl LastGood {
    /// Keeps texts in this directory, which is made when it is needed.
    pub(crate) fn new(directory: impl Into<PathBuf>) -> Self {
        LastGood(directory.into())
    }

    /// The directory of a service, by the environment: `$STATE_DIRECTORY`, which systemd sets, or
    /// `$XDG_STATE_HOME/chassis/NAME`, or `$HOME/.local/state/chassis/NAME`.
    pub(crate) fn of_service(name: &str, environment: &Environment) -> Option<Self> {
        let path = |variable: &str| {
            let first = environment.any(variable)?.split(':').next()?;
            (!first.is_empty()).then(|| PathBuf::from(first))
        };
        let name: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        let state = || path("XDG_STATE_HOME").or_else(|| Some(path("HOME")?.join(".local/state")));
        path("STATE_DIRECTORY").or_else(|| Some(state()?.join("chassis").join(name))).map(LastGood)
    }

    /// Keeps the text of a source, unless it is kept already.
    ///
    /// # Errors
    /// The directory or the file can't be written.
    pub(crate) fn keep(&self, source: &str, text: &Text) -> io::Result<()> {
        if self.read(source).is_ok_and(|kept| kept.is_some_and(|kept| kept.text == *text)) {
            return Ok(());
        }
        self.replace(&file_name(source), &encode(source, text))
    }

    /// Replaces a file as a whole.
    ///
    /// # Errors
    /// The directory or the file can't be written.
    pub(crate) fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        make_directory(&self.0)?;
        let new = self.0.join(format!(".{name}-{:x}.new", std::process::id()));
        let written = write_new(&new, bytes).and_then(|()| fs::rename(&new, self.0.join(name)));
        if written.is_err() {
            fs::remove_file(&new).ok(); // it may not be there
        }
        written?;
        // The name is on disk only once its directory is.
        File::open(&self.0)?.sync_all()
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// The text that was kept of a source; `None` if there is none.
    ///
    /// # Errors
    /// The file can't be read, or is damaged.
    pub(crate) fn read(&self, source: &str) -> Result<Option<Kept>, String> {
        let path = self.path(source);
        let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let bytes = match files::read(&path, MOST) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let text = decode(source, &bytes).ok_or_else(|| failed(&"it is damaged, and is not used"))?;
        let kept_at =
            fs::metadata(&path).and_then(|file| file.modified()).unwrap_or_else(|_| SystemTime::now());
        Ok(Some(Kept { text, age: kept_at.elapsed().unwrap_or_default() }))
    }

    fn path(&self, source: &str) -> PathBuf {
        self.0.join(file_name(source))
    }
}

fn file_name(source: &str) -> String {
    format!("config-{:016x}", checksum(source.as_bytes()))
}

/// A line with a checksum of all that follows, a line of what is known of the text, and the text.
pub(crate) fn encode(source: &str, text: &Text) -> Vec<u8> {
    let format = match text.format {
        Format::Yaml => "yaml",
        Format::Toml => "toml",
        Format::Json => "json",
    };
    let head = serde_json::json!({
        "source": source, "format": format, "origin": text.origin, "revision": text.revision,
    });
    let body = format!("{head}\n{}", text.content);
    format!("{MARK} {:016x}\n{body}", checksum(body.as_bytes())).into_bytes()
}

/// `None` if a byte is not as it was written.
pub(crate) fn decode(source: &str, bytes: &[u8]) -> Option<Text> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (first, body) = text.split_once('\n')?;
    let sum = first.strip_prefix(MARK)?.strip_prefix(' ')?;
    if sum != format!("{:016x}", checksum(body.as_bytes())) {
        return None;
    }
    let (head, content) = body.split_once('\n')?;
    let head: serde_json::Value = serde_json::from_str(head).ok()?;
    let word = |key: &str| head.get(key)?.as_str().map(str::to_owned);
    // Two sources may have one file name.
    if word("source")? != source {
        return None;
    }
    let format = match word("format")?.as_str() {
        "yaml" => Format::Yaml,
        "toml" => Format::Toml,
        "json" => Format::Json,
        _ => return None,
    };
    Some(Text { content: content.to_owned(), format, origin: word("origin")?, revision: word("revision") })
}

/// FNV-1a: it finds damage, and does not protect against forgery.
fn checksum(bytes: &[u8]) -> u64 {
    let mix = |state: u64, byte: &u8| (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix)
}

fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::remove_file(path).ok(); // of a process with this number that was killed
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(content: &str) -> Text {
        let revision = Some("12".to_owned());
        Text { content: content.to_owned(), format: Format::Toml, origin: "etcd:/a@12".to_owned(), revision }
    }

    #[test]
    fn a_text_is_kept_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path().join("state"));
        assert_eq!(last_good.read("a"), Ok(None));
        for content in ["", "a = 1\n\nb = 2", "a = \"\u{e9}\""] {
            last_good.keep("a", &text(content)).unwrap();
            assert_eq!(last_good.read("a").unwrap().unwrap().text, text(content));
        }
        assert_eq!(last_good.read("b"), Ok(None));
        let path = last_good.path("a");
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            assert!(last_good.read("a").unwrap_err().contains("it is damaged"), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(last_good.read("a").is_err(), "cut at {at}");
        }
        last_good.keep("a", &text("a = 2")).unwrap();
        assert_eq!(last_good.read("a").unwrap().unwrap().text, text("a = 2"));
        assert_eq!(fs::read_dir(dir.path().join("state")).unwrap().count(), 1, "nothing else is left");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&path), mode(&dir.path().join("state"))), (0o600, 0o700));
        }
    }

    #[test]
    fn the_environment_says_where() {
        let of = |variables: &[(&str, &str)]| {
            let found = LastGood::of_service("a/b", &Environment::of(variables.iter().copied()));
            found.map(|LastGood(path)| path.display().to_string())
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("HOME", "/x")]).as_deref(), Some("/x/.local/state/chassis/a_b"));
        assert_eq!(of(&[("HOME", "/x"), ("XDG_STATE_HOME", "/y")]).as_deref(), Some("/y/chassis/a_b"));
        assert_eq!(of(&[("HOME", "/x"), ("STATE_DIRECTORY", "/z:/w")]).as_deref(), Some("/z"));
    }
}
