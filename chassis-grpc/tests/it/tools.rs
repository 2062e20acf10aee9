//! Requests that tools send to a server: health, and the list of its services.
use chassis_core::{Body, protocol::Protocol};
use chassis_grpc::{Channel, GRPC, GrpcServices, Health};
use chassis_protos::echo::echo_server::EchoServer;
use tokio_stream::StreamExt;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use tower_service::Service;

use crate::{echo::Echo, pipeline_of};

/// A channel whose calls go directly to the handlers.
fn straight_to(services: GrpcServices) -> Channel {
    Channel::new("echo", pipeline_of(move |call| services.clone().call(call)))
}

fn all(health: &Health) -> GrpcServices {
    let services = GrpcServices::default().add(EchoServer::new(Echo::default()));
    let services = services.descriptors(chassis_protos::echo::FILE_DESCRIPTOR_SET).unwrap();
    services.health(health).reflection().unwrap()
}

#[tokio::test]
async fn health_by_name() {
    let health = Health::default();
    let mut stub = HealthClient::new(straight_to(all(&health)));
    let mut check = async |service: &str| {
        let answer = stub.check(HealthCheckRequest { service: service.to_owned() }).await;
        answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
    };
    assert_eq!(check("").await, Ok(ServingStatus::NotServing));
    health.serving();
    for service in ["", "chassis.test.v1.Echo"] {
        assert_eq!(check(service).await, Ok(ServingStatus::Serving));
    }
    assert_eq!(check("another").await, Err(tonic::Code::NotFound));
}

#[tokio::test]
async fn reflection_lists_and_describes_what_is_served() {
    let mut stub = ServerReflectionClient::new(straight_to(all(&Health::default())));
    let asked = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("chassis.test.v1.Echo".to_owned()),
        MessageRequest::FileContainingSymbol("grpc.health.v1.Health".to_owned()),
        MessageRequest::FileContainingSymbol("no.such.Thing".to_owned()),
    ];
    let asked = asked.map(|one| ServerReflectionRequest { message_request: Some(one), ..Default::default() });
    let answers = stub.server_reflection_info(tokio_stream::iter(asked)).await.unwrap().into_inner();
    let answers: Vec<_> =
        answers.map(|answer| Ok::<_, tonic::Status>(answer?.message_response.unwrap())).collect().await;
    let Ok(MessageResponse::ListServicesResponse(listed)) = &answers[0] else { panic!("{answers:?}") };
    let listed: Vec<_> = listed.service.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(
        listed,
        [
            "chassis.test.v1.Echo",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        ]
    );
    assert!(matches!(&answers[1], Ok(MessageResponse::FileDescriptorResponse(_))));
    assert!(matches!(&answers[2], Ok(MessageResponse::FileDescriptorResponse(_))));
    assert_eq!(answers[3].as_ref().unwrap_err().code(), tonic::Code::NotFound);
}

#[tokio::test]
async fn descriptors_that_are_none_are_refused() {
    let error = GrpcServices::default().descriptors(&b"\xff\xff"[..]).unwrap_err();
    assert!(error.to_string().contains("FileDescriptorSet"));
    assert!(std::error::Error::source(&error).is_some());
}

#[test]
fn a_refusal_has_no_body() {
    let (_, _, body) = GRPC.refuse(&chassis_core::Error::local(chassis_core::Reason::Internal, "no"));
    assert!(body.try_clone().is_some_and(|body: Body| http_body::Body::is_end_stream(&body)));
}
