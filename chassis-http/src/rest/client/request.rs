//! The builder of a request.
use std::{fmt::Display, sync::Arc};

use bytes::Bytes;
use chassis_core::{
    Body, CallOptions, Code, Error, Invocation, Operation, Reason, RequestExt, Target, pipeline::Pipeline,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header::CONTENT_TYPE};
use serde::Serialize;

use super::{HttpClient, Response, template};
use crate::{HTTP, wire::JSON};

/// A request that is being built. Nothing is sent before [`send`](Self::send), which also returns the first
/// error of the builder. [`RequestExt`] sets the options of the call: timeout, labels, retries.
#[must_use = "a request is sent by `send`"]
pub struct RequestBuilder {
    client: HttpClient,
    method: Method,
    template: String,
    params: Vec<(String, String)>,
    query: Vec<(String, String)>,
    headers: HeaderMap,
    body: Body,
    options: CallOptions,
    wrong: Option<String>,
}

// === impl RequestBuilder ===

impl RequestBuilder {
    pub(super) fn new(client: HttpClient, method: Method, template: String) -> Self {
        RequestBuilder {
            client,
            method,
            template,
            params: Vec::new(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Body::empty(),
            options: CallOptions::default(),
            wrong: None,
        }
    }

    /// Replaces the parameter `name` of the template; percent-encoded.
    pub fn param(mut self, name: impl Into<String>, value: impl Display) -> Self {
        self.params.push((name.into(), value.to_string()));
        self
    }

    /// Adds `key=value` to the query; percent-encoded.
    pub fn query(mut self, key: impl Into<String>, value: impl Display) -> Self {
        self.query.push((key.into(), value.to_string()));
        self
    }

    /// Adds a header; an existing one of the same name stays.
    pub fn header<N, V>(mut self, name: N, value: V) -> Self
    where
        N: TryInto<HeaderName, Error: Display>,
        V: TryInto<HeaderValue, Error: Display>,
    {
        match (name.try_into(), value.try_into()) {
            (Ok(name), Ok(value)) => drop(self.headers.append(name, value)),
            (Err(wrong), _) => self.is_wrong(format!("a header's name is malformed: {wrong}")),
            (_, Err(wrong)) => self.is_wrong(format!("a header's value is malformed: {wrong}")),
        }
        self
    }

    /// Sets the body, as JSON.
    pub fn json<T: Serialize + ?Sized>(mut self, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => {
                self.body = Body::full(json);
                self.headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static(JSON));
            }
            Err(wrong) => self.is_wrong(format!("the body cannot be written as JSON: {wrong}")),
        }
        self
    }

    /// Sets the body, as bytes. For a body that is produced while it is sent, see [`stream`](Self::stream).
    pub fn body(mut self, bytes: impl Into<Bytes>) -> Self {
        self.body = Body::full(bytes);
        self
    }

    /// Sets a body that is sent as it is produced. Such a request can be retried only while little of it was
    /// read.
    pub fn stream<B>(mut self, body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<chassis_core::BoxError>> + Send + 'static,
    {
        self.body = Body::stream(body, super::of_body);
        self
    }

    /// Sends the request. An answer, also a failing one, is `Ok`; an error means that there was no answer.
    pub async fn send(self) -> Result<Response, Error> {
        let (call, pipeline, max_body) = self.into_call()?;
        let service = call.target.service.clone();
        let answer = pipeline.run(call).await.map_err(|error| error.of_service(&service))?;
        Ok(Response::new(answer, max_body))
    }

    /// The call, its pipeline, and the limit of bytes of the answer that are read at once.
    fn into_call(self) -> Result<(Invocation, Pipeline, usize), Error> {
        let HttpClient { service, pipeline, max_body } = self.client;
        let malformed = |words| Error::local(Reason::Malformed, words).with_code(Code::InvalidArgument);
        if let Some(wrong) = self.wrong {
            return Err(malformed(wrong));
        }
        let mut path = template::fill(&self.template, &self.params).map_err(malformed)?;
        self.query.iter().for_each(|(key, value)| template::query(&mut path, key, value));
        let uri = path.parse::<Uri>().map_err(|wrong| malformed(format!("`{path}` is no path: {wrong}")))?;
        let name: Arc<str> = [self.method.as_str(), " ", &self.template].concat().into();
        let mut call = Invocation::new(&HTTP, Target::new(service, Operation::from(name)));
        call.method = self.method;
        call.uri = uri;
        call.metadata = self.headers;
        call.options = self.options;
        call.body = self.body;
        Ok((call, pipeline, max_body))
    }

    /// Stores the first error.
    fn is_wrong(&mut self, words: String) {
        self.wrong.get_or_insert(words);
    }
}

impl RequestExt for RequestBuilder {
    fn options_mut(&mut self) -> &mut CallOptions {
        &mut self.options
    }
}
