//! gRPC on chassis' HTTP transport: channels for tonic stubs, tonic services, health, reflection.
//!
//! - [`Channel`] replaces tonic's: every stub that tonic generates works on it.
//! - [`GrpcServices`] replaces tonic's router. [`GrpcServer`] puts a pipeline before it, and [`GrpcEdge`]
//!   puts HTTP layers before that.
//! - [`Grpc`] describes the protocol to the pipeline; [`GrpcTransport`] reaches endpoints.
//! - [`error`] returns why a call was refused; [`problem`] converts it to an HTTP answer.
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

/// Sets the options of a call on a `tonic::Request`.
pub use chassis_core::RequestExt;

pub use self::{
    answer::answer,
    body::ResponseBody,
    channel::{Channel, ResponseFuture},
    descriptors::{idempotent_operations, merge_descriptors, operations},
    edge::GrpcEdge,
    health::Health,
    protocol::{GRPC, Grpc},
    server::{GrpcServer, ServerFuture},
    services::{DescriptorError, GrpcServices},
    status::{error, problem, status},
    transport::GrpcTransport,
};
