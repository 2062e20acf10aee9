//! Service center behind a proxy that ends TLS.
use std::{path::Path, time::Duration};

use chassis_core::registry::{Registration, Registry};
use chassis_servicecomb::{ServiceCombConfig, ServiceCombRegistry, TlsConfig};
use tokio::time::{Instant, timeout};

use crate::{
    center::{Center, needs_stand_in},
    certificates::Authority,
    registry::{PATIENCE, config, register_soon, stock, until},
    tls_front::{front, front_for},
    trials::Ran,
};

trials! {
    requests_and_pushes_go_by_tls
    another_authority_is_refused
    the_certificate_of_a_client_is_asked_for
}

fn by(center: &Center, at: &str, tls: TlsConfig) -> ServiceCombRegistry {
    let addresses = vec![format!("https://{at}")];
    ServiceCombRegistry::new(ServiceCombConfig { addresses, tls: Some(tls), ..config(center) }).unwrap()
}

async fn requests_and_pushes_go_by_tls() -> Ran {
    needs_stand_in()?;
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let center = Center::start().await;
    let at = front(center.address.clone(), &authority.server("server"), "http/1.1").await;
    let registry = by(&center, &at, TlsConfig::new(&authority.ca));
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    timeout(PATIENCE, center.has_noted("stock")).await.unwrap();
    let pushes = center.log().iter().filter(|line| line.contains("/watcher")).count();
    assert_eq!(pushes, 1, "the WebSocket is opened once, and stays");
    // Another process changes it: without a push it would be seen after a second.
    let others = ServiceCombRegistry::new(config(&center)).unwrap();
    let mut taken = Vec::new();
    for round in 0..20 {
        let b = others.register(stock(&format!("b{round:02}"))).await.unwrap();
        let begun = Instant::now();
        until(&mut watcher, &["a", &format!("b{round:02}")]).await;
        taken.push(begun.elapsed());
        b.deregister().await.unwrap();
        until(&mut watcher, &["a"]).await;
    }
    taken.sort();
    assert!(taken[10] < Duration::from_millis(100), "half of the pushes come late: {taken:?}");
    a.deregister().await.unwrap();

    for wrong in [format!("https://{at}"), format!("http://{at}")] {
        let with = ServiceCombConfig { tls: Some(TlsConfig::new(&authority.ca)), ..config(&center) };
        let wrong = match wrong.starts_with("https") {
            true => ServiceCombConfig { addresses: vec![wrong], tls: None, ..with },
            false => ServiceCombConfig { addresses: vec![wrong], ..with },
        };
        let error = ServiceCombRegistry::new(wrong).err().unwrap().to_string();
        assert!(error.contains("`tls`") && error.contains("addresses[0]"), "{error}");
    }
    Ok(())
}

async fn another_authority_is_refused() -> Ran {
    needs_stand_in()?;
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) =
        (Authority::new(folder.path(), "authority"), Authority::new(folder.path(), "stranger"));
    let center = Center::start().await;
    let at = front(center.address.clone(), &authority.server("server"), "http/1.1").await;
    // The file is replaced while the process runs: the next connection takes it.
    let ca = folder.path().join("ca.pem");
    std::fs::copy(&stranger.ca, &ca).unwrap();
    let registry = by(&center, &at, TlsConfig::new(&ca));
    let error = refused(&registry).await;
    assert!(error.contains(&at), "{error}");
    let mut watcher = registry.watch("stock").await.unwrap();
    assert!(timeout(PATIENCE, watcher.next()).await.unwrap().is_err());
    assert!(center.entries("stock").is_empty() && center.log().is_empty(), "nothing reaches the server");
    std::fs::copy(&authority.ca, &ca).unwrap();
    let a = register_soon(&registry, stock("a")).await;
    until(&mut watcher, &["a"]).await;
    a.deregister().await.unwrap();

    // A certificate of the right authority for another name.
    let other = authority.server_called("other", "center.example");
    let at = front(center.address.clone(), &other, "http/1.1").await;
    refused(&by(&center, &at, TlsConfig::new(&authority.ca))).await;
    let server_name = Some("center.example".to_owned());
    let named = by(&center, &at, TlsConfig { server_name, ..TlsConfig::new(&authority.ca) });
    named.register(stock("b")).await.unwrap().deregister().await.unwrap();
    Ok(())
}

async fn the_certificate_of_a_client_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) =
        (Authority::new(folder.path(), "authority"), Authority::new(folder.path(), "stranger"));
    let (known, unknown) = (authority.client("orders", &[]), stranger.client("stranger", &[]));
    let center = Center::start().await;
    let server = authority.server("server");
    let at = front_for(center.address.clone(), &server, "http/1.1", Some(&authority.ca)).await;
    refused(&by(&center, &at, TlsConfig::new(&authority.ca))).await;
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    let put = |from: &Path, to: &Path| std::fs::copy(from, to).map(drop).unwrap();
    put(&unknown.cert, &cert);
    put(&unknown.key, &key);
    let registry = by(&center, &at, TlsConfig::new(&authority.ca).with_identity(&cert, &key));
    refused(&registry).await;
    // Both files are replaced, one after the other.
    put(&known.cert, &cert);
    put(&known.key, &key);
    let a = register_soon(&registry, stock("a")).await;
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    timeout(PATIENCE, center.has_noted("stock")).await.expect("pushes show the certificate, too");
    a.deregister().await.unwrap();
}

/// The error of a registration that has to fail within a bounded time.
async fn refused(registry: &ServiceCombRegistry) -> String {
    let begun = Instant::now();
    let registered: Result<Box<dyn Registration>, _> = registry.register(stock("x")).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    registered.err().expect("it is refused").to_string()
}
