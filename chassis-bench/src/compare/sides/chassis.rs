//! chassis on both ends, with everything on.
use std::{io::Write, net::SocketAddr};

use serde_json::json;

use super::{
    super::{Case, Setup, Side, Worker, grpc_workers, worker},
    rest,
};
use crate::{
    Result,
    echo::{echo_client::EchoClient, echo_server::EchoServer},
    layers::{echo::Echo, settings::ON},
};

type BoxFuture<T> = std::pin::Pin<Box<dyn Future<Output = T> + Send>>;

/// chassis on both ends.
///
/// Four instances are registered, all at one address, and a route selects as many as there are connections:
/// so both sides of a ratio use the same number.
pub struct Chassis;

const INSTANCES: usize = 4;

/// Limits above the concurrency of every setting, so that they are checked and never reached.
const WIDE: &str = "
listen: { grpc: 127.0.0.1:0, http: 127.0.0.1:0 }
client: { pool: 1024 }
server: { max_streams: 1024 }
";

async fn build(name: &str, settings: serde_json::Value) -> Result<chassis::Chassis> {
    let mut config = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    write!(config, "{ON}{WIDE}")?;
    let builder = chassis::Chassis::builder(name).config_file(config.path()).settings(settings);
    Ok(builder.build().await?)
}

impl Side for Chassis {
    fn name(&self) -> &'static str {
        "chassis"
    }

    fn does(&self, case: Case) -> bool {
        case.is_grpc() || case.is_rest()
    }

    fn serve(&self, setup: Setup) -> BoxFuture<Result<SocketAddr>> {
        Box::pin(async move {
            let app = build("echo", json!({ "registry": { "kind": "memory" } })).await?;
            let app = app.serve_grpc(EchoServer::new(Echo)).serve_http(rest::router());
            let running = app.start().await?;
            let name = if setup.case.is_grpc() { "grpc" } else { "http" };
            let address = running.address(name).ok_or("it does not listen")?.parse()?;
            keep(running);
            Ok(address)
        })
    }

    fn connect(&self, setup: Setup, at: SocketAddr) -> BoxFuture<Result<Vec<Worker>>> {
        Box::pin(async move {
            let protocol = if setup.case.is_grpc() { "grpc" } else { "http" };
            // Over HTTP/1.1 callers have a connection each, for any number of instances.
            let chosen = if setup.case.is_grpc() { setup.connections } else { INSTANCES };
            let instance = |index: usize| {
                let track = if index < chosen { "stable" } else { "canary" };
                json!({
                    "id": format!("echo-{index}"), "labels": { "track": track },
                    "addresses": { protocol: at.to_string() },
                })
            };
            let instances: Vec<_> = (0..INSTANCES).map(instance).collect();
            let settings = json!({ "registry": { "kind": "static", "services": { "echo": instances } } });
            let app = build("caller", settings).await?;
            let workers = match setup.case {
                case if case.is_grpc() => grpc_workers(setup, &[EchoClient::new(app.grpc("echo"))]),
                case => {
                    let (client, is_get) = (app.http("echo"), case == Case::RestGet);
                    let call = move || {
                        let client = client.clone();
                        async move {
                            let request = match is_get {
                                true => client.get("/call/{id}").param("id", 42),
                                false => client.post("/call").json(&rest::document()),
                            };
                            let answer = request.send().await?;
                            let status = answer.status();
                            rest::check(is_get, status, &answer.bytes().await?)
                        }
                    };
                    (0..setup.concurrency).map(|_| worker(call.clone())).collect()
                }
            };
            keep(app);
            Ok(workers)
        })
    }
}

/// Keeps `value` until the runtime ends.
fn keep<T: Send + 'static>(value: T) {
    tokio::spawn(async move {
        let _value = value;
        std::future::pending::<()>().await;
    });
}
