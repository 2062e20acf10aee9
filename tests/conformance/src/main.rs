//! The server that `connectconformance` tests: it reads its configuration on standard input, prints its
//! address on standard output, and serves until it is ended.
#![allow(clippy::unwrap_used)]

#[cfg(has_protos)]
mod service;
#[cfg(has_protos)]
mod trailers;

#[cfg(has_protos)]
#[tokio::main]
async fn main() -> Result<(), chassis::BoxError> {
    use std::io::{Read, Write};

    use chassis::{Chassis, document::Environment};
    use prost::Message;
    use service::proto::{ServerCompatRequest, ServerCompatResponse};

    let mut input = std::io::stdin().lock();
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let mut wanted = vec![0; u32::from_be_bytes(length).try_into()?];
    input.read_exact(&mut wanted)?;
    let wanted = ServerCompatRequest::decode(&*wanted)?;

    let settings = serde_json::json!({
        "registry": { "kind": "memory" },
        "listen": { "grpc": "127.0.0.1:0" },
        // The suite compares the deadline that a handler sees with the one that it sent, or with none.
        "inbound": { "timeout": "off" },
    });
    let builder = Chassis::builder("conformance").environment(Environment::default()).without_file();
    let app = builder.settings(settings).build().await?;
    let running = app.serve_grpc(service::service(wanted.message_receive_limit.try_into()?)).start().await?;
    let (host, port) = running.address("grpc").and_then(|at| at.rsplit_once(':')).unwrap();
    let at = ServerCompatResponse { host: host.to_owned(), port: port.parse()?, ..Default::default() };
    let mut said = u32::try_from(at.encoded_len())?.to_be_bytes().to_vec();
    at.encode(&mut said)?;
    let mut output = std::io::stdout().lock();
    output.write_all(&said)?;
    output.flush()?;
    drop(output);
    std::future::pending().await
}

#[cfg(not(has_protos))]
fn main() {
    eprintln!("built without the protos of the suite; see build.rs");
    std::process::exit(2);
}
