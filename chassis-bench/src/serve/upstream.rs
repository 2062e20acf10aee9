//! The services that a service calls before it answers.
use std::str::FromStr;

use chassis::{Channel, Chassis, Code, HttpClient};

use super::{rest::EchoReply, work::Failure};
use crate::echo::{CallRequest, Hop, echo_client::EchoClient};

/// A service to call, and its protocol: `stock:grpc`, `stock:http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The service's name.
    pub service: String,
    /// `http` rather than `grpc`.
    pub over_http: bool,
}

/// A client of one upstream.
pub(super) enum Client {
    Grpc(EchoClient<Channel>),
    Http(HttpClient),
}

// === impl Upstream ===

impl FromStr for Upstream {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once(':') {
            Some((service, protocol @ ("grpc" | "http"))) if !service.is_empty() => {
                Ok(Upstream { service: service.to_owned(), over_http: protocol == "http" })
            }
            _ => Err(format!("`{text}` is no upstream; write stock:grpc or stock:http")),
        }
    }
}

// === impl Client ===

impl Client {
    pub(super) fn new(app: &Chassis, upstream: &Upstream) -> Self {
        match upstream.over_http {
            false => Client::Grpc(EchoClient::new(app.grpc(&upstream.service))),
            true => Client::Http(app.http(&upstream.service)),
        }
    }

    /// Calls the upstream and returns its hops.
    pub(super) async fn call(&self) -> Result<Vec<Hop>, Failure> {
        match self {
            Client::Grpc(client) => {
                let reply = client.clone().call(CallRequest::default()).await;
                Ok(reply.map_err(Failure::from)?.into_inner().hops)
            }
            Client::Http(client) => {
                let answer = client.get("/call/{id}").param("id", 0).send().await?;
                let answer = answer.ok().await.map_err(chassis::Error::from)?;
                Ok(answer.json::<EchoReply>().await?.hops)
            }
        }
    }
}

// === impl Failure ===

impl From<chassis::Error> for Failure {
    fn from(error: chassis::Error) -> Self {
        Failure { code: error.code(), message: error.message().to_owned() }
    }
}

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        let code = u16::try_from(i32::from(status.code())).map_or(Code::Unknown, Code::from_number);
        Failure { code, message: status.message().to_owned() }
    }
}
