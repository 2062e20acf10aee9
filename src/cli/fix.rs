//! Renames deprecated keys in the files of the settings.
use std::{
    collections::BTreeMap,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use chassis_config::{
    Problem, Renamed, rewritten,
    tree::{Layer, Span},
};
use chassis_core::{Random, adapter::format_of, config::Text, files};

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

/// Replaces the content of a file as a whole; its owner, group and permissions stay, and a link to it too.
fn replace(path: &Path, old: &str, new: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    if files::read(&path, u64::MAX)? != old.as_bytes() {
        return Err(io::Error::other("it has changed meanwhile"));
    }
    let (mut file, beside) = beside(&path, &Random::from_os())?;
    let written = (|| {
        let before = fs::metadata(&path)?;
        keep_owner(&file, &before)?;
        file.set_permissions(before.permissions())?; // after the owner, whose change can take some of them away
        file.write_all(new.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    })();
    match &written {
        Ok(()) => sync_directory(&path),
        Err(_) => drop(fs::remove_file(&beside)), // ours, for it was created here
    }
    written
}

/// A new file beside `path`, which its owner alone may open.
fn beside(path: &Path, random: &Random) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{:016x}.new", random.next_u64()));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    Ok((options.open(&beside)?, beside))
}

/// Gives the file the owner and the group of another one.
#[cfg(unix)]
fn keep_owner(file: &File, before: &Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let new = file.metadata()?;
    let (uid, gid) = (before.uid(), before.gid());
    if (new.uid(), new.gid()) == (uid, gid) {
        return Ok(());
    }
    let refused = |error: io::Error| {
        io::Error::new(error.kind(), format!("its owner {uid}:{gid} can't be kept: {error}"))
    };
    fchown(file, Some(uid), Some(gid)).map_err(refused)
}

#[cfg(not(unix))]
fn keep_owner(_: &File, _: &Metadata) -> io::Result<()> {
    Ok(())
}

/// Has the new name on the disk. Without that a power failure leaves the old file or the new one, each of them whole; so
/// a directory that can't be synced is no error.
fn sync_directory(path: &Path) {
    if let Some(Ok(directory)) = path.parent().map(File::open) {
        directory.sync_all().ok();
    }
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

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_keeps_its_owner() {
        use std::os::unix::fs::{MetadataExt, chown};
        let dir = tempfile::tempdir().expect("a directory can be had");
        let file = dir.path().join("a.yaml");
        fs::write(&file, "old").expect("it can be written");
        // Only root may give a file away; for others it is their own, whose owner stays just as well.
        let is_root = chown(&file, Some(4_242), Some(2_424)).is_ok();
        let owner = |path: &Path| fs::metadata(path).map(|of| (of.uid(), of.gid())).expect("it is there");
        let before = owner(&file);
        replace(&file, "old", "new").expect("it is as it was read");
        assert_eq!((owner(&file), before == (4_242, 2_424)), (before, is_root));

        // The owner of the root directory can't be had without being root, and then the file is refused.
        let other = fs::metadata("/").expect("it is there");
        let (new, path) = beside(&file, &Random::seeded(1)).expect("it can be created");
        match keep_owner(&new, &other) {
            Ok(()) => assert_eq!(owner(&path), (other.uid(), other.gid())),
            Err(error) => assert!(!is_root && error.to_string().contains("can't be kept"), "{error}"),
        }
    }

    #[test]
    fn a_file_of_another_is_not_taken_for_the_new_one() {
        let dir = tempfile::tempdir().expect("a directory can be had");
        let file = dir.path().join("a.yaml");
        let (_, first) = beside(&file, &Random::seeded(1)).expect("it can be created");
        fs::write(&first, "another's").expect("it can be written");
        let taken = beside(&file, &Random::seeded(1)).expect_err("the name is taken");
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&first).ok().as_deref(), Some("another's"));
    }
}
