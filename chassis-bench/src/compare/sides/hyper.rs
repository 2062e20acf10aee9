//! hyper's client: with the pool of hyper-util, and without a pool.
use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpStream, sync::Mutex};

use super::{
    super::{Case, Setup, Side, Worker, worker},
    rest,
};
use crate::Result;

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// hyper-util's pooled client to `axum::serve`.
pub struct Pooled;

/// A connection for each caller to `axum::serve`: no pool, the minimum of work.
pub struct Raw;

impl Side for Pooled {
    fn name(&self) -> &'static str {
        "bare_hyper"
    }

    fn does(&self, case: Case) -> bool {
        case.is_rest()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(rest::axum_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let mut connector = HttpConnector::new();
            connector.set_nodelay(true);
            let client: Client<_, Full<Bytes>> = Client::builder(TokioExecutor::new()).build(connector);
            let is_get = setup.case == Case::RestGet;
            let get: Uri = format!("http://{at}/call/42").parse()?;
            let post: Uri = format!("http://{at}/call").parse()?;
            let call = move || {
                let (client, get, post) = (client.clone(), get.clone(), post.clone());
                async move {
                    let answer = client.request(request(is_get, get, post)?).await?;
                    let status = answer.status();
                    rest::check(is_get, status, &answer.into_body().collect().await?.to_bytes())
                }
            };
            Ok((0..setup.concurrency).map(|_| worker(call.clone())).collect())
        })
    }
}

impl Side for Raw {
    fn name(&self) -> &'static str {
        "raw_hyper"
    }

    fn does(&self, case: Case) -> bool {
        case.is_rest()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(rest::axum_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let is_get = setup.case == Case::RestGet;
            let mut workers = Vec::new();
            for _ in 0..setup.concurrency {
                let stream = TcpStream::connect(at).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                let sender = Arc::new(Mutex::new(sender));
                workers.push(worker(move || {
                    let sender = sender.clone();
                    async move {
                        let mut sender = sender.lock().await;
                        sender.ready().await?;
                        let (get, post) = (Uri::from_static("/call/42"), Uri::from_static("/call"));
                        let mut request = request(is_get, get, post)?;
                        request.headers_mut().insert(header::HOST, header::HeaderValue::from_static("echo"));
                        let answer = sender.send_request(request).await?;
                        let status = answer.status();
                        rest::check(is_get, status, &answer.into_body().collect().await?.to_bytes())
                    }
                }));
            }
            Ok(workers)
        })
    }
}

fn request(is_get: bool, get: Uri, post: Uri) -> Result<Request<Full<Bytes>>> {
    match is_get {
        true => Ok(Request::get(get).body(Full::default())?),
        false => {
            let body = serde_json::to_vec(&rest::document())?;
            let request = Request::post(post).header(header::CONTENT_TYPE, "application/json");
            Ok(request.body(Full::from(body))?)
        }
    }
}
