//! The port for contracts: descriptions of the interfaces of services, which other services can fetch.
use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;

use crate::BoxError;

/// A description of an interface: a set of protobuf descriptors, an OpenAPI text, or another named document.
///
/// ```
/// use chassis_core::contracts::{Contract, OPENAPI_YAML};
///
/// let contract = Contract::openapi("orders", "openapi: 3.1.0\n");
/// assert_eq!((contract.media_type.as_str(), contract.check().is_ok()), (OPENAPI_YAML, true));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// Unique among the contracts of one owner: 1 to 80 ASCII letters and digits, and within also `-`, `_` and `.`.
    pub name: String,
    /// The kind of the document, such as [`FILE_DESCRIPTOR_SET`]: at most 128 printable ASCII characters, with a slash.
    pub media_type: String,
    /// The document itself: 1 byte to [`MAX_CONTENT`].
    pub content: Bytes,
}

/// Whose contracts: one version of a service in one environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContractOwner {
    /// The name of the service, which is not empty. At most 256 bytes, as the other two.
    pub service: String,
    /// Its version; may be empty.
    pub version: String,
    /// Its environment; may be empty.
    pub environment: String,
}

/// A published contract without its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContractEntry {
    /// Its name.
    pub name: String,
    /// A text that differs whenever the content does, and is the same while nothing changes. It has no further meaning.
    pub etag: String,
}

/// The treatment of a contract that is published under the same name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It is replaced if its content or its media type differs. An equal one is not sent again.
    Replace,
    /// It stays, whatever its content.
    Keep,
}

/// An error of the port.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ContractsError {
    kind: ContractsErrorKind,
    message: String,
    #[source]
    source: Option<BoxError>,
}

/// The kinds of errors that a caller treats differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContractsErrorKind {
    /// There is no contract of this name, or no owner.
    NotFound,
    /// The content is larger than the port or its server takes.
    TooLarge,
    /// The name, the media type or the owner can't be used, by a check before anything is sent: such a contract is never
    /// published again. A server that finds a request malformed has [`Refused`](Self::Refused) it.
    Invalid,
    /// The server does not allow it: the credentials are wrong, it is full, or it finds the request malformed. A later attempt may succeed.
    Refused,
    /// The server can't be reached, or fails. A later attempt may succeed.
    Unavailable,
    /// This process has no port for contracts.
    Unsupported,
}

/// Where contracts are published and fetched.
///
/// Every implementation passes `testing::contract::contracts` (feature `testing`). chassis calls it in the background, with
/// a time limit, and again after an error: an implementation needs no retries of its own.
#[async_trait]
pub trait Contracts: Send + Sync + 'static {
    /// Its name in messages and events, without secrets.
    fn name(&self) -> String;

    /// Publishes `contracts` of `of`. Contracts of other names stay; so do those of other owners.
    ///
    /// # Errors
    /// [`TooLarge`](ContractsErrorKind::TooLarge) or [`Invalid`](ContractsErrorKind::Invalid) if one of them can't be
    /// published; then none was, if [`ContractOwner::check`] finds it. After any other error some may be.
    async fn publish(
        &self,
        of: &ContractOwner,
        contracts: &[Contract],
        existing: Existing,
    ) -> Result<(), ContractsError>;

    /// The versions of `service` in `environment` that have contracts, in any order; none for an unknown service.
    async fn versions(&self, service: &str, environment: &str) -> Result<Vec<String>, ContractsError>;

    /// The contracts of `of`, in the order of their names; none for an unknown owner.
    async fn list(&self, of: &ContractOwner) -> Result<Vec<ContractEntry>, ContractsError>;

    /// The contract `name` of `of`.
    ///
    /// # Errors
    /// [`NotFound`](ContractsErrorKind::NotFound) if there is none.
    async fn fetch(&self, of: &ContractOwner, name: &str) -> Result<Contract, ContractsError>;

    /// Whether its functions never block their thread when they wait. If so, the threads of calls poll them. Default
    /// `false`: [threads of its own](crate::contain) poll them.
    fn never_blocks(&self) -> bool {
        false
    }
}

/// The largest content in bytes: 1 MiB. Servers such as service center take requests of 2 MiB, and a content that is no
/// text grows by a third there.
pub const MAX_CONTENT: usize = 1 << 20;
/// The most contracts in one call of [`publish`](Contracts::publish): 64. Service center keeps 100 of a service.
pub const MAX_CONTRACTS: usize = 64;
/// The media type of an encoded `google.protobuf.FileDescriptorSet`.
pub const FILE_DESCRIPTOR_SET: &str = "application/protobuf; proto=google.protobuf.FileDescriptorSet";
/// The media type of an OpenAPI text in YAML.
pub const OPENAPI_YAML: &str = "application/vnd.oai.openapi";
/// The media type of an OpenAPI text in JSON.
pub const OPENAPI_JSON: &str = "application/vnd.oai.openapi+json";

/// The longest name. With the environment before it, a server that takes 160 characters has room for it.
const MAX_NAME: usize = 80;
/// The longest media type.
const MAX_MEDIA_TYPE: usize = 128;
/// The longest part of an owner.
const MAX_OWNER: usize = 256;

// === impl Contract ===

impl Contract {
    /// A contract; [`check`](Self::check) says whether it can be published.
    pub fn new(name: impl Into<String>, media_type: impl Into<String>, content: impl Into<Bytes>) -> Self {
        Contract { name: name.into(), media_type: media_type.into(), content: content.into() }
    }

    /// An OpenAPI text: JSON if it begins with a brace, and YAML otherwise.
    pub fn openapi(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let media_type = if text.trim_start().starts_with('{') { OPENAPI_JSON } else { OPENAPI_YAML };
        Contract::new(name, media_type, text)
    }

    /// Whether it can be published.
    ///
    /// # Errors
    /// [`TooLarge`](ContractsErrorKind::TooLarge) or [`Invalid`](ContractsErrorKind::Invalid), with the reason.
    pub fn check(&self) -> Result<(), ContractsError> {
        check_name(&self.name)?;
        let (name, media_type) = (&self.name, &self.media_type);
        let is_visible = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        let has_parts =
            media_type.split_once('/').is_some_and(|(kind, sub)| !kind.is_empty() && !sub.is_empty());
        let is_trimmed = media_type.trim() == media_type;
        if media_type.len() > MAX_MEDIA_TYPE
            || !has_parts
            || !is_trimmed
            || !media_type.bytes().all(is_visible)
        {
            return Err(invalid(format!(
                "contract `{name}`: a media type has a slash and at most {MAX_MEDIA_TYPE} printable ASCII characters, \
                 unlike `{}`",
                media_type.escape_debug()
            )));
        }
        match self.content.len() {
            0 => Err(invalid(format!("contract `{name}` is empty"))),
            1..=MAX_CONTENT => Ok(()),
            length => Err(ContractsError::new(
                ContractsErrorKind::TooLarge,
                format!("contract `{name}` has {length} bytes, {MAX_CONTENT} are allowed"),
            )),
        }
    }
}

/// Whether a contract can have this name.
///
/// # Errors
/// [`Invalid`](ContractsErrorKind::Invalid), with what is allowed.
pub(crate) fn check_name(name: &str) -> Result<(), ContractsError> {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_outer = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    if name.len() <= MAX_NAME
        && name.bytes().all(is_inner)
        && is_outer(bytes.first())
        && is_outer(bytes.last())
    {
        return Ok(());
    }
    Err(invalid(format!(
        "`{}` is no name of a contract: it has 1 to {MAX_NAME} letters and digits, and within `-`, `_` and `.`",
        name.escape_debug()
    )))
}

fn invalid(message: String) -> ContractsError {
    ContractsError::new(ContractsErrorKind::Invalid, message)
}

// === impl ContractOwner ===

impl ContractOwner {
    /// A version of a service without an environment.
    pub fn new(service: impl Into<String>, version: impl Into<String>) -> Self {
        ContractOwner { service: service.into(), version: version.into(), environment: String::new() }
    }

    /// The same in `environment`.
    pub fn in_environment(self, environment: impl Into<String>) -> Self {
        ContractOwner { environment: environment.into(), ..self }
    }

    /// Whether `contracts` can be published of it, all at once. Implementations begin [`publish`](Contracts::publish) so.
    ///
    /// # Errors
    /// The first problem, of the owner or of one of them: there are too many, or two have one name.
    pub fn check(&self, contracts: &[Contract]) -> Result<(), ContractsError> {
        let ContractOwner { service, version, environment } = self;
        if service.is_empty() {
            return Err(invalid("the owner of a contract has no service".to_owned()));
        }
        if [service, version, environment].iter().any(|part| part.len() > MAX_OWNER) {
            let message = "the service, version or environment of a contract has more than";
            return Err(invalid(format!("{message} {MAX_OWNER} bytes")));
        }
        if contracts.len() > MAX_CONTRACTS {
            return Err(invalid(format!(
                "there are {} contracts, {MAX_CONTRACTS} are allowed",
                contracts.len()
            )));
        }
        let mut names = BTreeSet::new();
        for contract in contracts {
            contract.check()?;
            if !names.insert(&contract.name) {
                return Err(invalid(format!("two contracts are called `{}`", contract.name)));
            }
        }
        Ok(())
    }
}

// === impl ContractsError ===

impl ContractsError {
    /// An error with a message that names the server or the contract.
    pub fn new(kind: ContractsErrorKind, message: impl Into<String>) -> Self {
        ContractsError { kind, message: message.into(), source: None }
    }

    /// There is no contract `name` of `of`.
    pub fn not_found(of: &ContractOwner, name: &str) -> Self {
        let ContractOwner { service, version, environment } = of;
        let named = |what: &str, part: &str| match part.is_empty() {
            true => String::new(),
            false => format!(", {what} `{}`", part.escape_debug()),
        };
        let (version, environment) = (named("version", version), named("environment", environment));
        let (name, service) = (name.escape_debug(), service.escape_debug());
        Self::new(
            ContractsErrorKind::NotFound,
            format!("there is no contract `{name}` of `{service}`{version}{environment}"),
        )
    }

    /// Adds the error that caused this one.
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind, to branch on.
    pub fn kind(&self) -> ContractsErrorKind {
        self.kind
    }

    /// Whether the same call would fail again, whatever happens meanwhile.
    pub fn is_permanent(&self) -> bool {
        use ContractsErrorKind::*;
        matches!(self.kind, TooLarge | Invalid | Unsupported)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(contract: Contract) -> Option<ContractsErrorKind> {
        contract.check().err().map(|error| error.kind())
    }

    #[test]
    fn contracts_have_bounds() {
        use ContractsErrorKind::*;
        let good = || Contract::new("a", "text/plain", "x");
        let named = |name: &str| Contract { name: name.into(), ..good() };
        for name in ["a", "a-b_c.D9", "9", &"a".repeat(MAX_NAME)] {
            assert_eq!(kind(named(name)), None, "{name}");
        }
        for name in ["", ".", "..", "-a", "a-", "a/b", "a b", "ä", "a\n", &"a".repeat(MAX_NAME + 1)] {
            assert_eq!(kind(named(name)), Some(Invalid), "{name}");
        }
        let typed = |media_type: &str| Contract { media_type: media_type.into(), ..good() };
        for media_type in [FILE_DESCRIPTOR_SET, OPENAPI_JSON, OPENAPI_YAML, "text/plain; charset=utf-8"] {
            assert_eq!(kind(typed(media_type)), None, "{media_type}");
        }
        for media_type in
            ["", "/", "text", "text/", "/x", " a/b", "a/b\r\nx: y", "a/ä", &format!("a/{}", "b".repeat(127))]
        {
            assert_eq!(kind(typed(media_type)), Some(Invalid), "{media_type}");
        }
        let long = |length| Contract { content: vec![b'x'; length].into(), ..good() };
        let lengths = [0, 1, MAX_CONTENT, MAX_CONTENT + 1].map(|length| kind(long(length)));
        assert_eq!(lengths, [Some(Invalid), None, None, Some(TooLarge)]);
    }

    #[test]
    fn owners_have_bounds() {
        let good = Contract::new("a", "text/plain", "x");
        let owner = ContractOwner::new("stock", "").in_environment("π\n");
        assert!(owner.check(std::slice::from_ref(&good)).is_ok());
        assert!(owner.check(&[good.clone(), good.clone()]).is_err(), "one name twice");
        let many: Vec<_> =
            (0..=MAX_CONTRACTS).map(|n| Contract { name: n.to_string(), ..good.clone() }).collect();
        assert!(owner.check(&many).is_err() && owner.check(&many[1..]).is_ok());
        assert!(ContractOwner::new("", "1").check(&[]).is_err());
        assert!(ContractOwner::new("a", "1".repeat(MAX_OWNER + 1)).check(&[]).is_err());
    }

    #[test]
    fn openapi_is_json_or_yaml() {
        assert_eq!(Contract::openapi("a", "\n {\"openapi\": \"3.1.0\"}").media_type, OPENAPI_JSON);
        assert_eq!(Contract::openapi("a", "openapi: 3.1.0").media_type, OPENAPI_YAML);
    }
}
