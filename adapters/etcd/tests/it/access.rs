//! Users and passwords.
use std::time::Duration;

use chassis_core::{
    config::ConfigSource,
    registry::{Membership, Registry},
    testing::server::{PATIENCE, ids_of, register_soon, stock, until},
};
use chassis_etcd::{EtcdConfig, EtcdRegistry, EtcdSource, EtcdSourceConfig};
use chassis_http::connector::TlsConfig;
use serde_json::json;
use tokio::time::timeout;

use crate::{
    certificates::Authority,
    server::{Etcd, b64},
    trials::Ran,
};

trials! {
    a_user_with_a_password_is_let_in
    a_token_is_renewed
    certificates_let_in
}

const SECRET: &str = "hunter2-is-secret";

/// An etcd that allows `app` the keys below `/chassis/`, and other users nothing.
async fn guarded(more: &[&str]) -> Result<Etcd, crate::trials::NotRun> {
    let etcd = Etcd::start_with(more).await?;
    for (path, body) in [
        ("user/add", json!({ "name": "root", "password": SECRET })),
        ("role/add", json!({ "name": "root" })),
        ("user/grant", json!({ "user": "root", "role": "root" })),
        ("user/add", json!({ "name": "app", "password": SECRET })),
        ("role/add", json!({ "name": "app" })),
        ("user/grant", json!({ "user": "app", "role": "app" })),
        (
            "role/grant",
            json!({ "name": "app", "perm": {
                "permType": "READWRITE", "key": b64("/chassis/"), "range_end": b64("/chassis0") } }),
        ),
        ("enable", json!({})),
    ] {
        let answer = etcd.post(&format!("/v3/auth/{path}"), body).await;
        assert!(answer.get("error").is_none(), "{path}: {answer}");
    }
    Ok(etcd)
}

/// The settings of `app`, with the file of its password.
fn app(etcd: &Etcd, password: &str) -> (EtcdConfig, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{password}\n")).unwrap();
    let (user, password_file) = (Some("app".to_owned()), Some(file.path().to_owned()));
    (EtcdConfig { user, password_file, ..EtcdConfig::at([etcd.address.as_str()]) }, file)
}

async fn a_user_with_a_password_is_let_in() -> Ran {
    let etcd = guarded(&[]).await?;
    let (config, file) = app(&etcd, SECRET);
    let registry = EtcdRegistry::new(config.clone()).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;

    // Others are refused, with a reason and without the secret.
    let stranger = EtcdRegistry::new(EtcdConfig::at([etcd.address.as_str()])).unwrap();
    let error = stranger.register(stock("b")).await.err().unwrap().to_string();
    assert!(error.contains("user name is empty"), "{error}");
    let error = stranger.watch("stock").await.unwrap().next().await.unwrap_err().to_string();
    assert!(error.contains("user name is empty"), "{error}");
    let elsewhere = EtcdRegistry::new(EtcdConfig { prefix: "/else".into(), ..config.clone() }).unwrap();
    let error = elsewhere.register(stock("b")).await.err().unwrap().to_string();
    assert!(error.contains("permission denied"), "{error}");
    std::fs::write(file.path(), "hunter3-is-wrong").unwrap();
    let wrong = EtcdRegistry::new(config).unwrap();
    let error = wrong.register(stock("b")).await.err().unwrap();
    let said = format!("{error} {error:?}");
    assert!(said.contains("authentication failed"), "{said}");
    assert!(!said.contains("hunter"), "{said}");

    a.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn a_token_is_renewed() -> Ran {
    let mut etcd = guarded(&["--auth-token-ttl=2"]).await?;
    let (config, _file) = app(&etcd, SECRET);
    let registry = EtcdRegistry::new(config.clone()).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    // Tokens of this kind are lost with the server.
    etcd.kill().await;
    etcd.run().await;
    let b = register_soon(&registry, stock("b")).await;
    let found = timeout(PATIENCE, async {
        loop {
            if let Ok(found) = watcher.next().await
                && ids_of(&found).contains(&"b")
            {
                return found;
            }
        }
    });
    assert!(matches!(found.await.unwrap(), Membership::Known(_)));
    // No call for longer than a token is valid: this causes the fault.
    tokio::time::sleep(Duration::from_secs(4)).await;
    b.deregister().await.unwrap();
    until(&mut watcher, &["a"]).await;
    a.deregister().await.unwrap();
    Ok(())
}

async fn certificates_let_in() -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let server = authority.server("etcd");
    let flag = |name: &str, path: &std::path::Path| format!("--{name}={}", path.display());
    let more = vec![
        flag("cert-file", &server.cert),
        flag("key-file", &server.key),
        flag("trusted-ca-file", &authority.ca),
        "--client-cert-auth".to_owned(),
    ];
    let (etcd, secure) = Etcd::start_secure(more).await?;
    let at = |tls: TlsConfig| EtcdConfig { tls: Some(tls), ..EtcdConfig::at([format!("https://{secure}")]) };
    let known = authority.client("app", &[]);
    let tls = TlsConfig::new(&authority.ca).with_identity(&known.cert, &known.key);
    let registry = EtcdRegistry::new(at(tls.clone())).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    a.deregister().await.unwrap();
    until(&mut watcher, &[]).await;

    etcd.put("/c.yaml", "inbound: {}").await;
    let endpoints = [format!("https://{secure}")];
    let source = EtcdSourceConfig { tls: Some(tls), ..EtcdSourceConfig::key(endpoints, "/c.yaml") };
    let mut texts = EtcdSource::new(source).unwrap().watch().await.unwrap();
    let text = timeout(PATIENCE, texts.next()).await.unwrap().unwrap();
    assert_eq!(text.content, "inbound: {}");

    // A server that is not trusted, and a process that etcd does not trust.
    let stranger = Authority::new(folder.path(), "stranger");
    let theirs = stranger.client("intruder", &[]);
    for tls in [
        TlsConfig::new(&stranger.ca),
        TlsConfig::new(&authority.ca),
        TlsConfig::new(&authority.ca).with_identity(&theirs.cert, &theirs.key),
    ] {
        let registry = EtcdRegistry::new(at(tls.clone())).unwrap();
        assert!(registry.register(stock("b")).await.is_err(), "{tls:?}");
    }
    Ok(())
}
