//! curl calls our servers.
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    ours::{self, counted, lines},
    peer::{curl, finish, succeed},
};

/// Runs curl against `http://ADDRESS` with these words, in which `@@` stands for the address. Returns what
/// it printed.
async fn run(address: &str, words: &[&str]) -> Option<String> {
    let words = words.iter().map(|word| word.replace("@@", &format!("http://{address}")));
    Some(succeed(curl()?.args(words)).await)
}

/// A file of so many bytes, and the folder it is in.
fn file(size: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![b'x'; size]).unwrap();
    (folder, path)
}

/// What `--include` and `--write-out` printed: the status, the headers, the rest.
fn parts(printed: &str) -> (&str, Vec<&str>, &str) {
    let (head, rest) = printed.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    (status, lines.collect(), rest)
}

#[tokio::test]
async fn plain() {
    let (_server, address) = ours::rest(json!({})).await;
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let Some(said) = run(&address, &[version, "--include", "@@/hello/you"]).await else { return };
        let (status, headers, body) = parts(&said);
        assert_eq!((status, body), ("200", "hello, you"), "{version}");
        assert!(headers.contains(&"content-length: 10"), "{version} {headers:?}");
        let said = run(&address, &[version, "@@/lines/1000"]).await.unwrap();
        assert_eq!(said, lines(1000).map(Result::unwrap).collect::<String>(), "{version}");
        let said = run(&address, &[version, "--data", "some", "@@/echo"]).await.unwrap();
        assert_eq!(said, "some", "{version}");
    }
}

#[tokio::test]
async fn head_says_what_get_would() {
    let (_server, address) = ours::rest(json!({})).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let Some(said) = run(&address, &[version, "--head", "@@/hello/you"]).await else { return };
        let (status, headers, rest) = parts(&said);
        assert_eq!((status, rest), ("200", ""), "{version}");
        assert!(headers.contains(&"content-length: 10"), "{version} {headers:?}");
    }
}

#[tokio::test]
async fn what_is_not_there() {
    let (_server, address) = ours::rest(json!({})).await;
    for (words, expected) in [(&["@@/nowhere"][..], "404"), (&["--data", "x", "@@/hello/you"], "405")] {
        let Some(said) = run(&address, &[words, &["--include"]].concat()).await else { return };
        let (status, headers, body) = parts(&said);
        assert_eq!(status, expected);
        assert!(headers.contains(&"content-type: application/problem+json"), "{headers:?}");
        assert_eq!(serde_json::from_str::<Value>(body).unwrap()["status"].to_string(), expected);
    }
}

/// Also after an answer that failed, and after a panic. (Over HTTP/2 by prior knowledge, curl 7.88 can't use
/// a connection twice, whoever serves it.)
#[tokio::test]
async fn a_connection_is_kept() {
    let (server, address) = ours::rest(json!({})).await;
    let words = [
        "--write-out",
        " %{http_code} %{num_connects}\n",
        "@@/hello/a",
        "@@/nowhere",
        "@@/panic",
        "@@/hello/b",
    ];
    let Some(said) = run(&address, &words).await else { return };
    let ends: Vec<_> = said.lines().map(|line| line.rsplitn(3, ' ').take(2).collect::<Vec<_>>()).collect();
    assert_eq!(ends, [["1", "200"], ["0", "404"], ["0", "500"], ["0", "200"]], "{said}");
    assert_eq!(counted(server.runtime(), "chassis_handler_panics_total", &[]), 1);
}

#[tokio::test]
async fn an_upload_in_chunks() {
    let (_server, address) = ours::rest(json!({})).await;
    let (_folder, file) = file(1 << 20);
    for words in [
        &["--http1.1", "--header", "transfer-encoding: chunked"][..],
        &["--http1.1", "--header", "transfer-encoding: chunked", "--header", "expect: 100-continue"],
        &["--http1.1", "--header", "expect: 100-continue"],
        &["--http2-prior-knowledge"],
    ] {
        let data = format!("@{}", file.display());
        let Some(said) = run(&address, &[words, &["--data-binary", &data, "@@/echo"]].concat()).await else {
            return;
        };
        assert_eq!(said.len(), 1 << 20, "{words:?}");
    }
}

/// Who asks first is told to go on; or not to, before anything was sent.
#[tokio::test]
async fn expect_100_continue() {
    let (_server, address) = ours::rest(json!({})).await;
    for (size, status, sent) in [(1 << 20, "200", 1 << 20), (3 << 20, "413", 0)] {
        let (_folder, file) = file(size);
        let data = format!("@{}", file.display());
        let out = "%{http_code} %{size_upload}";
        let words =
            ["--header", "expect: 100-continue", "--expect100-timeout", "20", "--output", "/dev/null"];
        let words = [&words[..], &["--write-out", out, "--data-binary", &data, "@@/echo"]].concat();
        let Some(said) = run(&address, &words).await else { return };
        assert_eq!(said, format!("{status} {sent}"));
    }
}

#[tokio::test]
async fn oversize_bodies() {
    let (_server, address) = ours::rest(json!({ "server": { "max_body": 1_000_000 } })).await;
    let (_folder, file) = file(1_000_001);
    let data = format!("@{}", file.display());
    for words in [
        &["--http1.1", "--header", "expect:"][..],
        &["--http1.1", "--header", "expect:", "--header", "transfer-encoding: chunked"],
    ] {
        let words = [words, &["--include", "--data-binary", &data, "@@/echo"]].concat();
        let Some(said) = run(&address, &words).await else { return };
        let (status, headers, body) = parts(&said);
        assert_eq!(status, "413", "{words:?}");
        assert!(headers.contains(&"content-type: application/problem+json"), "{headers:?}");
        assert!(body.contains("TOO_LARGE"), "{body}");
        assert_eq!(run(&address, &["@@/hello/you"]).await.unwrap(), "hello, you");
    }
}

#[tokio::test]
async fn oversize_headers() {
    let (_server, address) = ours::rest(json!({})).await;
    let (grpc, grpc_address) = ours::echo(json!({})).await;
    let large = format!("x-large: {}", "x".repeat(20_000));
    let many: Vec<_> = (0..200).flat_map(|n| ["--header".to_owned(), format!("x-{n}: {n}")]).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    for address in [&address, &grpc_address] {
        for (version, headers) in [
            ("--http1.1", &["--header", &large][..]),
            ("--http1.1", &many),
            ("--http2-prior-knowledge", &["--header", &large]),
        ] {
            let out = ["--output", "/dev/null", "--write-out", "%{http_code}", "@@/hello/you"];
            let Some(said) = run(address, &[&[version], headers, &out].concat()).await else { return };
            assert_eq!(said, "431", "{version}");
        }
    }
    assert_eq!(run(&address, &["@@/hello/you"]).await.unwrap(), "hello, you");
    drop(grpc);
}

/// An empty message: no compression, no bytes.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

#[tokio::test]
async fn a_malformed_grpc_timeout() {
    let (_server, address) = ours::echo(json!({})).await;
    let folder = tempfile::tempdir().unwrap();
    let message = folder.path().join("message");
    std::fs::write(&message, EMPTY_MESSAGE).unwrap();
    let data = format!("@{}", message.display());
    for (timeout, is_good) in [
        ("5S", true),
        ("soon", false),
        ("", false),
        ("-1S", false),
        ("999999999n", false),
        ("5 S", false),
        ("1.5S", false),
    ] {
        let words =
            ["--http2-prior-knowledge", "--include", "--data-binary", &data, "@@/chassis.test.v1.Echo/Call"];
        let timeout = match timeout {
            "" => "grpc-timeout;".to_owned(), // how curl is told of an empty one
            timeout => format!("grpc-timeout: {timeout}"),
        };
        let headers =
            ["content-type: application/grpc", "te: trailers", &timeout].map(|header| ["--header", header]);
        let mut command = match curl() {
            Some(command) => command,
            None => return,
        };
        command
            .args(headers.concat())
            .args(words.map(|word| word.replace("@@", &format!("http://{address}"))));
        let said = finish(&mut command).await.stdout;
        let said = String::from_utf8_lossy(&said);
        let (status, headers, _) = parts(&said);
        if is_good {
            assert_eq!(status, "200", "{timeout}: {said}");
            assert!(said.contains("grpc-status: 0"), "{said}");
        } else {
            assert_eq!(status, "400", "{timeout}: {said}");
            assert!(headers.contains(&"grpc-status: 13"), "{headers:?}");
            assert!(
                headers.iter().any(|header| header.starts_with("grpc-message: malformed%20grpc-timeout"))
            );
        }
    }
}

#[tokio::test]
async fn whoever_speaks_no_grpc_is_told_so() {
    let (_server, address) = ours::echo(json!({})).await;
    for (words, expected) in [
        (&["@@/"][..], "404"),
        (&["--data", "x", "@@/chassis.test.v1.Echo/Call"], "415"),
        (&["--header", "content-type: application/grpc", "@@/chassis.test.v1.Echo/Call"], "405"),
    ] {
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let out = ["--output", "/dev/null", "--write-out", "%{http_code}"];
            let Some(said) = run(&address, &[&[version], words, &out].concat()).await else { return };
            assert_eq!(said, expected, "{version} {words:?}");
        }
    }
}
