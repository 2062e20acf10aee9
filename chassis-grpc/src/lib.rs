//! gRPC on the HTTP transport of chassis: channels for tonic stubs, tonic services, health, reflection.
//!
//! - [`Channel`] takes the place of tonic's: every stub that tonic generates works on it.
//! - [`GrpcServices`] takes the place of tonic's router, and [`GrpcServer`] puts a pipeline before it;
//!   [`GrpcEdge`] puts layers of HTTP before that.
//! - [`Grpc`] is what the pipeline has to know of the protocol, [`GrpcTransport`] how it reaches endpoints.
//! - [`error`] gives a caller back why a call was refused; [`problem`] says it in HTTP's words.
mod answer;
mod body;
mod channel;
mod descriptors;
mod details;
mod edge;
mod health;
mod message;
mod options;
mod protocol;
mod reflection;
mod server;
mod services;
mod status;
mod timeout;
mod transport;
mod wire;

pub use self::{
    answer::answer,
    body::ResponseBody,
    channel::{Channel, ResponseFuture},
    descriptors::{idempotent_operations, operations},
    edge::GrpcEdge,
    health::Health,
    options::RequestExt,
    protocol::{GRPC, Grpc},
    server::{GrpcServer, ServerFuture},
    services::{DescriptorError, GrpcServices},
    status::{error, problem, status},
    transport::GrpcTransport,
};
