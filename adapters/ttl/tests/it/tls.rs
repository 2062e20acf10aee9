//! A registry server behind a proxy that ends TLS.
use chassis_core::{
    registry::Registry,
    testing::server::{stock, until},
};
use chassis_http::connector::TlsConfig;
use chassis_ttl::{TtlConfig, TtlRegistry};

use crate::{certificates::Authority, process::Process, tls_front::front};

#[tokio::test]
async fn servers_are_reached_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let server = Process::start().await;
    let at = front(server.address.clone(), &authority.server("server"), "h2").await;
    let config = |ca: &Authority| TtlConfig {
        tls: Some(TlsConfig::new(&ca.ca)),
        ..TtlConfig::at([format!("https://{at}")])
    };
    let registry = TtlRegistry::new(config(&authority)).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    assert_eq!(server.ids().await, ["a"]);
    a.deregister().await.unwrap();

    let stranger = TtlRegistry::new(config(&Authority::new(folder.path(), "stranger"))).unwrap();
    assert!(stranger.register(stock("b")).await.is_err());
    assert!(TtlRegistry::new(TtlConfig::at([format!("https://{at}")])).is_err());
}
