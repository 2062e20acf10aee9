//! grpcio calls our server. The cases are in `tests/foreign/grpc_client.py`.
use serde_json::json;

use crate::{ours, peer::grpcio_client};

macro_rules! cases {
    ($($case:ident)*) => {
        $(
            #[tokio::test]
            async fn $case() {
                let (_server, address) = ours::echo(json!({})).await;
                grpcio_client(&address, &[stringify!($case)]).await;
            }
        )*
    };
}

cases! { unary large server_stream client_stream bidi deadline metadata cancel error reflection health }

#[tokio::test]
async fn a_refusal_says_who_and_why() {
    let settings = json!({ "inbound": { "rate_limits": [{ "name": "nobody", "rate": "0/s", "burst": 0 }] } });
    let (_server, address) = ours::echo(settings).await;
    grpcio_client(&address, &["refusal", "RATE_LIMITED"]).await;
}
