//! Services that find each other by the EndpointSlices of a real API server of Kubernetes.
//!
//! It refuses loopback addresses in slices, so each test is in a network of its own. A pod has an address there, and the
//! same ports as every other pod.
use std::{fmt::Display, time::Duration};

use axum::{extract::Path, routing::get};
use chassis::{
    Chassis, Document, Running,
    config::{Format, Text},
    document::{Environment, parse, tree::Layer},
    inspect::NodeView,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    callers::Callers,
    echo,
    kubernetes_server::{Api, Server, slice},
    namespace::is_inside,
    ours,
    peer::PATIENCE,
    trials::Ran,
};

trials! {
    pods_are_replaced_under_callers
    a_change_is_seen_by_callers_within_100_ms
    the_api_server_is_away_under_callers
    calls_follow_the_labels_of_pods
    settings_of_the_page_are_valid
}

/// A pod of the service `stock`, and its process.
struct Pod {
    host: u8,
    uid: String,
    running: Running,
    /// Its conditions are those of a pod that ends.
    is_terminating: bool,
}

const NAMESPACE: &str = "shop";
const GRPC: u16 = 50051;
const HTTP: u16 = 8080;
/// The time of a call, so that 64 callers leave the processor something: they make 3,200 calls a second at most.
const WORK: Duration = Duration::from_millis(20);

// === impl Pod ===

impl Pod {
    /// Starts a process at this address.
    async fn start(host: u8) -> Pod {
        let at = |port: u16| format!("192.0.2.{host}:{port}");
        let settings =
            json!({ "registry": { "kind": "memory" }, "listen": { "grpc": at(GRPC), "http": at(HTTP) } });
        let work = async |Path(ms): Path<u64>| sleep(Duration::from_millis(ms)).await;
        let router =
            ours::router().route("/work/{ms}", get(work)).route("/host", get(async move || host.to_string()));
        let running =
            app("stock", settings).await.serve_http(router).serve_grpc(echo::service()).start().await;
        Pod { host, uid: format!("uid-{host}"), running: running.unwrap(), is_terminating: false }
    }

    /// Its endpoint, as Kubernetes writes it.
    fn endpoint(&self) -> Value {
        let is_ready = !self.is_terminating;
        json!({
            "addresses": [format!("192.0.2.{}", self.host)],
            "conditions": { "ready": is_ready, "serving": true, "terminating": self.is_terminating },
            "targetRef": { "kind": "Pod", "namespace": NAMESPACE, "name": format!("stock-{}", self.host), "uid": self.uid },
        })
    }

    fn is_at(&self, node: &NodeView) -> bool {
        self.running.advertised().iter().any(|(_, address)| *address == node.address)
    }
}

async fn app(name: &str, settings: Value) -> Chassis {
    let builder = Chassis::builder(name).without_file().environment(Environment::default());
    builder.settings(settings).build().await.unwrap()
}

/// Callers whose registry is the API server.
async fn caller(api: &Api, more: Value) -> Chassis {
    let config = api.config(NAMESPACE);
    let mut registry = json!({
        "kind": "kubernetes", "server": config.server, "token_file": config.token_file, "namespace": NAMESPACE,
        "tls": { "ca": api.folder.join("authority.pem") },
    });
    if let Some(labels) = more.get("pod_labels") {
        registry["pod_labels"] = labels.clone();
    }
    let mut settings = json!({ "registry": registry });
    if let Some(outbound) = more.get("outbound") {
        settings["outbound"] = outbound.clone();
    }
    app("caller", settings).await
}

async fn server() -> Result<Server, crate::trials::NotRun> {
    let server = Server::start(&[]).await?;
    server.api.make_namespace(NAMESPACE).await;
    Ok(server)
}

fn endpoints<'a>(pods: impl IntoIterator<Item = &'a Pod>) -> Value {
    pods.into_iter().map(Pod::endpoint).collect::<Vec<_>>().into()
}

/// Writes the slice of the service, as the controller of Kubernetes does.
async fn write<'a>(api: &Api, pods: impl IntoIterator<Item = &'a Pod>) {
    write_all(api, endpoints(pods)).await;
}

async fn write_all(api: &Api, endpoints: Value) {
    let mut slice = slice("stock-1", endpoints);
    slice["ports"] = json!([
        { "name": "grpc", "port": GRPC, "protocol": "TCP" },
        { "name": "http", "port": HTTP, "protocol": "TCP" },
    ]);
    api.write_slice(NAMESPACE, "stock-1", &slice).await;
}

/// The nodes that callers know.
fn nodes(app: &Chassis) -> Vec<NodeView> {
    app.runtime().inspect().services.into_iter().flat_map(|service| service.nodes).collect()
}

/// Waits until `holds`; how long that took.
#[track_caller]
fn until<'a>(
    what: impl Display + 'a,
    mut holds: impl FnMut() -> bool + 'a,
) -> impl Future<Output = Duration> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        let waited = timeout(PATIENCE, async {
            while !holds() {
                tokio::task::yield_now().await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{caller}: not yet: {what}"));
        begun.elapsed()
    }
}

/// A rolling update, one pod after the other: a new pod is ready, an old one ends, its endpoint goes.
async fn pods_are_replaced_under_callers() -> Ran {
    if !is_inside("over_kubernetes::pods_are_replaced_under_callers").await? {
        return Ok(());
    }
    let server = server().await?;
    let mut pods = Vec::new();
    for host in 1..=3 {
        pods.push(Pod::start(host).await);
    }
    write(&server.api, &pods).await;
    let callers = Callers::many(caller(&server.api, Value::Null).await, 64, Duration::ZERO);
    callers.know(&pods.iter().map(|pod| &pod.running).collect::<Vec<_>>()).await;
    for host in 4..=9 {
        callers.go_on(4_500).await;
        pods.push(Pod::start(host).await);
        write(&server.api, &pods).await;
        // Kubernetes ends the process while it writes that in the slice: callers may learn of it later.
        let mut old = pods.remove(0);
        old.is_terminating = true;
        let ending = endpoints(pods.iter().chain([&old]));
        tokio::join!(write_all(&server.api, ending), old.running.stop());
        callers.go_on(500).await;
        write(&server.api, &pods).await;
        callers.know(&pods.iter().map(|pod| &pod.running).collect::<Vec<_>>()).await;
    }
    let (calls, failed) = callers.end().await;
    println!(
        "kubernetes: {calls} calls of 64 callers while three pods were replaced twice, {} failed",
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(calls >= 30_000, "{calls}");
    Ok(())
}

/// The time from the answer to the writer until a caller's clients have the instance, or no longer.
async fn a_change_is_seen_by_callers_within_100_ms() -> Ran {
    if !is_inside("over_kubernetes::a_change_is_seen_by_callers_within_100_ms").await? {
        return Ok(());
    }
    let server = server().await?;
    let pods = [Pod::start(1).await, Pod::start(2).await];
    write(&server.api, &pods[..1]).await;
    let callers = Callers::many(caller(&server.api, Value::Null).await, 4, WORK);
    callers.know(&[&pods[0].running]).await;
    let mut taken = Vec::new();
    for n in 0..200 {
        let is_there = n % 2 == 0;
        write(&server.api, &pods[..1 + usize::from(is_there)]).await;
        let count = if is_there { 2 } else { 0 };
        let known = || nodes(&callers.app).iter().filter(|node| pods[1].is_at(node)).count() == count;
        taken.push(until(format_args!("change {n}"), known).await);
    }
    let (calls, failed) = callers.end().await;
    taken.sort();
    println!(
        "kubernetes: callers see a change after {:?} (p50), {:?} (p99); {calls} calls, {} failed",
        taken[100],
        taken[198],
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
    assert!(taken[198] <= Duration::from_millis(100), "{:?}", &taken[190..]);
    Ok(())
}

/// The API server is frozen, then killed. Meanwhile a pod dies, and another one is restarted at its address. A longer
/// outage is asked for by the seconds of `CHASSIS_TEST_OUTAGE`.
async fn the_api_server_is_away_under_callers() -> Ran {
    if !is_inside("over_kubernetes::the_api_server_is_away_under_callers").await? {
        return Ok(());
    }
    let seconds = std::env::var("CHASSIS_TEST_OUTAGE").map_or(6, |seconds| seconds.parse().unwrap());
    let lasts = Duration::from_secs(seconds);
    for is_killed in [false, true] {
        let mut server = server().await?;
        let (dies, returns, stays) = (Pod::start(1).await, Pod::start(2).await, Pod::start(3).await);
        write(&server.api, [&dies, &returns, &stays]).await;
        let callers = Callers::many(caller(&server.api, Value::Null).await, 64, WORK);
        callers.know(&[&dies.running, &returns.running, &stays.running]).await;
        match is_killed {
            true => server.kill().await,
            false => server.signal("STOP").await,
        }
        let away = Instant::now();
        callers.go_on(2_000).await;

        // It dies: its connections are reset, and new ones are refused. It is avoided once no call is sent to it.
        let addresses: Vec<_> =
            dies.running.advertised().iter().map(|(_, address)| address.clone()).collect();
        let attempts = || -> u64 {
            let nodes = nodes(&callers.app).into_iter().filter(|node| addresses.contains(&node.address));
            nodes.map(|node| node.calls + u64::from(node.in_flight)).sum()
        };
        drop(dies);
        let (died, mut last, mut before) = (Instant::now(), Duration::ZERO, attempts());
        while died.elapsed() < Duration::from_secs(2) {
            callers.go_on(10).await;
            let now = attempts();
            if now > before {
                last = died.elapsed();
            }
            before = now;
        }
        assert!(last <= Duration::from_secs(1), "{last:?}");

        returns.running.stop().await;
        let again = Pod::start(2).await;
        let answered = || -> u64 {
            nodes(&callers.app).iter().filter(|node| again.is_at(node)).map(|node| node.successes).sum()
        };
        let before = answered();
        let called = until("the restarted pod is called", || answered() > before).await;
        while away.elapsed() < lasts {
            callers.go_on(100).await;
        }
        let new = Pod::start(4).await;
        match is_killed {
            true => server.run().await,
            false => server.signal("CONT").await,
        }
        write(&server.api, [&again, &stays, &new]).await;
        let back = Instant::now();
        callers.know(&[&again.running, &stays.running, &new.running]).await;
        let seen = back.elapsed();
        callers.go_on(500).await;
        let (calls, failed) = callers.end().await;
        let fault = if is_killed { "killed" } else { "frozen" };
        println!(
            "kubernetes: {calls} calls of 64 callers while the API server was {fault} for {lasts:?}, {} failed; a dead pod \
             is avoided after {last:?}, a restarted one is called after {called:?}, and a change is seen {seen:?} after the \
             return",
            failed.len()
        );
        assert_eq!(failed, Vec::<String>::new());
        // After more than 30 s callers come back within `jitter`, 5 s.
        let most = if seconds > 30 { 7 } else { 2 };
        assert!(seen <= Duration::from_secs(most), "{seen:?}");
    }
    Ok(())
}

async fn calls_follow_the_labels_of_pods() -> Ran {
    if !is_inside("over_kubernetes::calls_follow_the_labels_of_pods").await? {
        return Ok(());
    }
    let server = server().await?;
    let mut pods = [Pod::start(1).await, Pod::start(2).await];
    for (pod, version) in pods.iter_mut().zip(["v1", "v2"]) {
        pod.uid = server
            .api
            .put_pod(NAMESPACE, &format!("stock-{}", pod.host), json!({ "version": version }))
            .await;
    }
    write(&server.api, &pods).await;
    let routes = json!([{ "name": "second", "to": { "version": "v2" }, "fallback": "none" }]);
    let more =
        json!({ "pod_labels": ["version"], "outbound": { "services": { "stock": { "routes": routes } } } });
    let caller = caller(&server.api, more).await;
    let http = caller.http("stock");
    let host = async || http.get("/host").send().await.unwrap().text().await.unwrap();
    for _ in 0..20 {
        assert_eq!(host().await, "2");
    }
    // The label moves.
    server.api.label_pod(NAMESPACE, "stock-1", json!({ "version": "v2" })).await;
    server.api.label_pod(NAMESPACE, "stock-2", json!({ "version": "v1" })).await;
    let has = |pod: &Pod, version: &str| {
        nodes(&caller)
            .iter()
            .any(|node| pod.is_at(node) && node.labels.get("version").is_some_and(|it| it == version))
    };
    until("the labels are seen", || has(&pods[0], "v2") && has(&pods[1], "v1")).await;
    for _ in 0..20 {
        assert_eq!(host().await, "1");
    }
    Ok(())
}

async fn settings_of_the_page_are_valid() {
    let page = include_str!("../../docs/kubernetes.md");
    let blocks: Vec<_> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let (content, origin) = (block.to_owned(), "page".to_owned());
        let tree =
            parse(&Text { content, format: Format::Yaml, origin, revision: None }, Layer::File).unwrap();
        let (document, problems) = Document::read(&tree);
        assert!(document.is_some() && problems.is_empty(), "{block}: {problems:?}");
    }
}
