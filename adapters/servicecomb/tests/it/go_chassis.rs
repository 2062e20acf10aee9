//! go-chassis and its client library of service center, against the same server: they agree with it and with the
//! adapter about the API.
use std::process::Stdio;

use chassis_core::{
    contracts::{Contract, ContractOwner, Contracts, Existing},
    registry::{Instance, Membership, Registry, Status},
};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::{
    center::{Center, needs_stand_in},
    registry::{PATIENCE, ids_of, registry},
    trials::{NotRun, Ran},
};

trials! {
    a_service_of_the_client_library_is_found
    the_client_library_finds_ours
    schemas_of_the_client_library_are_contracts_and_ours_are_its
    services_of_go_chassis_and_ours_call_each_other
}

/// The program of `tests/foreign/servicecomb`; it ends with this value.
pub(crate) struct Peer {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _process: Child,
    /// go-chassis writes a log where it runs.
    _folder: tempfile::TempDir,
}

impl Peer {
    /// `app`: the application in service center.
    pub(crate) fn start(
        arguments: &[&str],
        home: Option<&std::path::Path>,
        app: Option<&str>,
    ) -> Result<Peer, NotRun> {
        let variable = "CHASSIS_PEER_GO_CHASSIS";
        let program = std::env::var(variable).map_err(|_| NotRun(format!("{variable} is not set")))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let folder = tempfile::tempdir().unwrap();
        command.current_dir(home.unwrap_or(folder.path()));
        if let Some(home) = home {
            command.env("CHASSIS_HOME", home);
        }
        if let Some(app) = app {
            command.env("CHASSIS_APP", app);
        }
        let mut process = command.kill_on_drop(true).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let output = BufReader::new(output).lines();
        Ok(Peer { input, output, _process: process, _folder: folder })
    }

    /// Waits for a line that begins so. go-chassis writes its log there, too.
    pub(crate) async fn says(&mut self, begin: &str) -> String {
        self.says_one_of(&[begin]).await
    }

    /// Waits for a line that begins like one of these.
    pub(crate) async fn says_one_of(&mut self, all: &[&str]) -> String {
        let said = timeout(PATIENCE, async {
            let mut others = Vec::new();
            while let Some(line) = self.output.next_line().await.unwrap() {
                if all.iter().any(|begin| line.starts_with(begin)) {
                    return line;
                }
                assert!(!line.starts_with("error "), "{line}");
                others.push(line);
            }
            panic!("it has ended before {all:?}: {others:#?}");
        });
        said.await.unwrap_or_else(|_| panic!("no {all:?}"))
    }

    pub(crate) async fn send(&mut self, line: &str) {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }
}

/// An HTTP server that answers each request with `hello from chassis`; its address.
async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4_096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            assert!(request[..read].starts_with(b"GET /hello "), "{}", String::from_utf8_lossy(&request));
            let answer =
                "HTTP/1.1 200 OK\r\ncontent-length: 18\r\nconnection: close\r\n\r\nhello from chassis";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

/// Asks an HTTP server for `/hello`.
async fn call(address: &str) -> String {
    let (_, body) = crate::host::text(address, "GET", "/hello", "").await;
    body
}

/// Waits until the one instance that the watcher returns is like this.
async fn until_like(
    watcher: &mut Box<dyn chassis_core::registry::Watcher>,
    is_like: impl Fn(&Instance) -> bool,
) -> Instance {
    let found = timeout(PATIENCE, async {
        loop {
            if let Ok(Membership::Known(all)) = watcher.next().await
                && let [one] = &all[..]
                && is_like(one)
            {
                return Instance::clone(one);
            }
        }
    });
    found.await.expect("the instance is seen")
}

async fn a_service_of_the_client_library_is_found() -> Ran {
    let center = Center::start().await;
    let mut watcher = registry(&center).watch("go-stock").await.unwrap();
    let mut go = Peer::start(&["provide", &center.address, "go-stock"], None, Some(&center.app))?;
    let id = go.says("registered ").await["registered ".len()..].to_owned();
    let found = until_like(&mut watcher, |_| true).await;
    let address = found.addresses.get("http").unwrap();
    assert_eq!((found.id.as_str(), found.version.as_str(), found.hostname()), (id.as_str(), "1.0.2", "go"));
    assert_eq!(found.label("track"), Some("canary"));
    assert_eq!(call(address).await, "hello from go");
    // A shorter interval is raised. The next step waits for the one before it: a real one changes what it has in its cache.
    let [entry] = &center.entries("go-stock")[..] else { panic!("one entry") };
    assert_eq!(entry["healthCheck"], json!({ "mode": "push", "interval": 5, "times": 3 }));
    for step in ["beat", "label"] {
        go.send(step).await;
        go.says(&format!("done {step}")).await;
    }
    until_like(&mut watcher, |one| one.label("track") == Some("stable")).await;
    go.send("down").await;
    go.says("done down").await;
    let is_down = |one: &Instance| *one.status() == Status::OutOfService;
    assert_eq!(until_like(&mut watcher, is_down).await.label("track"), Some("stable"));
    drop(go.input);
    let gone = timeout(PATIENCE, async {
        while watcher.next().await.ok().is_none_or(|known| !ids_of(&known).is_empty()) {}
    });
    gone.await.expect("it is seen that it went");
    Ok(())
}

/// Waits for this push; there is none of what it has not asked for. A real one may push a change twice.
async fn pushed(go: &mut Peer, expected: &str) {
    loop {
        let said = go.says("pushed ").await;
        if said["pushed ".len()..] == *expected {
            return;
        }
        assert!(needs_stand_in().is_err() && said.contains(" stock "), "{said}, not {expected}");
    }
}

async fn the_client_library_finds_ours() -> Ran {
    let center = Center::start().await;
    let address = serve().await;
    let ours = registry(&center);
    let stock = |id: &str| {
        Instance::new("stock", id)
            .with_address("http", address.as_str())
            .with_label("track", "stable")
            .with_version("2.1.0")
    };
    let a = ours.register(stock("a")).await.unwrap();
    let mut go = Peer::start(&["consume", &center.address, "stock"], None, Some(&center.app))?;
    let found = go.says("found ").await;
    assert_eq!(found, format!("found UP 2.1.0 10 stable [rest://{address}]"));
    assert_eq!(go.says("called ").await, "called hello from chassis");
    go.says("not modified").await;
    go.says("no such service").await;
    go.says("batch 1 0").await;
    go.says("watching").await;
    timeout(PATIENCE, center.has_noted("stock")).await.unwrap();
    let b = ours.register(Instance::new("billing", "b").with_address("http", "h:1")).await.unwrap();
    let mut second = ours.register(stock("c")).await.unwrap();
    pushed(&mut go, "CREATE stock UP").await;
    second.update(stock("c").with_status(Status::OutOfService)).await.unwrap();
    pushed(&mut go, "UPDATE stock OUTOFSERVICE").await;
    second.deregister().await.unwrap();
    pushed(&mut go, "DELETE stock OUTOFSERVICE").await;
    a.deregister().await.unwrap();
    pushed(&mut go, "DELETE stock UP").await;
    b.deregister().await.unwrap();
    Ok(())
}

async fn schemas_of_the_client_library_are_contracts_and_ours_are_its() -> Ran {
    let center = Center::start().await;
    let contracts = crate::contracts::port(&center);
    let mut provider = Peer::start(&["provide", &center.address, "go-stock"], None, Some(&center.app))?;
    provider.says("registered ").await;
    let go_stock = ContractOwner::new("go-stock", "1.0.2");
    assert_eq!(contracts.versions("go-stock", "").await.unwrap(), ["1.0.2"]);
    let hello = contracts.fetch(&go_stock, "hello").await.unwrap();
    assert_eq!(hello, Contract::openapi("hello", "swagger: '2.0'"));
    // The library sends the same hash as we do: what is equal is not sent again.
    center.log(); // a real one keeps none
    contracts.publish(&go_stock, &[hello], Existing::Replace).await.unwrap();
    assert!(center.log().iter().all(|line| !line.starts_with("PUT ")));

    let stock = ContractOwner::new("stock", "2.1.0");
    let ours = [Contract::openapi("api", "openapi: 3.1.0\n"), Contract::new("bin", "a/b", vec![0xff])];
    contracts.publish(&stock, &ours, Existing::Replace).await.unwrap();
    let mut go = Peer::start(&["schemas", &center.address, "stock", "2.1.0"], None, Some(&center.app))?;
    assert_eq!(go.says("schema ").await, r#"schema api {"schema":"openapi: 3.1.0\n"}"#);
    assert_eq!(go.says("schema ").await, r#"schema bin {"schema":"data:a/b;base64,/w=="}"#);
    go.says("added").await;
    let listed = contracts.list(&stock).await.unwrap();
    let names: Vec<_> = listed.into_iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["api", "bin", "from-go"]);
    Ok(())
}

/// The folder of a service of go-chassis.
fn home(center: &Center, name: &str, listen: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let conf = folder.path().join("conf");
    std::fs::create_dir(&conf).unwrap();
    let chassis = format!(
        "servicecomb:\n  registry:\n    address: http://{}\n    refreshInterval: 1s\n    watch: true\n  \
         protocols:\n    rest:\n      listenAddress: {listen}\n  handler:\n    chain:\n      Consumer:\n        \
         default: loadbalance,transport\n",
        center.address
    );
    std::fs::write(conf.join("chassis.yaml"), chassis).unwrap();
    let service =
        format!("servicecomb:\n  service:\n    app: {}\n    name: {name}\n    version: 1.0.0\n", center.app);
    std::fs::write(conf.join("microservice.yaml"), service).unwrap();
    folder
}

async fn services_of_go_chassis_and_ours_call_each_other() -> Ran {
    let center = Center::start().await;
    let ours = registry(&center);
    let address = serve().await;
    let a = ours.register(Instance::new("stock", "a").with_address("http", address)).await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let provider_home = home(&center, "go-orders", &free);
    let mut provider = Peer::start(&["serve"], Some(provider_home.path()), None)?;
    provider.says("serving").await;
    let mut watcher = ours.watch("go-orders").await.unwrap();
    let found = until_like(&mut watcher, |one| one.addresses.get("http").is_some()).await;
    assert_eq!(found.addresses.get("http"), Some(free.as_str()));
    assert_eq!(call(&free).await, "hello from go-chassis");

    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let consumer_home = home(&center, "go-caller", &free);
    let mut caller = Peer::start(&["chassis", "stock"], Some(consumer_home.path()), None)?;
    caller.says("ready").await;
    caller.send("call").await;
    assert_eq!(caller.says("called ").await, "called hello from chassis");
    a.deregister().await.unwrap();
    Ok(())
}
