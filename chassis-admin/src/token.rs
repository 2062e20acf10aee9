//! The token for reading: read from its file again and again, and compared in constant time.
use std::{hint::black_box, path::Path, time::Duration};

use chassis_core::adapter::SecretSource;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::problem::Refusal;

/// The token in a file.
pub(crate) struct Token {
    source: SecretSource,
    last: Mutex<Option<Read>>,
}

/// The content of the file when it was last read; an error says why it is no token.
#[derive(Clone)]
struct Read {
    at: Instant,
    token: Result<String, String>,
}

/// A new content of the file applies after this time.
const AGE: Duration = Duration::from_secs(1);
/// The time to read the file; it may be on a network.
const READ: Duration = Duration::from_secs(2);
/// Shorter tokens can be guessed; longer ones do not fit into a header.
const LENGTH: std::ops::RangeInclusive<usize> = 16..=4096;

// === impl Token ===

impl Token {
    pub(crate) fn new(file: &Path) -> Self {
        let source = SecretSource { file: Some(file.to_owned()), env: None };
        Token { source, last: Mutex::default() }
    }

    /// Refuses a request without the right token.
    pub(crate) async fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let refuse = |words: &str| {
            let challenge = HeaderValue::from_static("Bearer realm=\"chassis\"");
            Refusal::new(StatusCode::UNAUTHORIZED, words).with(WWW_AUTHENTICATE, challenge)
        };
        let Some(sent) = bearer(headers) else {
            return Err(refuse("this needs a token: `Authorization: Bearer …`"));
        };
        match self.newest().await {
            Ok(token) if is_same(token.as_bytes(), sent) => Ok(()),
            Ok(_) => Err(refuse("the token is wrong")),
            Err(_) => Err(refuse("no token is right at the moment: its file can't be read")),
        }
    }

    /// The token in the file, at most a second old; or why there is none.
    pub(crate) async fn newest(&self) -> Result<String, String> {
        let mut last = self.last.lock().await;
        if let Some(read) = &*last
            && read.at.elapsed() < AGE
        {
            return read.token.clone();
        }
        let read = timeout(READ, self.source.read()).await;
        let read = read.unwrap_or_else(|_| Err(format!("it was not read within {READ:?}")));
        let token = read.and_then(|text| checked(text.unwrap_or_default()));
        let was_right = last.as_ref().is_none_or(|last| last.token.is_ok());
        if let Err(error) = &token
            && was_right
        {
            tracing::warn!(target: "chassis", error, "`admin.token_file` can't be used: no token is right");
        }
        *last = Some(Read { at: Instant::now(), token: token.clone() });
        token
    }
}

fn checked(token: String) -> Result<String, String> {
    let (least, most) = (LENGTH.start(), LENGTH.end());
    match LENGTH.contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(token),
        false => Err(format!("a token has {least} to {most} visible ASCII characters")),
    }
}

/// The token that was sent.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

/// Compares in a time that depends on the lengths only: how much of a guess is right does not show.
fn is_same(token: &[u8], sent: &[u8]) -> bool {
    let differences = token.iter().zip(sent).fold(0, |seen, (a, b)| black_box(seen | (a ^ b)));
    token.len() == sent.len() && differences == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "0123456789abcdef";
    const TWO: &str = "fedcba9876543210";

    async fn status(token: &Token, sent: Option<&str>) -> u16 {
        let mut headers = HeaderMap::new();
        if let Some(sent) = sent {
            headers.insert(AUTHORIZATION, sent.parse().unwrap());
        }
        token.check(&headers).await.map_or_else(|refusal| refusal.status.as_u16(), |()| 200)
    }

    #[tokio::test(start_paused = true)]
    async fn right_wrong_absent_and_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, format!("{ONE}\n")).unwrap();
        let token = Token::new(&path);
        assert_eq!(status(&token, Some(&format!("Bearer {ONE}"))).await, 200);
        assert_eq!(status(&token, Some(&format!("bearer  {ONE} "))).await, 200);
        for wrong in [TWO, &ONE[1..], &format!("{ONE}0"), "", ONE.to_ascii_uppercase().as_str()] {
            assert_eq!(status(&token, Some(&format!("Bearer {wrong}"))).await, 401, "{wrong}");
        }
        for wrong in [None, Some("Bearer"), Some(ONE), Some("Basic 0123456789abcdef")] {
            assert_eq!(status(&token, wrong).await, 401, "{wrong:?}");
        }
        std::fs::write(&path, TWO).unwrap();
        tokio::time::advance(AGE).await;
        assert_eq!(status(&token, Some(&format!("Bearer {ONE}"))).await, 401);
        assert_eq!(status(&token, Some(&format!("Bearer {TWO}"))).await, 200);
        // Neither an empty file nor a missing one opens anything.
        for content in [Some(""), Some("short"), Some("sixteen or more, with blanks"), None] {
            match content {
                Some(content) => std::fs::write(&path, content).unwrap(),
                None => std::fs::remove_file(&path).unwrap(),
            }
            tokio::time::advance(AGE).await;
            let sent = content.unwrap_or(TWO);
            assert_eq!(status(&token, Some(&format!("Bearer {sent}"))).await, 401, "{content:?}");
            assert_eq!(status(&token, Some(&format!("Bearer {TWO}"))).await, 401, "{content:?}");
        }
    }
}
