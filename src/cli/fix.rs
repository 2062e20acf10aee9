//! Renames deprecated keys in the files of the settings.
use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
    process,
};

use chassis_config::{
    Problem, Renamed, rewritten,
    tree::{Layer, Span},
};
use chassis_core::{adapter::format_of, config::Text, files};

/// Renames the deprecated keys that the warnings are about. Returns a line for each thing that was done or is left to do,
/// and whether something failed.
///
/// Only files are written. The rest of a file stays as it is; it is replaced as a whole, and only if it still has the text that
/// was read.
pub(super) fn files(warnings: &[Problem], renamed: &[Renamed]) -> (Vec<String>, bool) {
    let (mut said, mut has_failed) = (Vec::new(), false);
    let mut texts: BTreeMap<&str, &Span> = BTreeMap::new();
    for warning in warnings {
        let (Some(at), Some(new)) = (&warning.at, &warning.rewrite) else { continue };
        match at.origin.layer {
            Layer::File => drop(texts.insert(&at.origin.name, at)),
            _ => said.push(format!("{at}: not a file: write `{new}` there in place of `{}`", warning.path)),
        }
    }
    for (name, at) in texts {
        let (content, format) = (at.origin.content.clone(), format_of(name));
        let text = Text { content, format, origin: name.to_owned(), revision: None };
        let done = match rewritten(&text, renamed) {
            Ok(Some(content)) => {
                replace(Path::new(name), &text.content, &content).map_err(|error| error.to_string())
            }
            Ok(None) => continue,
            Err(why) => Err(why),
        };
        has_failed |= done.is_err();
        said.push(match done {
            Ok(()) => format!("{name}: keys have their new names"),
            Err(why) => format!("{name}: not written: {why}"),
        });
    }
    (said, has_failed)
}

/// Replaces the content of a file as a whole; its permissions stay, and a link to it too.
fn replace(path: &Path, old: &str, new: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    if files::read(&path, u64::MAX)? != old.as_bytes() {
        return Err(io::Error::other("it has changed meanwhile"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}.new", process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&beside)?;
        file.set_permissions(fs::metadata(&path)?.permissions())?;
        file.write_all(new.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    })();
    if written.is_err() {
        fs::remove_file(&beside).ok(); // it may not be there
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory can be had");
        let (file, link) = (dir.path().join("a.yaml"), dir.path().join("link.yaml"));
        fs::write(&file, "old").expect("it can be written");
        #[cfg(unix)]
        {
            use std::os::unix::fs::{PermissionsExt, symlink};
            fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).expect("it is ours");
            symlink(&file, &link).expect("the directory is ours");
        }
        #[cfg(not(unix))]
        fs::copy(&file, &link).expect("it can be copied");
        let content = || fs::read_to_string(&link).expect("it is there");
        let changed = replace(&link, "other", "new").expect_err("it has another text");
        assert_eq!(
            (changed.to_string(), content()),
            ("it has changed meanwhile".to_owned(), "old".to_owned())
        );
        replace(&link, "old", "new").expect("it is as it was read");
        assert_eq!(content(), "new");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&file).expect("it is there").permissions().mode();
            assert_eq!(
                (mode & 0o777, fs::symlink_metadata(&link).is_ok_and(|link| link.is_symlink())),
                (0o640, true)
            );
        }
        assert_eq!(fs::read_dir(dir.path()).expect("it is there").count(), 2);
    }
}
