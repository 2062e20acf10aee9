//! The directory of the lease files, and the file names of services and instances.
use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use chassis_core::registry::RegistryError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// A directory that only this user can read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dir {
    path: PathBuf,
    /// The user id of this process, as the kernel stores it on new files.
    user: u32,
}

/// Most file systems limit a file name to 255 bytes; this leaves room for `.json`.
const MAX_NAME: usize = 240;

// === impl Dir ===

impl Dir {
    /// `$XDG_RUNTIME_DIR/chassis`, which the system removes at logout. If the variable is not set, or the
    /// directory is another user's (as under `sudo -E`): `chassis-<uid>` in the directory for temporary
    /// files.
    pub(super) fn default_path() -> Result<PathBuf, RegistryError> {
        default_path(env::var_os("XDG_RUNTIME_DIR"), &env::temp_dir())
    }

    /// Creates the directory if it is missing, and checks that only this user can access it.
    pub(super) fn open(path: &Path) -> Result<Dir, RegistryError> {
        let path: PathBuf = path.components().collect(); // no trailing slash: it would follow a symlink
        let failed = |e: io::Error| unusable(&path, "can't be written to").with_source(e);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let metadata = fs::symlink_metadata(&path).map_err(failed)?;
        // Checked before anything is written there, and once more when the user id is known.
        refuse(&metadata, metadata.uid()).map_err(|why| unusable(&path, why))?;
        let user = user_of_new_files(&path).map_err(failed)?;
        let dir = Dir { path, user };
        dir.check()?;
        Ok(dir)
    }

    /// Checks that the path is still the same directory: after a removal any user may create another one
    /// there. A missing directory is safe.
    pub(super) fn check(&self) -> Result<(), RegistryError> {
        match fs::symlink_metadata(&self.path) {
            Ok(metadata) => refuse(&metadata, self.user).map_err(|why| unusable(&self.path, why)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(unusable(&self.path, "can't be read").with_source(e)),
        }
    }

    /// The directory with the lease files of `service`.
    pub(super) fn service(&self, service: &str) -> Result<PathBuf, RegistryError> {
        Ok(self.path.join(file_name(service)?))
    }

    /// The path of an instance's lease file.
    pub(super) fn instance(&self, service: &str, id: &str) -> Result<PathBuf, RegistryError> {
        Ok(self.service(service)?.join(format!("{}.json", file_name(id)?)))
    }

    /// The services that have a directory, with or without running instances.
    pub(super) fn services(&self) -> Result<Vec<String>, RegistryError> {
        self.check()?;
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(unusable(&self.path, "can't be read").with_source(e)),
        };
        Ok(entries.flatten().filter_map(|entry| name(entry.file_name().to_str()?)).collect())
    }
}

fn default_path(runtime_dir: Option<OsString>, temp_dir: &Path) -> Result<PathBuf, RegistryError> {
    if let Some(runtime_dir) = runtime_dir.map(PathBuf::from).filter(|dir| dir.is_absolute()) {
        let user = user_of_new_files(&runtime_dir).ok();
        if user.is_some() && user == fs::metadata(&runtime_dir).map(|m| m.uid()).ok() {
            return Ok(runtime_dir.join("chassis"));
        }
    }
    let user = user_of_new_files(temp_dir).map_err(|e| {
        RegistryError::new(format!("{} can't be written to", temp_dir.display())).with_source(e)
    })?;
    Ok(temp_dir.join(format!("chassis-{user}")))
}

fn unusable(path: &Path, why: &str) -> RegistryError {
    RegistryError::new(format!(
        "the directory {} {why}; name another one in `registry: {{ dir }}`",
        path.display()
    ))
}

fn refuse(metadata: &fs::Metadata, user: u32) -> Result<(), &'static str> {
    match metadata {
        m if m.is_symlink() => Err("is a symbolic link"),
        m if !m.is_dir() => Err("is no directory"),
        m if m.uid() != user => Err("belongs to another user"),
        m if m.mode() & 0o077 != 0 => Err("is open to others (chmod 700 it)"),
        _ => Ok(()),
    }
}

/// The user id of this process. The standard library has no call for it; the owner of a new file is the same
/// id.
fn user_of_new_files(dir: &Path) -> io::Result<u32> {
    let path = temp_path(dir);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let user = file.metadata().map(|metadata| metadata.uid());
    fs::remove_file(&path)?;
    user
}

/// A unique path for a temporary file; its leading dot separates it from every entry. It contains the time
/// because process ids repeat, in a container almost always.
pub(super) fn temp_path(dir: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let (process, number) = (process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.as_nanos());
    dir.join(format!("{TEMP_PREFIX}{process}-{number}-{now}"))
}

pub(super) const TEMP_PREFIX: &str = ".tmp-chassis-";

// === names ===

/// The characters that are percent-encoded in a file name, apart from a leading `.`.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// `name` as one path component: `%XX` for every byte that is no letter, digit, `-`, `_` or inner `.`.
pub(super) fn file_name(name: &str) -> Result<String, RegistryError> {
    let mut encoded = utf8_percent_encode(name, RESERVED).to_string();
    if encoded.starts_with('.') {
        encoded.replace_range(..1, "%2E");
    }
    match encoded.len() {
        0 => Err(RegistryError::new("an empty name")),
        1..=MAX_NAME => Ok(encoded),
        _ => Err(RegistryError::new(format!("the name `{}…` is too long for a file", start(name)))),
    }
}

fn start(name: &str) -> String {
    name.chars().take(32).collect()
}

/// The name that [`file_name`] encoded as `encoded`; `None` if no name has this encoding.
fn name(encoded: &str) -> Option<String> {
    let name = percent_decode_str(encoded).decode_utf8().ok()?.into_owned();
    (file_name(&name).ok()? == encoded).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn every_name_is_one_component_of_a_path_and_comes_back() {
        let dots = ["..", ".", "../x", ".hidden", "a.b.C"];
        let slashes = ["/", "/etc/passwd", "a/b", "a\\b", "~"];
        let odd = ["stock", "a\0b", "%", "%2e", "naïve 名", "new\nline", "*", " "];
        for plain in dots.into_iter().chain(slashes).chain(odd) {
            let encoded = file_name(plain).unwrap();
            assert_eq!(Path::new(&encoded).components().count(), 1, "{encoded}");
            assert!(!encoded.starts_with('.') && !encoded.contains(['/', '\0']), "{encoded}");
            assert_eq!(name(&encoded).as_deref(), Some(plain));
        }
        assert_eq!(file_name("stock.v1.Stock").unwrap(), "stock.v1.Stock");
        assert_eq!(file_name("../x").unwrap(), "%2E.%2Fx");
        for none in ["%", "%2", "%zz", "%41", ".tmp-chassis-1-1", "a b", "%FF", ""] {
            assert_eq!(name(none), None, "{none}");
        }
        assert!(file_name("").is_err());
        assert!(file_name(&"x".repeat(240)).is_ok());
        assert!(file_name(&"x".repeat(241)).unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_new_directory_is_ours_alone() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("run/chassis");
        let dir = Dir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().mode() & 0o777, 0o700);
        assert_eq!(Dir::open(&path).unwrap(), dir);
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0, "nothing is left behind");
    }

    #[test]
    fn a_directory_that_others_can_reach_is_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("chassis");
        let dir = Dir::open(&path).unwrap();
        for mode in [0o750, 0o705, 0o701, 0o777] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert!(Dir::open(&path).unwrap_err().to_string().contains("is open to others"), "{mode:o}");
            assert!(dir.check().is_err(), "{mode:o}, later");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        let another = Dir { user: dir.user + 1, ..dir };
        assert!(another.check().unwrap_err().to_string().contains("belongs to another user"));

        symlink(&path, temp.path().join("link")).unwrap();
        for link in ["link", "link/"] {
            let refused = Dir::open(&temp.path().join(link)).unwrap_err();
            assert!(refused.to_string().contains("is a symbolic link"), "{refused}");
        }
        fs::write(temp.path().join("file"), "").unwrap();
        assert!(Dir::open(&temp.path().join("file")).is_err());
    }

    #[test]
    fn the_default_is_the_users_own() {
        let temp = tempfile::tempdir().unwrap();
        let runtime = temp.path().join("runtime");
        fs::create_dir(&runtime).unwrap();
        let user = fs::metadata(&runtime).unwrap().uid();
        let fallback = temp.path().join(format!("chassis-{user}"));

        let path = |runtime: Option<&Path>| default_path(runtime.map(Into::into), temp.path()).unwrap();
        assert_eq!(path(Some(&runtime)), runtime.join("chassis"));
        assert_eq!(path(None), fallback);
        assert_eq!(path(Some(Path::new("/nowhere/to/be/found"))), fallback);
        assert_eq!(path(Some(Path::new("relative"))), fallback);
        assert!(default_path(None, Path::new("/nowhere/to/be/found")).is_err());
    }
}
