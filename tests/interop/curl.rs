//! curl calls our servers.
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    ours::{self, counted, lines},
    peer::{curl, finish, succeed},
    trials::{NotRun, Ran},
};

trials! {
    plain
    head_says_what_get_would
    what_is_not_there
    a_connection_is_kept
    an_upload_in_chunks
    expect_100_continue
    oversize_bodies
    oversize_headers
    a_malformed_grpc_timeout
    a_request_that_is_no_grpc_gets_415
}

/// Runs curl against `http://ADDRESS` with these arguments, in which `@@` stands for the address. Returns its
/// output.
async fn run(address: &str, words: &[&str]) -> Result<String, NotRun> {
    let words = words.iter().map(|word| word.replace("@@", &format!("http://{address}")));
    Ok(succeed(curl()?.args(words)).await)
}

/// A file of so many bytes, and its folder.
fn file(size: usize) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![b'x'; size]).unwrap();
    (folder, path)
}

/// The output of `--include` and `--write-out`: the status, the headers, the rest.
fn parts(printed: &str) -> (&str, Vec<&str>, &str) {
    let (head, rest) = printed.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap();
    (status, lines.collect(), rest)
}

async fn plain() -> Ran {
    let (_server, address) = ours::rest(json!({})).await;
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let said = run(&address, &[version, "--include", "@@/hello/you"]).await?;
        let (status, headers, body) = parts(&said);
        assert_eq!((status, body), ("200", "hello, you"), "{version}");
        assert!(headers.contains(&"content-length: 10"), "{version} {headers:?}");
        let said = run(&address, &[version, "@@/lines/1000"]).await.unwrap();
        assert_eq!(said, lines(1000).map(Result::unwrap).collect::<String>(), "{version}");
        let said = run(&address, &[version, "--data", "some", "@@/echo"]).await.unwrap();
        assert_eq!(said, "some", "{version}");
    }
    Ok(())
}

async fn head_says_what_get_would() -> Ran {
    let (_server, address) = ours::rest(json!({})).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let said = run(&address, &[version, "--head", "@@/hello/you"]).await?;
        let (status, headers, rest) = parts(&said);
        assert_eq!((status, rest), ("200", ""), "{version}");
        assert!(headers.contains(&"content-length: 10"), "{version} {headers:?}");
    }
    Ok(())
}

async fn what_is_not_there() -> Ran {
    let (_server, address) = ours::rest(json!({})).await;
    for (words, expected) in [(&["@@/nowhere"][..], "404"), (&["--data", "x", "@@/hello/you"], "405")] {
        let said = run(&address, &[words, &["--include"]].concat()).await?;
        let (status, headers, body) = parts(&said);
        assert_eq!(status, expected);
        assert!(headers.contains(&"content-type: application/problem+json"), "{headers:?}");
        assert_eq!(serde_json::from_str::<Value>(body).unwrap()["status"].to_string(), expected);
    }
    Ok(())
}

/// Also after an answer that failed, and after a panic. (Over HTTP/2 with prior knowledge, curl 7.88 cannot
/// use a connection twice, with any server.)
async fn a_connection_is_kept() -> Ran {
    let (server, address) = ours::rest(json!({})).await;
    let words = [
        "--write-out",
        " %{http_code} %{num_connects}\n",
        "@@/hello/a",
        "@@/nowhere",
        "@@/panic",
        "@@/hello/b",
    ];
    let said = run(&address, &words).await?;
    let ends: Vec<_> = said.lines().map(|line| line.rsplitn(3, ' ').take(2).collect::<Vec<_>>()).collect();
    assert_eq!(ends, [["1", "200"], ["0", "404"], ["0", "500"], ["0", "200"]], "{said}");
    assert_eq!(counted(server.runtime(), "chassis_handler_panics_total", &[]), 1);
    Ok(())
}

async fn an_upload_in_chunks() -> Ran {
    let (_server, address) = ours::rest(json!({})).await;
    let (_folder, file) = file(1 << 20);
    for words in [
        &["--http1.1", "--header", "transfer-encoding: chunked"][..],
        &["--http1.1", "--header", "transfer-encoding: chunked", "--header", "expect: 100-continue"],
        &["--http1.1", "--header", "expect: 100-continue"],
        &["--http2-prior-knowledge"],
    ] {
        let data = format!("@{}", file.display());
        let said = run(&address, &[words, &["--data-binary", &data, "@@/echo"]].concat()).await?;
        assert_eq!(said.len(), 1 << 20, "{words:?}");
    }
    Ok(())
}

/// A client that asks first gets 100 Continue, or a refusal before it has sent the body.
async fn expect_100_continue() -> Ran {
    let (_server, address) = ours::rest(json!({})).await;
    for (size, status, sent) in [(1 << 20, "200", 1 << 20), (3 << 20, "413", 0)] {
        let (_folder, file) = file(size);
        let data = format!("@{}", file.display());
        let out = "%{http_code} %{size_upload}";
        let words =
            ["--header", "expect: 100-continue", "--expect100-timeout", "20", "--output", "/dev/null"];
        let words = [&words[..], &["--write-out", out, "--data-binary", &data, "@@/echo"]].concat();
        let said = run(&address, &words).await?;
        assert_eq!(said, format!("{status} {sent}"));
    }
    Ok(())
}

async fn oversize_bodies() -> Ran {
    let (_server, address) = ours::rest(json!({ "server": { "max_body": 1_000_000 } })).await;
    let (_folder, file) = file(1_000_001);
    let data = format!("@{}", file.display());
    for words in [
        &["--http1.1", "--header", "expect:"][..],
        &["--http1.1", "--header", "expect:", "--header", "transfer-encoding: chunked"],
    ] {
        let words = [words, &["--include", "--data-binary", &data, "@@/echo"]].concat();
        let said = run(&address, &words).await?;
        let (status, headers, body) = parts(&said);
        assert_eq!(status, "413", "{words:?}");
        assert!(headers.contains(&"content-type: application/problem+json"), "{headers:?}");
        assert!(body.contains("TOO_LARGE"), "{body}");
        assert_eq!(run(&address, &["@@/hello/you"]).await.unwrap(), "hello, you");
    }
    Ok(())
}

async fn oversize_headers() -> Ran {
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
            let said = run(address, &[&[version], headers, &out].concat()).await?;
            assert_eq!(said, "431", "{version}");
        }
    }
    assert_eq!(run(&address, &["@@/hello/you"]).await.unwrap(), "hello, you");
    drop(grpc);
    Ok(())
}

/// An empty message: no compression, no bytes.
const EMPTY_MESSAGE: &[u8] = &[0; 5];

async fn a_malformed_grpc_timeout() -> Ran {
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
            "" => "grpc-timeout;".to_owned(), // curl's syntax for an empty header
            timeout => format!("grpc-timeout: {timeout}"),
        };
        let headers =
            ["content-type: application/grpc", "te: trailers", &timeout].map(|header| ["--header", header]);
        let mut command = curl()?;
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
    Ok(())
}

async fn a_request_that_is_no_grpc_gets_415() -> Ran {
    let (_server, address) = ours::echo(json!({})).await;
    for (words, expected) in [
        (&["@@/"][..], ["404", "404"]),
        (&["--data", "x", "@@/chassis.test.v1.Echo/Call"], ["415", "415"]),
        (&["--header", "content-type: application/grpc", "@@/chassis.test.v1.Echo/Call"], ["505", "405"]),
    ] {
        for (version, expected) in ["--http1.1", "--http2-prior-knowledge"].into_iter().zip(expected) {
            let out = ["--output", "/dev/null", "--write-out", "%{http_code}"];
            let said = run(&address, &[&[version], words, &out].concat()).await?;
            assert_eq!(said, expected, "{version} {words:?}");
        }
    }
    Ok(())
}
