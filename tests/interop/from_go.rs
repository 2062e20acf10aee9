//! grpc-go's interop client calls the chassis server: the fourteen cases of gRPC's interop-test-descriptions.
use serde_json::json;

use crate::{interop, ours, peer::go_client, trials::Ran};

macro_rules! cases {
    ($($case:ident)*) => {
        $(
            async fn $case() -> Ran {
                let app = ours::builder(json!({})).build().await.unwrap();
                let server = app.serve_grpc(interop::service()).start().await.unwrap();
                go_client(server.address("grpc").unwrap(), stringify!($case)).await
            }
        )*
        trials! { $($case)* }
    };
}

cases! {
    empty_unary
    large_unary
    client_streaming
    server_streaming
    ping_pong
    empty_stream
    cancel_after_begin
    cancel_after_first_response
    timeout_on_sleeping_server
    status_code_and_message
    special_status_message
    custom_metadata
    unimplemented_method
    unimplemented_service
}
