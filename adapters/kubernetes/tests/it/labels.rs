//! Labels of pods: where they come from, and that none of it is needed to call an instance.
use std::time::Duration;

use chassis_core::registry::{Instance, Membership, Registry, Watcher};
use chassis_kubernetes::{KubernetesConfig, PodLabels};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{
    access::apply,
    registry::{hosts, registry, until},
    server::{LABELLED, PATIENCE, Server, shared},
    trials::Ran,
};

trials! {
    instances_have_the_labels_of_their_pods
    a_pod_that_is_replaced_is_another_one
    instances_have_no_labels_without_the_right_to_read_pods
    labels_are_found_again_after_gaps
}

/// The endpoint of a pod.
fn endpoint(pod: &str, uid: &str, host: u8) -> Value {
    let target = json!({ "kind": "Pod", "name": pod, "uid": uid });
    json!({ "addresses": [format!("192.0.2.{host}")], "targetRef": target })
}

/// Waits until the only instance is as `is_so` says.
#[track_caller]
fn until_one(
    watcher: &mut Box<dyn Watcher>,
    is_so: impl Fn(&Instance) -> bool,
) -> impl Future<Output = std::sync::Arc<Instance>> {
    let caller = std::panic::Location::caller();
    async move {
        let mut last = None;
        let found = timeout(PATIENCE, async {
            loop {
                last = Some(watcher.next().await);
                if let Some(Ok(Membership::Known(all))) = &last
                    && let [one] = &all[..]
                    && is_so(one)
                {
                    return one.clone();
                }
            }
        });
        let found = found.await;
        found.unwrap_or_else(|_| panic!("{caller}: last answer {last:?}"))
    }
}

fn has(version: &str) -> impl Fn(&Instance) -> bool {
    move |one| one.label("version") == Some(version)
}

async fn instances_have_the_labels_of_their_pods() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let labels = json!({ "version": "v0", "track": "canary", "pod-template-hash": "x" });
    let uid = api.put_pod(&namespace, "stock-1", labels).await;
    api.put_slice(&namespace, "a", json!([endpoint("stock-1", &uid, 1)])).await;
    let of = |labels| KubernetesConfig { pod_labels: labels, ..api.config(&namespace) };

    // The first answer has them.
    let mut some = registry(of(PodLabels::named(["version", "track"]))).watch("stock").await.unwrap();
    let Ok(Ok(Membership::Known(all))) = timeout(PATIENCE, some.next()).await else { panic!("no instance") };
    let found: Vec<_> = all[0].labels.iter().collect();
    assert_eq!(found, [("track", "canary"), ("version", "v0")]);
    let mut every = registry(of(PodLabels::Every(true))).watch("stock").await.unwrap();
    until_one(&mut every, |one| one.label("pod-template-hash") == Some("x")).await;
    let mut none = registry(of(PodLabels::default())).watch("stock").await.unwrap();
    assert!(until_one(&mut none, |_| true).await.labels.is_empty());

    let mut taken = Vec::new();
    for n in 1..=50 {
        let version = format!("v{n}");
        api.label_pod(&namespace, "stock-1", json!({ "version": version })).await;
        let written = Instant::now();
        until_one(&mut some, has(&version)).await;
        taken.push(written.elapsed());
    }
    taken.sort();
    println!("kubernetes: a label is seen after {:?} (p50), {:?} (p99)", taken[25], taken[49]);
    assert!(taken[49] <= Duration::from_millis(200), "{:?}", &taken[40..]);
    // A label that has gone, and one that was not chosen.
    api.label_pod(&namespace, "stock-1", json!({ "track": null, "other": "y" })).await;
    let one = until_one(&mut some, |one| one.label("track").is_none()).await;
    assert_eq!(one.labels.iter().collect::<Vec<_>>(), [("version", "v50")]);
    // A change of the slice keeps them, and so does the end of the pod, which comes before that of its endpoint.
    api.delete_pod(&namespace, "stock-1").await;
    let mut moved = endpoint("stock-1", &uid, 1);
    moved["zone"] = "eu-1a".into();
    api.put_slice(&namespace, "a", json!([moved])).await;
    let one = until_one(&mut some, |one| one.zone == "eu-1a").await;
    assert_eq!(one.label("version"), Some("v50"));
    Ok(())
}

async fn a_pod_that_is_replaced_is_another_one() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let first = api.put_pod(&namespace, "stock-0", json!({ "version": "v1" })).await;
    api.put_slice(&namespace, "a", json!([endpoint("stock-0", &first, 1)])).await;
    let config = KubernetesConfig { pod_labels: PodLabels::Every(true), ..api.config(&namespace) };
    let mut watcher = registry(config).watch("stock").await.unwrap();
    until_one(&mut watcher, has("v1")).await;
    // As with a StatefulSet. For a moment the slice has the pod of before.
    api.delete_pod(&namespace, "stock-0").await;
    let second = api.put_pod(&namespace, "stock-0", json!({ "version": "v2" })).await;
    let mut moved = endpoint("stock-0", &first, 1);
    moved["zone"] = "eu-1a".into();
    api.put_slice(&namespace, "a", json!([moved])).await;
    let one = until_one(&mut watcher, |one| one.zone == "eu-1a").await;
    assert_eq!(one.label("version"), Some("v1"));
    // An endpoint whose pod is not known has no labels; once it is known, it has them.
    api.put_slice(&namespace, "a", json!([endpoint("stock-0", "unknown", 1)])).await;
    assert!(until_one(&mut watcher, |one| one.id == "stock-0.unknown").await.labels.is_empty());
    api.put_slice(&namespace, "a", json!([endpoint("stock-0", &second, 1)])).await;
    until_one(&mut watcher, has("v2")).await;
    Ok(())
}

async fn instances_have_no_labels_without_the_right_to_read_pods() -> Ran {
    let api = shared().await?;
    let namespace = "labelled";
    api.make_namespace(namespace).await;
    apply(&api, namespace, &[include_str!("../../deploy/rbac.yaml")]).await;
    let uid = api.put_pod(namespace, "stock-1", json!({ "version": "v1" })).await;
    api.put_slice(namespace, "a", json!([endpoint("stock-1", &uid, 1)])).await;
    let config = KubernetesConfig {
        token_file: Some(api.token_file(LABELLED)),
        pod_labels: PodLabels::Every(true),
        ..api.config(namespace)
    };
    let begun = Instant::now();
    let mut watcher = registry(config).watch("stock").await.unwrap();
    assert!(until_one(&mut watcher, |_| true).await.labels.is_empty());
    // It does not wait for labels that can't be had.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    api.put(namespace, "a", &[7]).await;
    until(&mut watcher, &hosts(&[7])).await;
    api.put_slice(namespace, "a", json!([endpoint("stock-1", &uid, 1)])).await;
    apply(&api, namespace, &[include_str!("../../deploy/rbac-labels.yaml")]).await;
    let allowed = Instant::now();
    until_one(&mut watcher, has("v1")).await;
    println!("kubernetes: labels are there {:?} after they are allowed", allowed.elapsed());
    assert!(allowed.elapsed() <= Duration::from_secs(35), "{:?}", allowed.elapsed());
    Ok(())
}

/// The cache of a server that is restarted has no older versions: pods are listed anew.
async fn labels_are_found_again_after_gaps() -> Ran {
    let mut server = Server::start(&[]).await?;
    server.api.make_namespace("shop").await;
    let uid = server.api.put_pod("shop", "stock-1", json!({ "version": "v0" })).await;
    server.api.put_slice("shop", "a", json!([endpoint("stock-1", &uid, 1)])).await;
    let config = KubernetesConfig { pod_labels: PodLabels::Every(true), ..server.api.config("shop") };
    let mut watcher = registry(config).watch("stock").await.unwrap();
    until_one(&mut watcher, has("v0")).await;
    for n in 1..=3 {
        let version = format!("v{n}");
        server.kill().await;
        server.run().await;
        server.api.label_pod("shop", "stock-1", json!({ "version": version })).await;
        until_one(&mut watcher, has(&version)).await;
    }
    Ok(())
}
