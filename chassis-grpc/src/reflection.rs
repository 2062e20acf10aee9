//! Reflection, v1 and v1alpha: lists the services for tools such as grpcurl, from the protos' descriptors.
//!
//! A tool may leave its stream open for as long as it runs. So that the stream does not delay a stop, its
//! requests end when the process drains: the service answers the ones it has and closes.
use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body, server::NamedService};
use tonic_reflection::{
    pb::{v1, v1alpha},
    server::Builder,
};
use tower_service::Service;

use crate::{
    health::{Closing, Health},
    services::{DescriptorError, GrpcServices},
};

const V1: &str = "grpc.reflection.v1.ServerReflection";
const V1_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// A service whose streams end when the process drains.
#[derive(Clone)]
struct Drains<S> {
    inner: S,
    health: Arc<OnceLock<Health>>,
}

/// The requests of a stream, until the process drains.
struct UntilClosed {
    body: Body,
    closing: Closing,
}

/// Adds reflection to `services`; it lists them and itself.
pub(crate) fn add(services: GrpcServices) -> Result<GrpcServices, DescriptorError> {
    let mut names: Vec<&str> = services.names().chain([V1, V1_ALPHA]).collect();
    names.sort_unstable();
    names.dedup();
    let own = [v1::FILE_DESCRIPTOR_SET, v1alpha::FILE_DESCRIPTOR_SET].map(Bytes::from_static);
    let builder = || {
        let sets = own.iter().chain(services.all_descriptors());
        let builder =
            sets.fold(Builder::configure(), |all, set| all.register_encoded_file_descriptor_set(set));
        names.iter().fold(builder, |all, name| all.with_service_name(*name))
    };
    let health = services.draining();
    let v1 = Drains { inner: builder().build_v1()?, health: health.clone() };
    let v1_alpha = Drains { inner: builder().build_v1alpha()?, health: health.clone() };
    let with = services.clone().add(v1).add(v1_alpha);
    own.into_iter().try_fold(with, GrpcServices::descriptors)
}

// === impl Drains ===

impl<S: Service<Request<Body>>> Service<Request<Body>> for Drains<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> S::Future {
        let closing = self.health.get().map(Health::closing);
        self.inner.call(match closing {
            Some(closing) => request.map(|body| Body::new(UntilClosed { body, closing })),
            None => request,
        })
    }
}

impl<S: NamedService> NamedService for Drains<S> {
    const NAME: &'static str = S::NAME;
}

// === impl UntilClosed ===

impl HttpBody for UntilClosed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Pending => this.closing.poll(cx).map(|()| None),
            ready => ready,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
