//! The answer to a call, successful or not.
use bytes::{Bytes, BytesMut};
use chassis_core::{Error, Reason, Reply, ReplyBody};
use http::{Extensions, HeaderMap, StatusCode};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use crate::rest::problem::{self, Problem};

/// An answer, also a failing one: [`ok`](Self::ok) converts that into a [`Problem`].
pub struct Response {
    status: StatusCode,
    headers: HeaderMap,
    extensions: Extensions,
    body: ReplyBody,
    max_body: usize,
}

// === impl Response ===

impl Response {
    pub(super) fn new(reply: Reply, max_body: usize) -> Self {
        let (status, headers, extensions, body) = reply.into_parts();
        Response { status, headers, extensions, body, max_body }
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The extensions that layers have set.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// The refusal, if another chassis refused the call before executing it.
    pub fn refusal(&self) -> Option<Error> {
        problem::refusal(self.status, &self.headers)
    }

    /// The answer, unless its status is an error: 4xx or 5xx.
    pub async fn ok(mut self) -> Result<Self, Problem> {
        if self.status.as_u16() < 400 {
            return Ok(self);
        }
        // An error while reading the details must not hide the failure itself.
        let body = self.read().await.unwrap_or_default();
        let mut problem = Problem::read(self.status, &self.headers, &body);
        problem.upstream = Some(self.body.call().target.service.to_string().into());
        Err(problem)
    }

    /// The whole body, up to `max_body` bytes (default 4 MiB).
    pub async fn bytes(mut self) -> Result<Bytes, Error> {
        self.read().await
    }

    /// The whole body as text. Bytes that are not UTF-8 are replaced.
    pub async fn text(self) -> Result<String, Error> {
        Ok(String::from_utf8_lossy(&self.bytes().await?).into_owned())
    }

    /// The whole body, parsed as JSON.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes().await?).map_err(|error| {
            Error::remote(Reason::Malformed, "the answer is not the JSON that was expected")
                .with_source(error)
        })
    }

    /// The body, to be read as it arrives.
    pub fn into_body(self) -> ReplyBody {
        self.body
    }

    /// Converts to a response of `http`.
    pub fn into_http(self) -> http::Response<ReplyBody> {
        let mut response = http::Response::new(self.body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        *response.extensions_mut() = self.extensions;
        response
    }

    async fn read(&mut self) -> Result<Bytes, Error> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = self.body.frame().await {
            let Ok(data) = frame?.into_data() else { continue };
            if first.len() + all.len() + data.len() > self.max_body {
                let words = format!("the answer is longer than {} bytes", self.max_body);
                return Err(Error::remote(Reason::TooLarge, words));
            }
            match first.is_empty() && all.is_empty() {
                true => first = data,
                false => {
                    all.extend_from_slice(&std::mem::take(&mut first));
                    all.extend_from_slice(&data);
                }
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }
}

impl std::fmt::Debug for Response {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Response");
        out.field("status", &self.status).field("headers", &self.headers).finish_non_exhaustive()
    }
}
