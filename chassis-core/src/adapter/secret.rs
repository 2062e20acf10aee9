//! A secret of an adapter: where it stands, never what it is.
use std::{io, path::PathBuf};

use crate::{files, rule::Problem};

/// Where a password or a token stands: in a file, or in a variable of the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretSource {
    /// The file, a regular one of at most 1 MiB; white space around the secret is left out.
    pub file: Option<PathBuf>,
    /// The environment variable.
    pub env: Option<String>,
}

/// A larger file holds no password or token.
const MAX_FILE: u64 = 1 << 20;

// === impl SecretSource ===

impl SecretSource {
    /// Is one of both set?
    pub fn is_set(&self) -> bool {
        self.file.is_some() || self.env.is_some()
    }

    /// Refuses that both are set. `name` is the first part of their keys: `password` of `password_file` and
    /// `password_env`.
    pub fn check(&self, name: &str) -> Option<Problem> {
        let both = self.file.is_some() && self.env.is_some();
        both.then(|| {
            Problem::new(format!("{name}_env"), format!("`{name}_file` is set as well; use one of them"))
        })
    }

    /// Reads it anew, so that it can be changed in its file. `None`: neither is set.
    ///
    /// # Errors
    /// Why it can't be read, with the path or the variable.
    pub async fn read(&self) -> Result<Option<String>, String> {
        if let Some(path) = &self.file {
            let at = path.clone();
            let read = tokio::task::spawn_blocking(move || files::read(&at, MAX_FILE)).await;
            let read = read.map_err(io::Error::other).and_then(|read| read);
            let text = read.and_then(|read| {
                // The error would show the secret.
                String::from_utf8(read).map_err(|_| io::Error::other("it is not UTF-8"))
            });
            let read = text.map_err(|error| format!("{}: {error}", path.display()))?;
            return Ok(Some(read.trim().to_owned()));
        }
        let Some(variable) = &self.env else { return Ok(None) };
        let found = std::env::var(variable);
        found.map(Some).map_err(|_| format!("the environment has no variable `{variable}`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_is_read_from_where_it_stands() {
        assert_eq!(SecretSource::default().read().await, Ok(None));
        let missing = |file: Option<&str>, env: Option<&str>| SecretSource {
            file: file.map(Into::into),
            env: env.map(Into::into),
        };
        assert!(missing(Some("/nowhere/x"), None).read().await.unwrap_err().starts_with("/nowhere/x: "));
        assert!(missing(None, Some("NO_SUCH_VARIABLE_1")).read().await.unwrap_err().contains("NO_SUCH"));
        // A device, or a pipe, could block the thread for ever.
        assert!(missing(Some("/dev/zero"), None).read().await.unwrap_err().contains("no regular file"));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, " secret\n").unwrap();
        assert_eq!(missing(path.to_str(), None).read().await, Ok(Some("secret".to_owned())));
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(missing(path.to_str(), None).read().await.unwrap_err().contains("too many"));
        let both = missing(Some("x"), Some("X")).check("token").map(|problem| problem.path);
        assert_eq!(both.as_deref(), Some("token_env"));
    }
}
