//! REST: the client that calls services by name, the edge around a router, problem documents.
mod client;
mod edge;
mod limited;
mod problem;
mod protocol;
#[cfg(feature = "tonic")]
mod status;

pub use self::{
    client::{HttpClient, RequestBuilder, Response},
    edge::{RestEdge, RestFuture, RestLayer, RestService},
    problem::{Problem, error},
    protocol::{HTTP, Http},
};
