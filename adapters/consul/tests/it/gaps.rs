//! A watcher that was cut off finds everything that happened meanwhile, entries that went too.
use std::sync::Arc;

use async_trait::async_trait;
use chassis_consul::{ConsulSource, ConsulSourceConfig};
use chassis_core::{
    config::ConfigSource,
    testing::{
        contract::config_source::Place,
        server::{self, Proxy},
    },
};

use crate::{server::Consul, trials::Ran};

trials! {
    no_update_is_lost_over_gaps
    a_config_watcher_loses_nothing_over_gaps
}

async fn no_update_is_lost_over_gaps() -> Ran {
    server::gaps(&mut Consul::start().await?).await;
    Ok(())
}

/// A key that is read at another address.
struct Elsewhere(Consul, String);

#[async_trait]
impl Place for Elsewhere {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(ConsulSource::new(ConsulSourceConfig::key(&self.1, "c.yaml")).unwrap())
    }

    async fn write(&mut self, content: &str) {
        self.0.put("c.yaml", content).await;
    }

    async fn spoil(&mut self) -> bool {
        false
    }
}

async fn a_config_watcher_loses_nothing_over_gaps() -> Ran {
    let consul = Consul::start().await?;
    let proxy = Proxy::start(&consul.address).await.unwrap();
    let place = Elsewhere(consul, proxy.address().to_owned());
    server::config_gaps(place, &proxy).await;
    Ok(())
}
