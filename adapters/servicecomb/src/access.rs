//! The proof of a request's sender: a token, or a key and a hash.
use std::sync::Arc;

use chassis_core::{adapter::SecretSource, settings::Problem};
use hmac::{Hmac, Mac};
use http::{HeaderMap, HeaderName, HeaderValue};
use sha2::Sha256;
use tokio::sync::Mutex;

use crate::client::Failure;

/// The files and variables of the credentials.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: SecretSource,
    pub(crate) token: SecretSource,
    pub(crate) access_key: Option<String>,
    pub(crate) secret_key: SecretSource,
    /// The project that a key is of.
    pub(crate) project: String,
}

/// Adds credentials to requests. The token of a user is kept until the server refuses it.
#[derive(Debug)]
pub(crate) struct Access {
    credentials: Credentials,
    token: Mutex<Option<Arc<str>>>,
}

// === impl Credentials ===

impl Credentials {
    pub(crate) fn check(&self) -> Vec<Problem> {
        let secrets =
            [("password", &self.password), ("token", &self.token), ("secret_key", &self.secret_key)];
        let mut problems: Vec<_> = secrets.iter().filter_map(|(name, secret)| secret.check(name)).collect();
        let mut pair = |name: &str, value: &Option<String>, secret: &str, is_set: bool| match value {
            Some(value) if value.is_empty() => problems.push(Problem::new(name, "it is empty; leave it out")),
            Some(_) if !is_set => {
                problems.push(Problem::new(name, format!("set `{secret}_file` or `{secret}_env` beside it")));
            }
            None if is_set => problems.push(Problem::new(name, format!("`{secret}` is set; set this, too"))),
            _ => {}
        };
        pair("user", &self.user, "password", self.password.is_set());
        pair("access_key", &self.access_key, "secret_key", self.secret_key.is_set());
        let ways = [self.user.is_some(), self.token.is_set(), self.access_key.is_some()]
            .iter()
            .filter(|set| **set)
            .count();
        if ways > 1 {
            problems.push(Problem::new("", "set one of `user`, `token` and `access_key`"));
        }
        problems
    }
}

// === impl Access ===

impl Access {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Access { credentials, token: Mutex::new(None) }
    }

    /// The user and the password of the moment, if a token is fetched with them.
    pub(crate) async fn login(&self) -> Result<Option<(String, String)>, Failure> {
        let Some(user) = &self.credentials.user else { return Ok(None) };
        let password = secret(&self.credentials.password, "password").await?;
        Ok(Some((user.clone(), password)))
    }

    /// The headers of a request. `fetch` brings a token where there is a user and no token yet.
    pub(crate) async fn headers(
        &self,
        fetch: impl Future<Output = Result<String, Failure>>,
    ) -> Result<HeaderMap, Failure> {
        let (mut headers, credentials) = (HeaderMap::new(), &self.credentials);
        if credentials.user.is_some() {
            let mut token = self.token.lock().await; // others wait for the same token
            let token = match &*token {
                Some(token) => token.clone(),
                None => token.insert(fetch.await?.into()).clone(),
            };
            insert(&mut headers, "authorization", format!("Bearer {token}"))?;
        } else if credentials.token.is_set() {
            let token = secret(&credentials.token, "token").await?;
            insert(&mut headers, "authorization", format!("Bearer {token}"))?;
        } else if let Some(key) = &credentials.access_key {
            let secret = secret(&credentials.secret_key, "secret_key").await?;
            insert(&mut headers, "x-service-ak", key.clone())?;
            insert(&mut headers, "x-service-shaaksk", hash(&secret, key))?;
            insert(&mut headers, "x-service-project", credentials.project.clone())?;
        }
        Ok(headers)
    }

    /// The server refuses a request with these headers. Is it worthwhile to try once more, with a new token?
    pub(crate) async fn refused(&self, headers: &HeaderMap) -> bool {
        if self.credentials.user.is_none() {
            return false; // what stands in a file was read for this request
        }
        let mut token = self.token.lock().await;
        let sent = headers.get("authorization").and_then(|sent| sent.to_str().ok());
        if token.as_ref().is_some_and(|token| sent == Some(&*format!("Bearer {token}"))) {
            *token = None;
        }
        true
    }
}

/// The hash that stands for a secret key, as go-chassis and the Java chassis send it.
fn hash(secret: &str, key: &str) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes());
    let mut mac = mac.expect("HMAC takes keys of any length");
    mac.update(key.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn secret(source: &SecretSource, name: &str) -> Result<String, Failure> {
    let read = source.read().await.map_err(|why| Failure::of(format!("{name}: {why}")))?;
    read.filter(|secret| !secret.is_empty()).ok_or_else(|| Failure::of(format!("{name}: it is empty")))
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: String) -> Result<(), Failure> {
    let value = HeaderValue::try_from(value);
    let mut value =
        value.map_err(|_| Failure::of(format!("the value of `{name}` can't be sent in a header")))?;
    value.set_sensitive(true);
    headers.insert(HeaderName::from_static(name), value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_key_is_hashed() {
        // Test case 2 of RFC 4231.
        assert_eq!(
            hash("Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn credentials_are_of_one_kind_and_whole() {
        let secret = || SecretSource { env: Some("X".into()), ..SecretSource::default() };
        let wrong = |credentials: Credentials| {
            credentials.check().iter().map(|problem| problem.path.clone()).collect::<Vec<_>>()
        };
        let none = Credentials::default();
        assert!(wrong(none.clone()).is_empty());
        let user = Credentials { user: Some("u".into()), password: secret(), ..none.clone() };
        assert!(wrong(user.clone()).is_empty());
        assert_eq!(wrong(Credentials { password: SecretSource::default(), ..user.clone() }), ["user"]);
        assert_eq!(wrong(Credentials { user: None, ..user.clone() }), ["user"]);
        assert_eq!(wrong(Credentials { user: Some(String::new()), ..user.clone() }), ["user"]);
        assert_eq!(wrong(Credentials { token: secret(), ..user }), [""]);
        let key = Credentials { access_key: Some("k".into()), secret_key: secret(), ..none };
        assert!(wrong(key.clone()).is_empty());
        assert_eq!(wrong(Credentials { access_key: None, ..key }), ["access_key"]);
    }
}
