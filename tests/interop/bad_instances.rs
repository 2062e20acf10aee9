//! Documents of instances that are invalid, in part or as a whole, and unknown names.
use std::path::PathBuf;

use chassis::{Chassis, Code, Event, Reason, inspect::NodeView};
use chassis_protos::echo::echo_client::EchoClient;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{echo::says, ours, peer::PATIENCE};

trials! {
    instances_that_make_no_sense_spoil_nothing_but_themselves
    a_document_that_can_not_be_read_changes_nothing
    a_hundred_thousand_instances
    an_unknown_service_is_reported_with_the_nearest_name
    instances_in_the_settings_are_refused_with_their_place
}

/// Calls the services of a document.
struct World {
    app: Chassis,
    document: PathBuf,
    _folder: TempDir,
}

impl World {
    async fn new(document: impl ToString) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("instances.json");
        std::fs::write(&path, document.to_string()).unwrap();
        let registry = json!({ "kind": "file", "path": path, "poll": "20ms" });
        let patient = json!({ "defaults": { "timeout": "30s" } });
        let app = ours::builder(json!({ "registry": registry, "outbound": patient })).build().await.unwrap();
        World { app, document: path, _folder: folder }
    }

    /// Writes the document again, and waits for the event about it.
    async fn write(&self, document: &[u8], said: impl Fn(&Event) -> bool) {
        let mut events = self.app.runtime().events().subscribe();
        let beside = self.document.with_extension("new");
        std::fs::write(&beside, document).unwrap();
        std::fs::rename(&beside, &self.document).unwrap();
        let event = async {
            // A slow receiver misses events, but not the last ones.
            while !events.recv().await.is_ok_and(|event| said(&event)) {}
        };
        timeout(PATIENCE, event).await.expect("no event");
    }

    async fn call(&self, service: &str) -> Result<(), tonic::Status> {
        EchoClient::new(self.app.grpc(service)).call(says("x")).await.map(drop)
    }

    fn nodes(&self, service: &str) -> Vec<NodeView> {
        let services = self.app.runtime().inspect().services.into_iter();
        services.filter(|view| view.name == service).flat_map(|view| view.nodes).collect()
    }

    /// The known instances of `service`.
    fn known(&self, service: &str) -> Vec<String> {
        self.nodes(service).into_iter().map(|node| node.id).collect()
    }
}

fn instance(id: &str, address: &str) -> Value {
    json!({ "id": id, "addresses": { "grpc": address } })
}

async fn instances_that_make_no_sense_spoil_nothing_but_themselves() {
    let (_server, address) = ours::echo(json!({})).await;
    let all = json!([
        instance("good", &address),
        instance("port-0", "127.0.0.1:0"),
        instance("good", "127.0.0.1:1"), // the id of another
        instance("", "127.0.0.1:1"),
        instance("no-port", "127.0.0.1"),
        instance("no-address", ""),
        { "id": "nowhere", "addresses": {} },
        { "id": "unknown-key", "adresses": { "grpc": "127.0.0.1:1" } },
        { "id": "of-another", "service": "other", "addresses": { "grpc": "127.0.0.1:1" } },
        { "id": "heavy", "addresses": { "grpc": "127.0.0.1:1" }, "weight": -1 },
        5,
        "text",
        null,
        [[]],
    ]);
    let world = World::new(json!({ "services": { "peer": all } })).await;
    for _ in 0..50 {
        world.call("peer").await.unwrap();
    }
    assert_eq!(world.known("peer"), ["good"]);
}

async fn a_document_that_can_not_be_read_changes_nothing() {
    let (_server, address) = ours::echo(json!({})).await;
    let good = json!({ "services": { "peer": [instance("a", &address)] } });
    let world = World::new(good.clone()).await;
    world.call("peer").await.unwrap();
    let half = good.to_string();
    let half = &half.as_bytes()[..half.len() / 2];
    let wrong = [half, b"", b"\0\xff\xfe", b"services: {}", b"[]", b"{}", br#"{"services": []}"#, b"null"];
    for (n, document) in wrong.into_iter().enumerate() {
        world.write(document, |event| matches!(event, Event::RegistryUnreachable { .. })).await;
        world.call("peer").await.unwrap();
        assert_eq!(world.known("peer"), ["a"]);
        let next = format!("b{n}");
        let both = json!({ "services": { "peer": [instance("a", &address), instance(&next, &address)] } });
        let joined =
            |event: &Event| matches!(event, Event::InstanceJoined { instance, .. } if *instance == next);
        world.write(both.to_string().as_bytes(), joined).await;
        let left = |event: &Event| matches!(event, Event::InstanceLeft { .. });
        world.write(good.to_string().as_bytes(), left).await;
    }
}

async fn a_hundred_thousand_instances() {
    let (_server, address) = ours::echo(json!({})).await;
    let of_crowd = |n| format!(r#"{{"id":"i{n}","addresses":{{"grpc":"{address}"}}}}"#);
    let crowd = (0..100_000).map(of_crowd).collect::<Vec<_>>().join(",");
    let world = World::new(format!(r#"{{"services":{{"crowd":[{crowd}],"peer":[{}]}}}}"#, of_crowd(0))).await;
    for service in ["crowd", "peer"] {
        for _ in 0..20 {
            world.call(service).await.unwrap();
        }
    }
    assert_eq!(world.known("crowd").len(), 100_000);
    let awake = world.nodes("crowd").into_iter().filter(|node| node.connection != "idle").count();
    assert!(awake < 1_000, "{awake} connections for 20 calls");

    // The loss of all but one is not accepted at once.
    let fewer = json!({ "services": { "crowd": [instance("i7", &address)] } });
    let held = |event: &Event| matches!(event, Event::RemovalsHeld { held: 99_999, left: 1, .. });
    world.write(fewer.to_string().as_bytes(), held).await;
    world.call("crowd").await.unwrap();
    assert_eq!(world.known("crowd").len(), 100_000);
    // The deletion of the service is.
    let left = |event: &Event| matches!(event, Event::InstanceLeft { instance, .. } if instance == "i99999");
    world.write(br#"{ "services": { "crowd": null } }"#, left).await;
    let joined = |event: &Event| matches!(event, Event::InstanceJoined { instance, .. } if instance == "i7");
    world.write(fewer.to_string().as_bytes(), joined).await;
    world.call("crowd").await.unwrap();
    assert_eq!(world.known("crowd"), ["i7"]);
}

async fn an_unknown_service_is_reported_with_the_nearest_name() {
    let world = World::new(json!({ "services": { "stock": [instance("a", "127.0.0.1:1")] } })).await;
    let words = "no service `stok` is registered with `file`";
    let status = world.call("stok").await.unwrap_err();
    let error = chassis::grpc::error(&status).unwrap();
    assert_eq!((status.message(), error.reason()), (words, Reason::UnknownService), "{status:?}");
    assert!(!error.maybe_executed());

    let error = world.app.http("stok").get("/").send().await.unwrap_err();
    assert_eq!((error.message(), error.reason()), (words, Reason::UnknownService), "{error:?}");
    // A status may be passed on to another process, and a source stays in this one.
    let known = "the registry `file` lists 1 service: stock; did you mean `stock`?";
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), known);
    let error = world.app.http("elsewhere").get("/").send().await.unwrap_err();
    assert_eq!(
        (error.message(), error.code()),
        ("no service `elsewhere` is registered with `file`", Code::Unavailable)
    );
}

async fn instances_in_the_settings_are_refused_with_their_place() {
    let stock =
        |instances: Value| json!({ "registry": { "kind": "static", "services": { "stock": instances } } });
    let table = [
        (
            json!([instance("a", "h:1"), instance("b", "h:0")]),
            ["registry.services.stock[1]", "instance `b`, grpc `h:0`: port 0"],
        ),
        (
            json!([instance("a", "h:1"), instance("a", "h:2")]),
            ["registry.services.stock[1]", "another instance has the id `a`"],
        ),
        (json!([{ "id": "a" }]), ["registry.services.stock[0]", "no address"]),
    ];
    for (instances, words) in table {
        let refused =
            ours::builder(stock(instances)).build().await.err().expect("nonsense was taken").to_string();
        assert!(words.iter().all(|words| refused.contains(words)), "{refused}");
    }
}
