//! `${env:NAME:-default}`, `${file:/run/secrets/token}` and ciphers in values.
use std::{
    collections::BTreeMap,
    fmt,
    io::ErrorKind,
    path::{Path as FilePath, PathBuf},
    sync::Arc,
};

use chassis_core::{BoxError, files};

use crate::{
    code::Code,
    env::Environment,
    problem::Problem,
    tree::{Entry, Node, Path, Segment, Value},
};

/// Decrypts values of the settings: `${name:text}` calls the cipher that is registered by this name.
///
/// It is called whenever settings are read, on the thread that reads them. What it returns is treated as a secret: no
/// message, history or listing shows it.
///
/// ```
/// use aes_gcm::{Aes256Gcm, KeyInit, aead::Aead};
/// use base64::{Engine, engine::general_purpose::STANDARD};
/// use chassis_config::Decrypt;
/// use chassis_core::BoxError;
///
/// /// AES-256-GCM: base64 of the 12 bytes of the nonce, then the ciphertext.
/// struct AesGcm(Aes256Gcm);
///
/// impl Decrypt for AesGcm {
///     fn decrypt(&self, text: &str) -> Result<String, BoxError> {
///         let bytes = STANDARD.decode(text)?;
///         let (nonce, sealed) = bytes.split_at_checked(12).ok_or("it is shorter than its nonce")?;
///         let nonce = nonce.try_into().map_err(|_| "a nonce has 12 bytes")?;
///         let plain = self.0.decrypt(nonce, sealed).map_err(|_| "it was sealed with another key, or changed")?;
///         Ok(String::from_utf8(plain)?)
///     }
/// }
///
/// let cipher = Aes256Gcm::new(&[7; 32].into());
/// let nonce = [1; 12];
/// let sealed = cipher.encrypt(&nonce.into(), b"hunter2".as_slice()).unwrap();
/// let text = STANDARD.encode([nonce.as_slice(), &sealed].concat());
/// assert_eq!(AesGcm(cipher).decrypt(&text).unwrap(), "hunter2");
/// assert!(AesGcm(Aes256Gcm::new(&[8; 32].into())).decrypt(&text).is_err());
/// ```
pub trait Decrypt: Send + Sync + 'static {
    /// The plain text of `text`.
    ///
    /// # Errors
    /// The reason, which messages show: it must not contain the text or the key.
    fn decrypt(&self, text: &str) -> Result<String, BoxError>;
}

/// The ciphers, by name.
#[derive(Clone, Default)]
pub(crate) struct Ciphers(BTreeMap<String, Arc<dyn Decrypt>>);

/// A tree with all references replaced.
pub(crate) struct Resolved {
    pub(crate) tree: Node,
    pub(crate) problems: Vec<Problem>,
    /// The files that were read, with their contents; `None` if a file could not be read.
    pub(crate) files: BTreeMap<PathBuf, Option<String>>,
}

/// The sources that the references of a text may name.
struct Allowed<'a> {
    environment: &'a Environment,
    ciphers: &'a Ciphers,
    /// The text is of a writer who may not read files and variables of this process.
    is_foreign: bool,
}

/// The beginning of a reference; `$${` stands for itself.
const OPEN: &str = "${";
/// The separator of a reference and its default.
const DEFAULT: &str = ":-";
/// The most bytes of a file that a value is read from.
const MOST: u64 = 1 << 20;

// === impl Ciphers ===

impl Ciphers {
    pub(crate) fn add(&mut self, name: &str, cipher: Arc<dyn Decrypt>) {
        self.0.insert(name.to_owned(), cipher);
    }
}

impl fmt::Debug for Ciphers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

// === impl Resolved ===

impl Resolved {
    /// Replaces all references in `tree`, also those that were replaced before: files are read again.
    pub(crate) fn of(tree: &Node, environment: &Environment, ciphers: &Ciphers) -> Self {
        let mut found = Resolved { tree: tree.clone(), problems: Vec::new(), files: BTreeMap::new() };
        let mut tree = std::mem::replace(&mut found.tree, Node::new(Value::Null, tree.at.clone()));
        found.replace(&mut tree, &mut Path::default(), environment, ciphers);
        found.tree = tree;
        found
    }

    fn replace(&mut self, node: &mut Node, path: &mut Path, environment: &Environment, ciphers: &Ciphers) {
        match &mut node.value {
            Value::Null => {}
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    path.0.push(Segment::Index(index));
                    self.replace(item, path, environment, ciphers);
                    path.0.pop();
                }
            }
            Value::Map(entries) => {
                for Entry { key, node, .. } in entries {
                    path.0.push(Segment::Key(key.clone()));
                    self.replace(node, path, environment, ciphers);
                    path.0.pop();
                }
            }
            Value::Plain(text) | Value::Quoted(text) => {
                let written = node.written.as_deref().unwrap_or(text);
                if !written.contains(OPEN) {
                    return;
                }
                let written: Arc<str> = written.into();
                let is_whole = written.starts_with(OPEN) && written.find('}') == Some(written.len() - 1);
                let from = Allowed { environment, ciphers, is_foreign: !node.at.origin.has_references };
                match self.expand(&written, &from) {
                    // A number from the environment may stand where quotes are needed for the braces.
                    Ok(expanded) if is_whole => node.value = Value::Plain(expanded),
                    Ok(expanded) => *text = expanded,
                    Err(why) => self.problems.push(
                        Problem::error(path.clone(), Some(node.at.clone()), why).coded(Code::Reference),
                    ),
                }
                node.written = Some(written);
            }
        }
    }

    fn expand(&mut self, written: &str, from: &Allowed<'_>) -> Result<String, String> {
        let (mut expanded, mut rest) = (String::new(), written);
        while let Some(at) = rest.find(OPEN) {
            if rest[..at].ends_with('$') {
                expanded.push_str(&rest[..at - 1]);
                expanded.push_str(OPEN);
                rest = &rest[at + OPEN.len()..];
                continue;
            }
            expanded.push_str(&rest[..at]);
            let inner = &rest[at + OPEN.len()..];
            let (reference, after) = inner
                .split_once('}')
                .ok_or("a `${` is never closed; write `$${` for the characters themselves")?;
            expanded.push_str(&self.look_up(reference, from)?);
            rest = after;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }

    fn look_up(
        &mut self,
        reference: &str,
        Allowed { environment, ciphers, is_foreign }: &Allowed<'_>,
    ) -> Result<String, String> {
        let (kind, rest) = reference.split_once(':').unwrap_or((reference, ""));
        if let Some(cipher) = ciphers.0.get(kind) {
            // A cipher is code of another crate: it may panic.
            let plain = chassis_core::tasks::catch(|| cipher.decrypt(rest));
            let plain = plain.map_err(|panicked| format!("`{kind}` can't decrypt this: {panicked}"))?;
            return plain.map_err(|error| format!("`{kind}` can't decrypt this: {error}"));
        }
        let (name, default) = match rest.split_once(DEFAULT) {
            Some((name, default)) => (name, Some(default)),
            None => (rest, None),
        };
        match kind {
            "env" | "file" if *is_foreign => Err(format!(
                "a config center may not refer to files and variables of this process; `references: true` beside its \
                 `kind` allows it, and `$${{{kind}:` stands for the characters themselves"
            )),
            "env" => {
                let value = environment.any(name).filter(|value| !value.is_empty()).or(default);
                value.map(str::to_owned).ok_or_else(|| format!("the environment has no variable `{name}`"))
            }
            "file" => self.file(FilePath::new(name), default),
            _ => {
                let known = ["env", "file"].into_iter().chain(ciphers.0.keys().map(String::as_str));
                let known: Vec<_> = known.map(|name| format!("`{name}`")).collect();
                Err(format!(
                    "`${{{kind}:` is not known here; there are {}; write `$${{` for the characters themselves",
                    known.join(", ")
                ))
            }
        }
    }

    fn file(&mut self, path: &FilePath, default: Option<&str>) -> Result<String, String> {
        let read = match self.files.get(path).cloned().flatten() {
            Some(read) => Ok(read),
            None => read_value(path),
        };
        self.files.insert(path.to_owned(), read.as_ref().ok().cloned());
        match (read, default) {
            (Ok(text), _) => Ok(text),
            (Err(error), Some(default)) if error.kind() == ErrorKind::NotFound => Ok(default.to_owned()),
            (Err(error), _) => Err(format!("{}: {error}", path.display())),
        }
    }
}

/// The text of a file, without the line ends behind it.
pub(crate) fn read_value(path: &FilePath) -> std::io::Result<String> {
    let text =
        String::from_utf8(files::read(path, MOST)?).map_err(|_| std::io::Error::other("it is not UTF-8"))?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use chassis_core::config::{Format, Text};

    use super::*;
    use crate::tree::Layer;

    struct Backwards;

    impl Decrypt for Backwards {
        fn decrypt(&self, text: &str) -> Result<String, BoxError> {
            match text {
                "" => Err("it is empty".into()),
                "!" => panic!("out of cheese"),
                text => Ok(text.chars().rev().collect()),
            }
        }
    }

    fn resolved(content: &str) -> Resolved {
        let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
        let tree = crate::parse(&text, Layer::File).expect("the test's YAML is sound");
        let mut ciphers = Ciphers::default();
        ciphers.add("back", Arc::new(Backwards));
        Resolved::of(&tree, &Environment::of([("HOST", "stock"), ("EMPTY", "")]), &ciphers)
    }

    #[track_caller]
    fn check(content: &str, expected: &str) {
        let Resolved { mut tree, problems, .. } = resolved(content);
        assert_eq!(problems, []);
        assert_eq!(tree.value.to_string(), content, "what is shown is the text before");
        bare(&mut tree);
        assert_eq!(tree.value.to_string(), expected);
    }

    /// Without the texts before, which are shown in place of the values.
    fn bare(node: &mut Node) {
        node.written = None;
        match &mut node.value {
            Value::Map(entries) => entries.iter_mut().for_each(|entry| bare(&mut entry.node)),
            Value::List(items) => items.iter_mut().for_each(bare),
            _ => {}
        }
    }

    #[track_caller]
    fn refused(content: &str, expected: &str) {
        let problems: Vec<_> = resolved(content).problems.iter().map(Problem::without_code).collect();
        assert_eq!(problems, [expected]);
    }

    #[test]
    fn references_are_replaced() {
        check(r#"{ a: "${env:HOST}" }"#, "{ a: stock }");
        check(r#"{ a: "http://${env:HOST}:${env:PORT:-80}/" }"#, "{ a: http://stock:80/ }");
        check(r#"{ a: ["${env:EMPTY:-x}", "${env:NONE:-}"] }"#, "{ a: [x, ] }");
        check(r#"{ a: "$${env:HOST}" }"#, r#"{ a: "${env:HOST}" }"#);
        check(r#"{ a: "${back:2retnuh}" }"#, "{ a: hunter2 }");
        check(r#"{ a: "${file:/nonesuch/file:-x}" }"#, "{ a: x }");
    }

    #[test]
    fn references_that_lead_nowhere_are_refused() {
        refused("a: ${env:NONE}", "c:1:4 a: the environment has no variable `NONE`");
        refused(
            "a: ${env:HOST",
            "c:1:4 a: a `${` is never closed; write `$${` for the characters themselves",
        );
        refused("a: ${back:}", "c:1:4 a: `back` can't decrypt this: it is empty");
        refused("a: ${back:!}", "c:1:4 a: `back` can't decrypt this: it panicked: out of cheese");
        let unknown = "c:1:4 a: `${vault:` is not known here; there are `env`, `file`, `back`; write `$${` for the \
                       characters themselves";
        refused("a: ${vault:x}", unknown);
        let problems = resolved("a: ${file:/nonesuch/file}").problems;
        assert!(problems[0].message.starts_with("/nonesuch/file: No such file"), "{problems:?}");
    }
}
