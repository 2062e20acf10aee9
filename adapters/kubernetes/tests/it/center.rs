//! Settings in ConfigMaps and Secrets.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, Format},
    testing::contract::config_source::{Place, config_source},
};
use chassis_kubernetes::{KubernetesSource, KubernetesSourceConfig};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{
    server::{Api, PATIENCE, shared},
    trials::Ran,
};

trials! {
    keeps_the_contract
    a_secret_is_a_document_too
    sections_of_one_write_change_together
    what_is_missing_is_an_error
    a_change_is_seen_within_100_ms
}

struct Key(Api, String);

#[async_trait]
impl Place for Key {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(source(&self.0, &self.1, KubernetesSourceConfig::config_map("orders", "chassis.yaml")))
    }

    async fn write(&mut self, content: &str) {
        self.0.put_config_map(&self.1, json!({ "chassis.yaml": content })).await;
    }

    async fn spoil(&mut self) -> bool {
        self.0.ok("DELETE", &format!("/api/v1/namespaces/{}/configmaps/orders", self.1), &Value::Null).await;
        true
    }
}

fn source(api: &Api, namespace: &str, config: KubernetesSourceConfig) -> KubernetesSource {
    let registry = api.config(namespace);
    let (server, tls, token_file) = (registry.server, registry.tls, registry.token_file);
    let namespace = registry.namespace;
    KubernetesSource::new(KubernetesSourceConfig { server, tls, token_file, namespace, ..config }).unwrap()
}

async fn keeps_the_contract() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    config_source(Key(api, namespace)).await;
    Ok(())
}

async fn a_secret_is_a_document_too() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let body = json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "orders" }, "stringData": { "c.toml": "a = 1" } });
    let made = api.ok("POST", &format!("/api/v1/namespaces/{namespace}/secrets"), &body).await;
    let version = made["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let config = KubernetesSourceConfig {
        secret: Some("orders".into()),
        key: Some("c.toml".into()),
        ..KubernetesSourceConfig::default()
    };
    let source = source(&api, &namespace, config);
    assert!(source.name().contains(&api.address), "{}", source.name());
    let text = timeout(PATIENCE, source.watch().await.unwrap().next()).await.unwrap().unwrap();
    assert_eq!((text.content.as_str(), text.format), ("a = 1", Format::Toml));
    assert_eq!(text.origin, format!("secret:{namespace}/orders/c.toml@{version}"));
    assert_eq!(text.revision, Some(version));
    Ok(())
}

async fn sections_of_one_write_change_together() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let both = |n: u32| json!({ "outbound": format!("defaults:\n  timeout: {n}s\n"), "shop.json": format!("{{ \"n\": {n} }}") });
    api.put_config_map(&namespace, both(1)).await;
    let config =
        KubernetesSourceConfig { config_map: Some("orders".into()), ..KubernetesSourceConfig::default() };
    let source = source(&api, &namespace, config);
    let mut watcher = source.watch().await.unwrap();
    for n in 1..20 {
        api.put_config_map(&namespace, both(n)).await;
        loop {
            let text = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
            let at = text.revision.clone().unwrap();
            let place = format!("configmap:{namespace}/orders");
            let whole = |n: u32| {
                format!(
                    "# {place}/outbound@{at}\noutbound:\n  defaults:\n    timeout: {n}s\n\
                     # {place}/shop.json@{at}\nshop:\n  {{ \"n\": {n} }}\n"
                )
            };
            let seen = (1..=n).find(|n| text.content == whole(*n));
            assert!(seen.is_some(), "of two writes: {}", text.content);
            if seen == Some(n) {
                break;
            }
        }
    }
    Ok(())
}

async fn what_is_missing_is_an_error() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let source = source(&api, &namespace, KubernetesSourceConfig::config_map("orders", "b"));
    let mut watcher = source.watch().await.unwrap();
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.ends_with(&format!("has no configmap:{namespace}/orders")), "{error}");
    assert!(timeout(Duration::from_millis(200), watcher.next()).await.is_err(), "it is returned once");
    api.put_config_map(&namespace, json!({ "a": "x: 1" })).await;
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("has no key `b`"), "{error}");
    api.put_config_map(&namespace, json!({ "b": "x: 1" })).await;
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "x: 1");
    Ok(())
}

async fn a_change_is_seen_within_100_ms() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    api.put_config_map(&namespace, json!({ "c.yaml": "a: 0" })).await;
    let source = source(&api, &namespace, KubernetesSourceConfig::config_map("orders", "c.yaml"));
    let mut watcher = source.watch().await.unwrap();
    timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    let mut all = Vec::new();
    for n in 1..=100 {
        let content = format!("a: {n}");
        api.put_config_map(&namespace, json!({ "c.yaml": content })).await;
        let written = Instant::now();
        while timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content != content {}
        all.push(written.elapsed());
    }
    all.sort();
    println!("kubernetes: settings are seen after {:?} (p50), {:?} (p99)", all[50], all[98]);
    assert!(all[98] <= Duration::from_millis(100), "{:?}", &all[90..]);
    Ok(())
}
