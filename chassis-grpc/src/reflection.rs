//! Reflection, v1 and v1alpha: tells tools such as grpcurl what is served, by the protos' descriptors.
use bytes::Bytes;
use tonic_reflection::{
    pb::{v1, v1alpha},
    server::Builder,
};

use crate::services::{DescriptorError, GrpcServices};

const V1: &str = "grpc.reflection.v1.ServerReflection";
const V1_ALPHA: &str = "grpc.reflection.v1alpha.ServerReflection";

/// Adds it to `services`, listing what they serve and itself.
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
    let with = services.clone().add(builder().build_v1()?).add(builder().build_v1alpha()?);
    own.into_iter().try_fold(with, GrpcServices::descriptors)
}
