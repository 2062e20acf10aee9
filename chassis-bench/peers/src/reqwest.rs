//! reqwest as a client of `axum::serve`.
use std::net::SocketAddr;

use chassis_bench::{
    Result,
    compare::{Case, Setup, Side, Worker, sides, worker},
};
use http::{HeaderValue, header};

use crate::BoxFuture;

/// reqwest, with its default options.
pub(crate) struct Reqwest;

impl Side for Reqwest {
    fn name(&self) -> &'static str {
        "reqwest"
    }

    fn does(&self, case: Case) -> bool {
        case.is_rest()
    }

    fn serve(&self, _: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(sides::axum_serve())
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let client = reqwest::Client::builder().no_proxy().build()?;
            let is_get = setup.case == Case::RestGet;
            let (get, post) = (format!("http://{at}/call/42"), format!("http://{at}/call"));
            let call = move || {
                let request = match is_get {
                    true => client.get(&get),
                    false => client
                        .post(&post)
                        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
                        .json(&sides::document()),
                };
                async move {
                    let answer = request.send().await?;
                    let status = answer.status();
                    sides::check(is_get, status, &answer.bytes().await?)
                }
            };
            Ok((0..setup.concurrency).map(|_| worker(call.clone())).collect())
        })
    }
}
