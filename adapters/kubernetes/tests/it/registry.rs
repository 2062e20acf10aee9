//! Instances in EndpointSlices, and how soon changes are seen.
use std::time::Duration;

use chassis_core::registry::{Instance, Membership, Registry, Watcher};
use chassis_kubernetes::{KubernetesConfig, KubernetesRegistry};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{
    server::{Api, PATIENCE, shared, slice},
    trials::Ran,
};

trials! {
    slices_are_instances
    a_change_is_seen_within_100_ms
    a_long_list_is_read_by_pages
    services_are_those_of_a_namespace
    a_registration_does_nothing
}

pub(crate) fn registry(config: KubernetesConfig) -> KubernetesRegistry {
    KubernetesRegistry::new(config).unwrap()
}

/// Waits until the watcher returns these ids.
#[track_caller]
pub(crate) fn until<'a>(
    watcher: &'a mut Box<dyn Watcher>,
    ids: &'a [String],
) -> impl Future<Output = Membership> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let mut last = None;
        let answer = timeout(PATIENCE, async {
            loop {
                let answer = watcher.next().await;
                if let Ok(found) = &answer
                    && ids_of(found) == ids
                {
                    return answer.unwrap();
                }
                last = Some(answer);
            }
        });
        let answer = answer.await;
        answer.unwrap_or_else(|_| panic!("{caller}: expected {ids:?}, answer last: {last:?}"))
    }
}

pub(crate) fn ids_of(answer: &Membership) -> Vec<&str> {
    match answer {
        Membership::Known(all) => all.iter().map(|instance| instance.id.as_str()).collect(),
        Membership::Unknown | Membership::Deleted => Vec::new(),
    }
}

/// The ids of endpoints without a pod: their addresses, in order.
pub(crate) fn hosts(all: &[u8]) -> Vec<String> {
    let mut all: Vec<_> = all.iter().map(|host| format!("192.0.2.{host}")).collect();
    all.sort();
    all
}

async fn slices_are_instances() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    let mut watcher = registry.watch("stock").await.unwrap();
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap(), Membership::Unknown);
    let pod = json!({ "kind": "Pod", "name": "stock-1", "namespace": namespace, "uid": "1f2e3d4c-0000" });
    let four = json!([{
        "addresses": ["192.0.2.1"], "targetRef": pod, "zone": "eu-1a", "hostname": "stock-1",
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "hints": { "forZones": [{ "name": "eu-1a" }] },
    }]);
    api.put_slice(&namespace, "stock-4", four).await;
    let ids = ["stock-1.1f2e3d4c".to_owned()];
    let Membership::Known(all) = until(&mut watcher, &ids).await else { unreachable!() };
    let expected = Instance::new("stock", "stock-1.1f2e3d4c")
        .with_address("grpc", "192.0.2.1:50051")
        .with_zone("eu-1a")
        .with_hostname("stock-1");
    assert_eq!(*all[0], expected);

    // The same pod in the other family is no second instance; another slice brings another one.
    let mut six = slice("stock-6", json!([{ "addresses": ["2001:db8::1"], "targetRef": pod }]));
    six["addressType"] = "IPv6".into();
    let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
    api.ok("POST", &path, &six).await;
    api.put(&namespace, "more", &[9]).await;
    let both = ["192.0.2.9".to_owned(), ids[0].clone()];
    let Membership::Known(all) = until(&mut watcher, &both).await else { unreachable!() };
    assert_eq!(*all[1], expected);

    // Not ready; terminating; gone.
    let with = |conditions: Value| json!([{ "addresses": ["192.0.2.9"], "conditions": conditions }]);
    api.put_slice(
        &namespace,
        "more",
        with(json!({ "ready": false, "serving": false, "terminating": false })),
    )
    .await;
    until(&mut watcher, &ids).await;
    api.put_slice(&namespace, "more", with(json!({ "ready": false, "serving": true, "terminating": true })))
        .await;
    let Membership::Known(all) = until(&mut watcher, &both).await else { unreachable!() };
    assert!(!all[0].status().is_up() && all[1].status().is_up());
    api.delete_slice(&namespace, "more").await;
    until(&mut watcher, &ids).await;
    api.delete_slice(&namespace, "stock-4").await;
    api.delete_slice(&namespace, "stock-6").await;
    assert!(matches!(until(&mut watcher, &[]).await, Membership::Known(_)), "it was there");

    // The service of another namespace, and names that no Service can have.
    let other = api.namespace().await;
    api.put(&other, "a", &[5]).await;
    let mut elsewhere = registry.watch(&format!("stock.{other}")).await.unwrap();
    until(&mut elsewhere, &hosts(&[5])).await;
    for name in ["Stock", "stock,app=x", "stock.a.b", ""] {
        let mut none = registry.watch(name).await.unwrap();
        let answer = timeout(PATIENCE, none.next()).await.unwrap().unwrap();
        assert_eq!(answer, Membership::Unknown, "{name}");
    }
    Ok(())
}

async fn a_change_is_seen_within_100_ms() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    let mut watcher = registry.watch("stock").await.unwrap();
    api.put(&namespace, "a", &[200]).await;
    until(&mut watcher, &hosts(&[200])).await;
    let mut all = Vec::new();
    for n in 0..100 {
        // The time counts from the answer to the writer.
        api.put(&namespace, "a", &[n]).await;
        let written = Instant::now();
        until(&mut watcher, &hosts(&[n])).await;
        all.push(written.elapsed());
    }
    all.sort();
    println!("kubernetes: a change is seen after {:?} (p50), {:?} (p99)", all[50], all[98]);
    assert!(all[98] <= Duration::from_millis(100), "{:?}", &all[90..]);
    Ok(())
}

/// More slices than a page has.
async fn a_long_list_is_read_by_pages() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let mut expected = Vec::new();
    for n in 0..520_u32 {
        let host = format!("198.51.{}.{}", 100 + n / 250, n % 250 + 1);
        api.put_slice(&namespace, &format!("s{n}"), json!([{ "addresses": [host] }])).await;
        expected.push(host);
    }
    expected.sort();
    let mut watcher = registry(api.config(&namespace)).watch("stock").await.unwrap();
    until(&mut watcher, &expected).await;
    api.delete_slice(&namespace, "s519").await;
    expected.retain(|host| host != "198.51.102.20");
    until(&mut watcher, &expected).await;
    Ok(())
}

async fn services_are_those_of_a_namespace() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    for name in ["a", "b"] {
        api.put(&namespace, name, &[1]).await;
    }
    assert_eq!(registry(api.config(&namespace)).services().await, ["stock"]);
    Ok(())
}

async fn a_registration_does_nothing() -> Ran {
    let api: Api = shared().await?;
    let namespace = api.namespace().await;
    let registry = registry(api.config(&namespace));
    let instance = Instance::new("stock", "a").with_address("grpc", "192.0.2.1:1");
    let mut registration = registry.register(instance.clone()).await.unwrap();
    registration.update(instance.with_weight(2)).await.unwrap();
    registration.deregister().await.unwrap();
    assert_eq!(registry.services().await, Vec::<String>::new());
    assert!(registry.register(Instance::new("stock", "a").with_address("grpc", "h:0")).await.is_err());
    Ok(())
}
