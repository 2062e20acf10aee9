//! The settings below all config centers, and those above them: everything but the centers themselves.
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chassis_config::{Decrypt, DirectorySource, Environment, FileSource, Loader, Overrides, tree::Layer};

/// The settings that are there without a config center.
pub(crate) struct Base {
    pub(crate) program: Vec<serde_json::Value>,
    pub(crate) file: File,
    pub(crate) environment: Environment,
    pub(crate) overrides: Overrides,
    pub(crate) profiles: Vec<String>,
    pub(crate) ciphers: Vec<(String, Arc<dyn Decrypt>)>,
}

/// The file to read.
pub(crate) enum File {
    /// The default file, or the one of the environment variable.
    IfThere,
    At(PathBuf),
    None,
}

/// The default file, which need not exist.
const DEFAULT_FILE: &str = "chassis.yaml";
/// The environment variable with the path of the file.
pub(crate) const FILE_VARIABLE: &str = "CHASSIS_CONFIG";
/// The environment variable with the profile.
pub(crate) const PROFILE_VARIABLE: &str = "CHASSIS_PROFILE";

// === impl Base ===

impl Base {
    /// `loader`, with these settings.
    pub(crate) fn under<D, T>(&self, loader: Loader<D, T>) -> Loader<D, T> {
        let mut loader = loader.environment(self.environment.clone()).overrides(self.overrides.clone());
        for (name, cipher) in &self.ciphers {
            loader = loader.decrypt(name, cipher.clone());
        }
        for settings in &self.program {
            loader = loader.settings(settings);
        }
        let file = |path: &Path| Arc::new(FileSource::new(path));
        let main = match &self.file {
            File::At(path) => {
                loader = loader.source(Layer::File, file(path));
                path.as_path()
            }
            // A default file that exists and can't be read is reported, not ignored.
            File::IfThere => {
                let path = Path::new(DEFAULT_FILE);
                loader = match std::fs::symlink_metadata(path).is_ok() {
                    true => loader.source(Layer::File, file(path)),
                    false => loader.source_if_there(Layer::File, file(path)),
                };
                path
            }
            File::None => return loader,
        };
        loader = loader.directory(Layer::File, DirectorySource::new(main.with_extension("d")));
        for profile in &self.profiles {
            loader = loader.source(Layer::File, file(&beside(main, profile)));
        }
        loader
    }
}

/// The file of a profile: `chassis.prod.yaml` beside `chassis.yaml`.
fn beside(main: &Path, profile: &str) -> PathBuf {
    let extension = main.extension().and_then(|extension| extension.to_str()).unwrap_or("yaml");
    main.with_extension(format!("{profile}.{extension}"))
}

/// The names in `written`, which are separated by commas.
///
/// # Errors
/// A name that can't be part of a file's name.
pub(crate) fn profiles(written: &str) -> Result<Vec<String>, String> {
    let names = written.split(',').map(str::trim).filter(|name| !name.is_empty());
    let odd = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    names
        .map(|name| match name.contains(odd) {
            true => Err(format!("`{name}` is no profile: letters, digits, `-` and `_` are allowed")),
            false => Ok(name.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_stands_beside_the_file() {
        assert_eq!(beside(Path::new("/etc/chassis.toml"), "prod"), Path::new("/etc/chassis.prod.toml"));
        assert_eq!(beside(Path::new("chassis.yaml"), "eu-1"), Path::new("chassis.eu-1.yaml"));
        assert_eq!(profiles(" eu, canary,"), Ok(vec!["eu".to_owned(), "canary".to_owned()]));
        assert_eq!(profiles(""), Ok(Vec::new()));
        assert!(profiles("../prod").is_err() && profiles("a.b").is_err());
    }
}
