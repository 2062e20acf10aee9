//! grpcio calls the chassis server. The cases are in `tests/foreign/grpc_client.py`.
use serde_json::json;

use crate::{ours, peer::grpcio_client, trials::Ran};

macro_rules! cases {
    ($($case:ident)*) => {
        $(
            async fn $case() -> Ran {
                let (_server, address) = ours::echo(json!({})).await;
                grpcio_client(&address, &[stringify!($case)]).await
            }
        )*
        trials! { $($case)* a_refusal_says_who_and_why }
    };
}

cases! { unary large server_stream client_stream bidi deadline metadata cancel error reflection health }

async fn a_refusal_says_who_and_why() -> Ran {
    let settings = json!({ "inbound": { "rate_limits": [{ "name": "none", "rate": "0/s", "burst": 0 }] } });
    let (_server, address) = ours::echo(settings).await;
    grpcio_client(&address, &["refusal", "RATE_LIMITED"]).await
}
