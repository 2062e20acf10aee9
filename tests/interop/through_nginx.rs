//! nginx before the chassis server: as a reverse proxy over HTTP/1.1, and with `grpc_pass`.
use std::convert::Infallible;

use bytes::Bytes;
use chassis_protos::echo::echo_client::EchoClient;
use http_body::Frame;
use http_body_util::StreamBody;
use serde_json::json;

use crate::{
    echo::says,
    ours,
    peer::{self, grpcio_client},
    trials::Ran,
};

trials! {
    rest
    grpcio
    our_own_channel
}

async fn rest() -> Ran {
    let (_server, address) = ours::rest(json!({})).await;
    let (_nginx, http1, _) = peer::nginx(Some(&address)).await?;
    let app = ours::caller(&http1, json!({})).await;
    let peer = app.http("peer");
    for n in 0..100 {
        let answer = peer.get("/hello/{name}").param("name", n).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), format!("hello, {n}"));
        let answer = peer.post("/echo").body(n.to_string()).send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), n.to_string());
    }
    let chunks = (0..10u8).map(|n| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![n; 100_000]))));
    let body = StreamBody::new(tokio_stream::iter(chunks));
    let back = peer.post("/echo").stream(body).send().await.unwrap().bytes().await.unwrap();
    assert!(back == (0..10).flat_map(|n| vec![n; 100_000]).collect::<Vec<u8>>());
    let lines = peer.get("/lines/{n}").param("n", 1000).send().await.unwrap().text().await.unwrap();
    assert_eq!(lines, ours::lines(1000).map(Result::unwrap).collect::<String>());
    let problem = peer.get("/nowhere").send().await.unwrap().ok().await.unwrap_err();
    assert_eq!(problem.code(), chassis::Code::NotFound);
    Ok(())
}

async fn grpcio() -> Ran {
    let (_server, address) = ours::echo(json!({})).await;
    let (_nginx, _, http2) = peer::nginx(Some(&address)).await?;
    grpcio_client(&http2, &["all"]).await
}

async fn our_own_channel() -> Ran {
    let (_server, address) = ours::echo(json!({})).await;
    let (_nginx, _, http2) = peer::nginx(Some(&address)).await?;
    let app = ours::caller(&http2, json!({})).await;
    // nginx ends a connection after a thousand requests.
    let callers = (0..4).map(|_| {
        let mut stub = EchoClient::new(app.grpc("peer"));
        tokio::spawn(async move {
            for n in 0..275 {
                let reply = stub.call(says(&n.to_string())).await.unwrap().into_inner();
                assert_eq!(reply.message, n.to_string());
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    Ok(())
}
