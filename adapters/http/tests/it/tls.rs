//! A server behind a proxy that ends TLS.
use chassis_http_center::{HttpSource, HttpSourceConfig, TlsConfig};

use crate::{
    center::{ALL, at, error, text, watch},
    certificates::Authority,
    server::Server,
    tls_front::front,
};

#[tokio::test]
async fn documents_are_read_by_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let stranger = Authority::new(folder.path(), "stranger");
    for how in ALL {
        let server = Server::start().await;
        server.put("a: 1");
        let address = front(server.address.clone(), &authority.server("server"), "http/1.1").await;
        let url = format!("https://{address}/orders/chassis.yaml");
        let by =
            |ca: &Authority| HttpSourceConfig { tls: Some(TlsConfig::new(&ca.ca)), ..at(url.clone(), how) };
        let mut watcher = watch(by(&authority)).await;
        assert_eq!(text(&mut watcher).await.content, "a: 1", "{how:?}");
        server.put("a: 2");
        assert_eq!(text(&mut watcher).await.content, "a: 2", "{how:?}");

        error(&mut watch(by(&stranger)).await).await;
        assert!(HttpSource::new(at(url.clone(), how)).is_err(), "without the table");
        assert!(HttpSource::new(HttpSourceConfig { url: Some(server.url()), ..by(&authority) }).is_err());
    }
}
