//! One call, over either protocol.
use std::{convert::Infallible, str::FromStr, time::Duration};

use bytes::Bytes;
use chassis::{Channel, Chassis, Code, HttpClient, RequestExt};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tonic::{Request, Status, metadata::MetadataMap};

use super::{Options, Outcome};
use crate::{
    Result,
    echo::{CallRequest, Hop, echo_client::EchoClient},
    serve::EchoReply,
};

/// The protocol of calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// REST.
    Http,
}

/// The kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Operation {
    /// One message in each direction; over REST `POST /call`.
    Call,
    /// `GET /call/{id}`, over REST only.
    Get,
    /// A stream of answers.
    Download,
    /// A stream of requests.
    Upload,
    /// Streams in both directions.
    Chat,
}

/// Makes calls as the options describe.
#[derive(Clone)]
pub(crate) struct Caller {
    client: Client,
    options: Options,
    payload: Bytes,
    metadata: MetadataMap,
}

#[derive(Clone)]
enum Client {
    Grpc(EchoClient<Channel>),
    Http(HttpClient),
}

// === impl Caller ===

impl Caller {
    pub(crate) fn new(app: &Chassis, options: &Options) -> Result<Self> {
        let client = match options.protocol {
            Protocol::Grpc if options.operation == Operation::Get => {
                return Err("`Get` is an operation of --protocol http".into());
            }
            Protocol::Grpc => Client::Grpc(EchoClient::new(app.grpc(&options.to))),
            Protocol::Http => Client::Http(app.http(&options.to)),
        };
        let mut headers = http::HeaderMap::new();
        for (name, value) in &options.headers {
            headers.append(http::HeaderName::from_str(name)?, value.parse()?);
        }
        let payload = Bytes::from(vec![b'x'; options.payload]);
        Ok(Caller { client, options: options.clone(), payload, metadata: MetadataMap::from_headers(headers) })
    }

    /// The name of the operation in settings.
    pub(super) fn operation(&self) -> &'static str {
        match (self.options.protocol, self.options.operation) {
            (Protocol::Grpc, Operation::Call | Operation::Get) => "bench.v1.Echo/Call",
            (Protocol::Grpc, Operation::Download) => "bench.v1.Echo/Download",
            (Protocol::Grpc, Operation::Upload) => "bench.v1.Echo/Upload",
            (Protocol::Grpc, Operation::Chat) => "bench.v1.Echo/Chat",
            (Protocol::Http, Operation::Call) => "POST /call",
            (Protocol::Http, Operation::Get) => "GET /call/{id}",
            (Protocol::Http, Operation::Download) => "GET /download/{repeat}",
            (Protocol::Http, Operation::Upload) => "POST /upload",
            (Protocol::Http, Operation::Chat) => "POST /chat",
        }
    }

    /// Makes one call, to the end of its answer; after `limit` it counts as hanging.
    pub(crate) async fn call(&self, limit: Duration) -> Outcome {
        let called = async {
            match &self.client {
                Client::Grpc(client) => {
                    self.over_grpc(client.clone()).await.unwrap_or_else(|s| of_status(&s))
                }
                Client::Http(client) => self.over_http(client).await.unwrap_or_else(|e| Outcome::from(&e)),
            }
        };
        tokio::time::timeout(limit, called).await.unwrap_or_else(|_| Outcome::hang())
    }

    async fn over_grpc(&self, mut client: EchoClient<Channel>) -> Result<Outcome, Status> {
        let one = || CallRequest { payload: self.payload.clone(), repeat: self.options.repeat };
        let many = || tokio_stream::iter(vec![one(); self.options.repeat as usize]);
        let mut replies = match self.options.operation {
            Operation::Call | Operation::Get => {
                return Ok(Outcome::ok(client.call(self.request(one())).await?.into_inner().hops));
            }
            Operation::Upload => {
                return Ok(Outcome::ok(client.upload(self.request(many())).await?.into_inner().hops));
            }
            Operation::Download => client.download(self.request(one())).await?.into_inner(),
            Operation::Chat => client.chat(self.request(many())).await?.into_inner(),
        };
        let mut hops = Vec::new();
        while let Some(reply) = replies.message().await? {
            hops.extend(reply.hops);
        }
        Ok(Outcome::ok(hops))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.metadata.is_empty() {
            *request.metadata_mut() = self.metadata.clone();
        }
        if let Some(timeout) = self.options.timeout {
            request.set_timeout(timeout);
        }
        if self.options.idempotent { request.idempotent() } else { request }
    }

    async fn over_http(&self, client: &HttpClient) -> Result<Outcome, chassis::Error> {
        let repeat = self.options.repeat;
        let chunks = || {
            let chunks = std::iter::repeat_n(self.payload.clone(), repeat as usize);
            let frames = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
            StreamBody::new(tokio_stream::iter(frames))
        };
        let mut request = match self.options.operation {
            Operation::Call => {
                let payload = String::from_utf8_lossy(&self.payload).into_owned();
                client.post("/call").json(&EchoReply { payload, hops: Vec::new() })
            }
            Operation::Get => client.get("/call/{id}").param("id", 42),
            Operation::Download => client.get("/download/{repeat}").param("repeat", repeat),
            Operation::Upload => client.post("/upload").stream(chunks()),
            Operation::Chat => client.post("/chat").stream(chunks()),
        };
        for (name, value) in &self.options.headers {
            request = request.header(name.as_str(), value.as_str());
        }
        if let Some(timeout) = self.options.timeout {
            request = request.timeout(timeout);
        }
        if self.options.idempotent {
            request = request.idempotent();
        }
        let answer = request.send().await?;
        let refusal = answer.refusal();
        let answer = match answer.ok().await {
            Ok(answer) => answer,
            Err(problem) => {
                return Ok(refusal.map_or_else(
                    || Outcome::failed(problem.code(), problem.to_string()),
                    |e| Outcome::from(&e),
                ));
            }
        };
        let hops = match self.options.operation {
            Operation::Chat => {
                answer.bytes().await?;
                Vec::new()
            }
            Operation::Download => first_line(answer.into_body()).await?,
            _ => answer.json::<EchoReply>().await?.hops,
        };
        Ok(Outcome::ok(hops))
    }
}

/// Reads the whole body; the hops are in the first line.
async fn first_line(body: chassis::ReplyBody) -> Result<Vec<Hop>, chassis::Error> {
    let all = body.collect().await?.to_bytes();
    let first = all.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(serde_json::from_slice::<EchoReply>(first).map(|reply| reply.hops).unwrap_or_default())
}

fn of_status(status: &Status) -> Outcome {
    match chassis::grpc::error(status) {
        Some(error) => Outcome::from(&error),
        None => {
            let code = u16::try_from(i32::from(status.code())).map_or(Code::Unknown, Code::from_number);
            Outcome::failed(code, status.message())
        }
    }
}

// === impl Protocol, Operation ===

impl FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "grpc" => Ok(Protocol::Grpc),
            "http" => Ok(Protocol::Http),
            _ => Err(format!("`{text}` is no protocol; write grpc or http")),
        }
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "Call" => Ok(Operation::Call),
            "Get" => Ok(Operation::Get),
            "Download" => Ok(Operation::Download),
            "Upload" => Ok(Operation::Upload),
            "Chat" => Ok(Operation::Chat),
            _ => Err(format!("`{text}` is no operation; there are Call, Get, Download, Upload and Chat")),
        }
    }
}
