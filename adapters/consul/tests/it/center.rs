//! Settings in Consul.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_consul::{ConsulSource, ConsulSourceConfig};
use chassis_core::{
    config::{ConfigSource, Format},
    testing::{
        contract::config_source::{Place, config_source},
        server::PATIENCE,
    },
};
use serde_json::json;
use tokio::time::timeout;

use crate::{server::Consul, trials::Ran};

trials! {
    keeps_the_contract
    a_text_names_its_key_and_index
    sections_of_one_transaction_change_together
    what_is_no_text_is_an_error
}

struct Key(Consul);

#[async_trait]
impl Place for Key {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(source(ConsulSourceConfig::key(&self.0.address, "/orders/chassis.yaml")))
    }

    async fn write(&mut self, content: &str) {
        self.0.put("orders/chassis.yaml", content).await;
    }

    async fn spoil(&mut self) -> bool {
        self.0.delete("orders/chassis.yaml").await;
        true
    }
}

fn source(config: ConsulSourceConfig) -> ConsulSource {
    ConsulSource::new(config).unwrap()
}

/// Puts several values in one transaction.
async fn put_all(consul: &Consul, all: impl IntoIterator<Item = (String, String)>) {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let put = |(key, value): (String, String)| json!({ "KV": { "Verb": "set", "Key": key, "Value": BASE64_STANDARD.encode(value) } });
    let all: Vec<_> = all.into_iter().map(put).collect();
    consul.ok("PUT", "/v1/txn", all.into()).await;
}

async fn keeps_the_contract() -> Ran {
    let consul = Consul::start().await?;
    config_source(Key(consul)).await;
    Ok(())
}

async fn a_text_names_its_key_and_index() -> Ran {
    let consul = Consul::start().await?;
    let index = consul.put("orders/chassis.toml", "a = 1").await;
    let source = source(ConsulSourceConfig::key(&consul.address, "orders/chassis.toml"));
    assert!(source.name().contains(&consul.address), "{}", source.name());
    let text = source.watch().await.unwrap().next().await.unwrap();
    assert_eq!((text.content.as_str(), text.format), ("a = 1", Format::Toml));
    assert_eq!(text.origin, format!("consul:orders/chassis.toml@{index}"));
    assert_eq!(text.revision, Some(index.to_string()));
    Ok(())
}

async fn sections_of_one_transaction_change_together() -> Ran {
    let consul = Consul::start().await?;
    let both = |n: u32| {
        let outbound = format!("defaults:\n  timeout: {n}s\n");
        [
            ("orders/outbound".to_owned(), outbound),
            ("orders/shop.json".to_owned(), format!("{{ \"n\": {n} }}")),
        ]
    };
    put_all(&consul, both(1)).await;
    consul.put("orders/", "").await; // a folder, as Consul's page makes it
    let source = source(ConsulSourceConfig::prefix(&consul.address, "/orders/"));
    let mut watcher = source.watch().await.unwrap();
    let text = watcher.next().await.unwrap();
    let whole = |n: u32, index: &str| {
        format!(
            "# consul:orders/outbound@{index}\noutbound:\n  defaults:\n    timeout: {n}s\n\
             # consul:orders/shop.json@{index}\nshop:\n  {{ \"n\": {n} }}\n"
        )
    };
    assert_eq!(text.content, whole(1, &text.revision.clone().unwrap()));
    assert_eq!((text.format, text.origin.starts_with("consul:orders/*@")), (Format::Yaml, true));
    for n in 2..50 {
        put_all(&consul, both(n)).await;
    }
    loop {
        let text = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
        let index = text.revision.clone().unwrap();
        let seen = (2..50).find(|n| text.content == whole(*n, &index));
        assert!(seen.is_some(), "of two transactions: {}", text.content);
        if seen == Some(49) {
            break;
        }
    }
    consul.delete("orders/shop.json").await;
    let text = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert!(!text.content.contains("shop"), "{}", text.content);
    Ok(())
}

async fn what_is_no_text_is_an_error() -> Ran {
    let consul = Consul::start().await?;
    let none = source(ConsulSourceConfig::key(&consul.address, "none"));
    let mut watcher = none.watch().await.unwrap();
    let error = watcher.next().await.unwrap_err().to_string();
    assert!(error.ends_with("has no key consul:none"), "{error}");
    assert!(timeout(Duration::from_millis(200), watcher.next()).await.is_err(), "it is returned once");
    consul.put("none", "a: 1").await;
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "a: 1");

    for (key, value, why) in [
        ("s/a.b", "1", "can't be the name of a section"),
        ("s/a/b", "1", "can't be the name of a section"),
        ("s/a", "x: 1\n---\ny: 1", "one document"),
    ] {
        consul.put(key, value).await;
        let sections = source(ConsulSourceConfig::prefix(&consul.address, "s/"));
        let error = sections.watch().await.unwrap().next().await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(&format!("consul:{key}@")), "{error}");
        consul.delete(key).await;
    }
    Ok(())
}
