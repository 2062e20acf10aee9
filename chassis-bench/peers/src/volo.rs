//! volo-grpc on both ends.
use std::net::SocketAddr;

use bytes::Bytes;
use chassis_bench::{
    Result,
    compare::{Case, MESSAGES, STREAMS, Setup, Side, Worker, worker},
};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use volo::net::{Address, incoming::DefaultIncoming};
use volo_grpc::{
    BoxStream, RecvStream, Request, Response, Status,
    server::{Server, ServiceBuilder},
};

use self::generated::volo_gen::bench::v1::{CallReply, CallRequest, Echo, EchoClientBuilder, EchoServer};
use crate::BoxFuture;

#[allow(missing_docs, unsafe_code, unreachable_pub, clippy::all, clippy::pedantic, reason = "generated")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/volo_gen.rs"));
}

/// volo-grpc, with its default options.
pub(crate) struct Volo;

/// Answers with the request's content.
struct Handler;

type Reply<T> = Result<Response<T>, Status>;

impl Echo for Handler {
    async fn call(&self, request: Request<CallRequest>) -> Reply<CallReply> {
        Ok(Response::new(reply(request.into_inner().payload)))
    }

    async fn download(
        &self,
        request: Request<CallRequest>,
    ) -> Reply<BoxStream<'static, Result<CallReply, Status>>> {
        let request = request.into_inner();
        let replies = std::iter::repeat_n(reply(request.payload), request.repeat as usize).map(Ok);
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn upload(&self, request: Request<RecvStream<CallRequest>>) -> Reply<CallReply> {
        let (mut requests, mut last) = (request.into_inner(), Bytes::new());
        while let Some(request) = requests.next().await {
            last = request?.payload;
        }
        Ok(Response::new(reply(last)))
    }

    async fn chat(
        &self,
        request: Request<RecvStream<CallRequest>>,
    ) -> Reply<BoxStream<'static, Result<CallReply, Status>>> {
        let replies = request.into_inner().map(|request| Ok(reply(request?.payload)));
        Ok(Response::new(Box::pin(replies)))
    }
}

fn reply(payload: Bytes) -> CallReply {
    CallReply { payload, ..CallReply::default() }
}

impl Side for Volo {
    fn name(&self) -> &'static str {
        "volo_grpc"
    }

    fn does(&self, case: Case) -> bool {
        case.is_grpc()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(async {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            let service = ServiceBuilder::new(EchoServer::new(Handler)).build();
            let server = Server::new().http2_max_concurrent_streams(STREAMS).add_service(service);
            tokio::spawn(server.run(DefaultIncoming::from(listener)));
            Ok(address)
        })
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            // A client has one connection to an address.
            let client = || EchoClientBuilder::new("echo").address(Address::from(at)).build();
            let clients: Vec<_> = (0..setup.connections).map(|_| client()).collect();
            let payload = Bytes::from(vec![b'x'; setup.case.payload()]);
            let worker = |index: usize| {
                let (client, payload, case) =
                    (clients[index % clients.len()].clone(), payload.clone(), setup.case);
                worker(move || {
                    let (client, payload) = (client.clone(), payload.clone());
                    async move {
                        let length = payload.len();
                        let request = CallRequest { payload, repeat: MESSAGES, ..CallRequest::default() };
                        if case != Case::GrpcServerStreaming {
                            let reply = client.call(request).await?.into_inner();
                            return match reply.payload.len() == length {
                                true => Ok(()),
                                false => Err("another payload came back".into()),
                            };
                        }
                        let replies = client.download(request).await?.into_inner();
                        let mut replies = std::pin::pin!(replies);
                        let mut got = 0;
                        while let Some(reply) = replies.next().await {
                            reply?;
                            got += 1;
                        }
                        match got == MESSAGES {
                            true => Ok(()),
                            false => Err(format!("{got} messages came, not {MESSAGES}").into()),
                        }
                    }
                })
            };
            Ok((0..setup.concurrency).map(worker).collect())
        })
    }
}
