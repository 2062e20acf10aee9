//! The chassis REST client calls nginx, in both versions of HTTP.
use std::time::Duration;

use chassis::{Code, HttpClient};
use http::{Method, header::CONTENT_LENGTH};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    ours::{self, counted},
    peer,
    trials::Ran,
};

trials! {
    over_http_1
    over_http_2
    its_connections_end_in_the_middle_of_work
    idle_connections_it_closes_fail_no_get
}

/// The answers that nginx gives by itself.
async fn check_answers(peer: &HttpClient) {
    for _ in 0..100 {
        let answer = peer.get("/nginx/hello").send().await.unwrap();
        assert_eq!(answer.headers()["server"].to_str().unwrap().split('/').next(), Some("nginx"));
        assert_eq!(answer.text().await.unwrap(), "hello from nginx");
    }
    for (what, code) in [("missing", Code::NotFound), ("broken", Code::Internal)] {
        for method in [Method::GET, Method::POST] {
            let request = peer.request(method, "/nginx/{what}").param("what", what);
            let problem = request.body("some").send().await.unwrap().ok().await.unwrap_err();
            assert_eq!(problem.code(), code, "{problem:?}");
        }
    }
    let file = peer.get("/nginx/file").send().await.unwrap().bytes().await.unwrap();
    assert!(file == vec![b'x'; 1 << 20]);
    let head = peer.head("/nginx/file").send().await.unwrap();
    assert_eq!(head.headers()[CONTENT_LENGTH], (1 << 20).to_string());
    assert_eq!(head.bytes().await.unwrap(), "");
    let part = peer.get("/nginx/file").header("range", "bytes=0-9").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "xxxxxxxxxx"));
    // An unknown method, and an answer that comes before the request has been read.
    let method = Method::from_bytes(b"BREW").unwrap();
    assert_eq!(peer.request(method, "/nginx/file").send().await.unwrap().status().as_u16(), 405);
    let large = peer.post("/nginx/missing").body(vec![0; 2 << 20]).send().await.unwrap();
    assert_eq!(large.status().as_u16(), 404);
}

async fn over_http_1() -> Ran {
    let (_nginx, http1, _) = peer::nginx(None).await?;
    let app = ours::caller(&http1, json!({})).await;
    check_answers(&app.http("peer")).await;
    Ok(())
}

async fn over_http_2() -> Ran {
    let (_nginx, _, http2) = peer::nginx(None).await?;
    let app = ours::caller(&http2, json!({ "client": { "http_version": "2" } })).await;
    check_answers(&app.http("peer")).await;
    Ok(())
}

/// nginx closes connections after each answer and, over HTTP/2, after a thousand requests: GOAWAY.
async fn its_connections_end_in_the_middle_of_work() -> Ran {
    let (_nginx, http1, http2) = peer::nginx(None).await?;
    let one = ours::caller(&http1, json!({})).await;
    let two = ours::caller(&http2, json!({ "client": { "http_version": "2" } })).await;
    for (app, path, times) in
        [(&one, "/nginx/last", 200), (&one, "/nginx/hello", 1100), (&two, "/nginx/hello", 600)]
    {
        let callers = (0..4).map(|_| {
            let peer = app.http("peer");
            tokio::spawn(async move {
                for _ in 0..times {
                    let answer = peer.post(path).send().await.unwrap();
                    assert_eq!(answer.status().as_u16(), 200);
                    answer.bytes().await.unwrap();
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
    }
    for app in [one, two] {
        assert_eq!(counted(app.runtime(), "chassis_retry_attempts_total", &[]), 0, "all went well at once");
    }
    Ok(())
}

/// Requests are sent about when nginx closes the connection, so each races with its end.
async fn idle_connections_it_closes_fail_no_get() -> Ran {
    let (_nginx, http1, _) = peer::nginx(None).await?;
    let app = ours::caller(&http1, json!({})).await;
    let peer = app.http("peer");
    for n in 0..300 {
        let answer = peer.get("/nginx/brief").send().await.unwrap();
        assert_eq!(answer.text().await.unwrap(), "brief");
        sleep(Duration::from_micros(8_000 + 250 * (n % 20))).await;
    }
    Ok(())
}
