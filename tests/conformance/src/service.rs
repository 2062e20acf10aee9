//! The suite's `ConformanceService`: a request defines its answer, and the answer reports the received
//! request.
use std::{pin::Pin, time::Duration};

use chassis::{Context, clock::Instant};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::{Message, Name};
use prost_types::Any;
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, codec::CompressionEncoding, metadata::MetadataMap};
use tonic_types::pb;

use self::proto::{
    BidiStreamRequest, BidiStreamResponse, ClientStreamRequest, ClientStreamResponse, ConformancePayload,
    Error, Header, IdempotentUnaryRequest, IdempotentUnaryResponse, ServerStreamRequest,
    ServerStreamResponse, StreamResponseDefinition, UnaryRequest, UnaryResponse, UnaryResponseDefinition,
    UnimplementedRequest, UnimplementedResponse,
    conformance_payload::RequestInfo,
    conformance_service_server::{ConformanceService, ConformanceServiceServer},
    unary_response_definition::Response as Wanted,
};
use crate::trailers::{Trailers, WithTrailers};

pub(crate) mod proto {
    #![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
    tonic::include_proto!("connectrpc.conformance.v1");
}

/// As described in the comments of the suite's `service.proto`.
#[derive(Clone, Copy)]
pub(crate) struct Conformance;

type Replies<R> = Pin<Box<dyn Stream<Item = Result<R, Status>> + Send>>;

/// The remaining replies of a stream.
struct Turns<R> {
    definition: StreamResponseDefinition,
    data: std::vec::IntoIter<Vec<u8>>,
    /// The request's description for the first reply; empty once sent.
    info: Option<RequestInfo>,
    /// The requests that no reply has repeated yet.
    requests: Vec<Any>,
    send: mpsc::Sender<Result<R, Status>>,
}

/// The service to serve. A message longer than `limit` bytes is refused; with 0 tonic's own limit applies.
pub(crate) fn service(limit: usize) -> WithTrailers<ConformanceServiceServer<Conformance>> {
    let service = ConformanceServiceServer::new(Conformance)
        .accept_compressed(CompressionEncoding::Gzip)
        .send_compressed(CompressionEncoding::Gzip);
    WithTrailers(if limit == 0 { service } else { service.max_decoding_message_size(limit) })
}

#[tonic::async_trait]
impl ConformanceService for Conformance {
    async fn unary(&self, request: Request<UnaryRequest>) -> Result<Response<UnaryResponse>, Status> {
        let mut info = info(request.metadata());
        let request = request.into_inner();
        info.requests.push(packed(&request));
        let answered = answer(request.response_definition, info).await?;
        Ok(answered.map(|payload| UnaryResponse { payload: Some(payload) }))
    }

    async fn idempotent_unary(
        &self,
        request: Request<IdempotentUnaryRequest>,
    ) -> Result<Response<IdempotentUnaryResponse>, Status> {
        let mut info = info(request.metadata());
        let request = request.into_inner();
        info.requests.push(packed(&request));
        let answered = answer(request.response_definition, info).await?;
        Ok(answered.map(|payload| IdempotentUnaryResponse { payload: Some(payload) }))
    }

    async fn client_stream(
        &self,
        request: Request<Streaming<ClientStreamRequest>>,
    ) -> Result<Response<ClientStreamResponse>, Status> {
        let mut info = info(request.metadata());
        let (mut requests, mut definition) = (request.into_inner(), None);
        while let Some(request) = requests.message().await? {
            info.requests.push(packed(&request));
            if info.requests.len() == 1 {
                definition = request.response_definition;
            }
        }
        let answered = answer(definition, info).await?;
        Ok(answered.map(|payload| ClientStreamResponse { payload: Some(payload) }))
    }

    type ServerStreamStream = Replies<ServerStreamResponse>;

    async fn server_stream(
        &self,
        request: Request<ServerStreamRequest>,
    ) -> Result<Response<Self::ServerStreamStream>, Status> {
        let info = info(request.metadata());
        let request = request.into_inner();
        let (packed, definition) = (packed(&request), request.response_definition.unwrap_or_default());
        let (mut turns, response) = begin::<ServerStreamResponse>(definition, info)?;
        turns.requests.push(packed);
        tokio::spawn(async move { turns.finish().await });
        Ok(response)
    }

    type BidiStreamStream = Replies<BidiStreamResponse>;

    async fn bidi_stream(
        &self,
        request: Request<Streaming<BidiStreamRequest>>,
    ) -> Result<Response<Self::BidiStreamStream>, Status> {
        let info = info(request.metadata());
        let mut requests = request.into_inner();
        let Some(first) = requests.message().await? else {
            return Ok(Response::new(Box::pin(tokio_stream::empty())));
        };
        let definition = first.response_definition.clone().unwrap_or_default();
        let (mut turns, response) = begin::<BidiStreamResponse>(definition, info)?;
        tokio::spawn(async move {
            let (in_step, mut next) = (first.full_duplex, Some(first));
            while let Some(request) = next {
                turns.requests.push(packed(&request));
                if in_step && !turns.reply().await {
                    break;
                }
                next = match requests.message().await {
                    Ok(next) => next,
                    Err(status) => return drop(turns.send.send(Err(status)).await),
                };
            }
            turns.finish().await;
        });
        Ok(response)
    }

    async fn unimplemented(
        &self,
        _: Request<UnimplementedRequest>,
    ) -> Result<Response<UnimplementedResponse>, Status> {
        Err(Status::unimplemented("as every server answers"))
    }
}

// === answers of one message ===

async fn answer(
    definition: Option<UnaryResponseDefinition>,
    info: RequestInfo,
) -> Result<Response<ConformancePayload>, Status> {
    let definition = definition.unwrap_or_default();
    sleep(Duration::from_millis(definition.response_delay_ms.into())).await;
    let mut head = metadata(&definition.response_headers)?;
    let trailers = metadata(&definition.response_trailers)?;
    let data = match definition.response {
        Some(Wanted::Error(error)) => {
            head.extend(trailers);
            return Err(failed(error, Some(&info), head));
        }
        Some(Wanted::ResponseData(data)) => data,
        None => Vec::new(),
    };
    Ok(with_metadata(ConformancePayload { data, request_info: Some(info) }, head, trailers))
}

// === streams of answers ===

fn begin<R: From<ConformancePayload> + Send + 'static>(
    mut definition: StreamResponseDefinition,
    info: RequestInfo,
) -> Result<(Turns<R>, Response<Replies<R>>), Status> {
    let (send, receive) = mpsc::channel(1);
    let head = metadata(&definition.response_headers)?;
    // An error has its own trailers, and the suite expects them once.
    let trailers = match definition.error {
        Some(_) => HeaderMap::new(),
        None => metadata(&definition.response_trailers)?,
    };
    let data = std::mem::take(&mut definition.response_data).into_iter();
    let turns = Turns { definition, data, info: Some(info), requests: Vec::new(), send };
    Ok((turns, with_metadata(Box::pin(ReceiverStream::new(receive)), head, trailers)))
}

impl<R: From<ConformancePayload>> Turns<R> {
    /// Sends the next reply; false if there is none, or the client no longer reads.
    async fn reply(&mut self) -> bool {
        let Some(data) = self.data.next() else { return false };
        sleep(Duration::from_millis(self.definition.response_delay_ms.into())).await;
        let requests = std::mem::take(&mut self.requests);
        let request_info = match self.info.take() {
            Some(info) => Some(RequestInfo { requests, ..info }),
            None if requests.is_empty() => None,
            None => Some(RequestInfo { requests, ..RequestInfo::default() }),
        };
        self.send.send(Ok(R::from(ConformancePayload { data, request_info }))).await.is_ok()
    }

    /// Sends the rest, and the final status.
    async fn finish(mut self) {
        while self.reply().await {}
        let Some(error) = self.definition.error else { return };
        // Earlier replies have already reported the request.
        let info = self.info.map(|info| RequestInfo { requests: self.requests, ..info });
        let status = metadata(&self.definition.response_trailers)
            .map_or_else(|status| status, |trailers| failed(error, info.as_ref(), trailers));
        let _ = self.send.send(Err(status)).await;
    }
}

impl From<ConformancePayload> for ServerStreamResponse {
    fn from(payload: ConformancePayload) -> Self {
        ServerStreamResponse { payload: Some(payload) }
    }
}

impl From<ConformancePayload> for BidiStreamResponse {
    fn from(payload: ConformancePayload) -> Self {
        BidiStreamResponse { payload: Some(payload) }
    }
}

// === what arrived, and what is asked for ===

fn info(metadata: &MetadataMap) -> RequestInfo {
    let head = metadata.clone().into_headers();
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let header = |name: &HeaderName| Header {
        name: name.to_string(),
        value: head.get_all(name).iter().map(text).collect(),
    };
    let left = |at: Instant| i64::try_from((at - Instant::now()).as_millis()).unwrap_or(i64::MAX);
    RequestInfo {
        request_headers: head.keys().map(header).collect(),
        timeout_ms: Context::current().deadline.map(left),
        ..RequestInfo::default()
    }
}

fn packed<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn metadata(headers: &[Header]) -> Result<HeaderMap, Status> {
    let malformed = |_| Status::invalid_argument("a header that can't be sent");
    let mut all = HeaderMap::new();
    for Header { name, value } in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| malformed(error.to_string()))?;
        for value in value {
            let value = HeaderValue::from_str(value).map_err(|error| malformed(error.to_string()))?;
            all.append(&name, value);
        }
    }
    Ok(all)
}

fn failed(error: Error, info: Option<&RequestInfo>, trailers: HeaderMap) -> Status {
    let mut details = error.details;
    details.extend(info.map(packed));
    let message = error.message.unwrap_or_default();
    let encoded = pb::Status { code: error.code, message: message.clone(), details }.encode_to_vec();
    let trailers = MetadataMap::from_headers(trailers);
    Status::with_details_and_metadata(Code::from_i32(error.code), message, encoded.into(), trailers)
}

fn with_metadata<T>(message: T, head: HeaderMap, trailers: HeaderMap) -> Response<T> {
    let mut response = Response::new(message);
    *response.metadata_mut() = MetadataMap::from_headers(head);
    response.extensions_mut().insert(Trailers(trailers));
    response
}
