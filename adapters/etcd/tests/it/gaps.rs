//! A watcher that was cut off finds everything that happened meanwhile, deletions too.
use std::sync::Arc;

use async_trait::async_trait;
use chassis_core::{
    config::ConfigSource,
    testing::{
        contract::config_source::Place,
        server::{self, Proxy},
    },
};
use chassis_etcd::{EtcdSource, EtcdSourceConfig};

use crate::{server::Etcd, trials::Ran};

trials! {
    no_update_is_lost_over_gaps
    a_config_watcher_loses_nothing_over_gaps
}

async fn no_update_is_lost_over_gaps() -> Ran {
    server::gaps(&mut Etcd::start().await?).await;
    Ok(())
}

/// A key that is read at another address, and whose history is compacted with each write.
struct Compacted(Etcd, String);

#[async_trait]
impl Place for Compacted {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(EtcdSource::new(EtcdSourceConfig::key([self.1.as_str()], "/c.yaml")).unwrap())
    }

    async fn write(&mut self, content: &str) {
        self.0.put("/c.yaml", content).await;
        self.0.compact().await;
    }

    async fn spoil(&mut self) -> bool {
        false
    }
}

async fn a_config_watcher_loses_nothing_over_gaps() -> Ran {
    let etcd = Etcd::start().await?;
    let proxy = Proxy::start(&etcd.address).await.unwrap();
    let place = Compacted(etcd, proxy.address().to_owned());
    server::config_gaps(place, &proxy).await;
    Ok(())
}
