//! Settings in etcd.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_core::{
    config::{ConfigSource, Format},
    testing::{
        contract::config_source::{Place, config_source},
        server::PATIENCE,
    },
};
use chassis_etcd::{EtcdSource, EtcdSourceConfig};
use tokio::time::timeout;

use crate::{server::Etcd, trials::Ran};

trials! {
    keeps_the_contract
    a_text_names_its_key_and_revision
    sections_of_one_transaction_change_together
    what_is_no_text_is_an_error
}

struct Key(Etcd);

#[async_trait]
impl Place for Key {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(source(EtcdSourceConfig::key([self.0.address.as_str()], "/orders/chassis.yaml")))
    }

    async fn write(&mut self, content: &str) {
        self.0.put("/orders/chassis.yaml", content).await;
    }

    async fn spoil(&mut self) -> bool {
        self.0.delete("/orders/chassis.yaml").await;
        true
    }
}

fn source(config: EtcdSourceConfig) -> EtcdSource {
    EtcdSource::new(config).unwrap()
}

async fn keeps_the_contract() -> Ran {
    let etcd = Etcd::start().await?;
    config_source(Key(etcd)).await;
    Ok(())
}

async fn a_text_names_its_key_and_revision() -> Ran {
    let etcd = Etcd::start().await?;
    let revision = etcd.put("/orders/chassis.toml", "a = 1").await;
    let source = source(EtcdSourceConfig::key([etcd.address.as_str()], "/orders/chassis.toml"));
    assert!(source.name().contains(&etcd.address), "{}", source.name());
    let text = source.watch().await.unwrap().next().await.unwrap();
    assert_eq!((text.content.as_str(), text.format), ("a = 1", Format::Toml));
    assert_eq!(text.origin, format!("etcd:/orders/chassis.toml@{revision}"));
    assert_eq!(text.revision, Some(revision.to_string()));
    Ok(())
}

async fn sections_of_one_transaction_change_together() -> Ran {
    let etcd = Etcd::start().await?;
    let both = |n: u32| {
        let outbound = format!("defaults:\n  timeout: {n}s\n");
        [
            ("/orders/outbound".to_owned(), outbound),
            ("/orders/shop.json".to_owned(), format!("{{ \"n\": {n} }}")),
        ]
    };
    etcd.put_all(both(1)).await;
    let source = source(EtcdSourceConfig::prefix([etcd.address.as_str()], "/orders/"));
    let mut watcher = source.watch().await.unwrap();
    let text = watcher.next().await.unwrap();
    let whole = |n: u32, revision: &str| {
        format!(
            "# etcd:/orders/outbound@{revision}\noutbound:\n  defaults:\n    timeout: {n}s\n\
             # etcd:/orders/shop.json@{revision}\nshop:\n  {{ \"n\": {n} }}\n"
        )
    };
    assert_eq!(text.content, whole(1, &text.revision.clone().unwrap()));
    assert_eq!((text.format, text.origin.starts_with("etcd:/orders/*@")), (Format::Yaml, true));
    for n in 2..50 {
        etcd.put_all(both(n)).await;
    }
    loop {
        let text = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
        let revision = text.revision.clone().unwrap();
        let seen = (2..50).find(|n| text.content == whole(*n, &revision));
        assert!(seen.is_some(), "of two transactions: {}", text.content);
        if seen == Some(49) {
            break;
        }
    }
    etcd.delete("/orders/shop.json").await;
    let text = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert!(!text.content.contains("shop"), "{}", text.content);
    Ok(())
}

async fn what_is_no_text_is_an_error() -> Ran {
    let etcd = Etcd::start().await?;
    let none = source(EtcdSourceConfig::key([etcd.address.as_str()], "/none"));
    let mut watcher = none.watch().await.unwrap();
    let error = watcher.next().await.unwrap_err().to_string();
    assert!(error.ends_with("has no key etcd:/none"), "{error}");
    assert!(timeout(Duration::from_millis(200), watcher.next()).await.is_err(), "it is reported once");
    etcd.put("/none", "a: 1").await;
    assert_eq!(timeout(PATIENCE, watcher.next()).await.unwrap().unwrap().content, "a: 1");

    for (key, value, why) in [
        ("/s/a.b", "1", "can't be the name of a section"),
        ("/s/", "1", "can't be the name of a section"),
        ("/s/a", "x: 1\n---\ny: 1", "one document"),
    ] {
        etcd.put(key, value).await;
        let sections = source(EtcdSourceConfig::prefix([etcd.address.as_str()], "/s/"));
        let error = sections.watch().await.unwrap().next().await.unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(&format!("etcd:{key}@")), "{error}");
        etcd.delete(key).await;
    }
    Ok(())
}
