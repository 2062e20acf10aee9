//! ACLs: tokens, and what Consul hides from others.
use std::time::Duration;

use chassis_consul::{ConsulConfig, ConsulRegistry, ConsulSource, ConsulSourceConfig};
use chassis_core::{
    config::ConfigSource,
    registry::{Membership, Registry},
    testing::server::{PATIENCE, ids_of, stock, until},
};
use chassis_http::connector::TlsConfig;
use tokio::time::{Instant, timeout};

use crate::{
    certificates::Authority,
    server::{Consul, MASTER},
    trials::Ran,
};

trials! {
    a_token_lets_its_rules_in
    a_token_may_be_replaced
    who_may_read_without_a_token_needs_none
    keys_have_rules_too
    certificates_let_in
}

/// The rules for a service that is registered and calls itself.
const RULES: &str = r#"service "stock" { policy = "write" } node_prefix "" { policy = "read" }"#;

/// The settings with `token`, which stands in a file.
fn with(consul: &Consul, token: &str) -> (ConsulConfig, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{token}\n")).unwrap();
    let token_file = Some(file.path().to_owned());
    (ConsulConfig { token_file, ..ConsulConfig::at(&consul.address) }, file)
}

async fn a_token_lets_its_rules_in() -> Ran {
    let consul = Consul::guarded().await?;
    let (token, _) = consul.new_token(RULES).await;
    let (config, _file) = with(&consul, &token);
    let registry = ConsulRegistry::new(config).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    assert_eq!(registry.services().await, ["stock"]);
    // Of another service it may read nothing: an empty list that is not believed.
    let mut other = registry.watch("billing").await.unwrap();
    let (master, _master_file) = with(&consul, MASTER);
    let master = ConsulRegistry::new(master).unwrap();
    let billing = chassis_core::registry::Instance::new("billing", "b").with_address("grpc", "h:1");
    let b = master.register(billing.clone()).await.unwrap();
    let error = timeout(PATIENCE, async {
        loop {
            if let Err(error) = other.next().await {
                return error.to_string();
            }
        }
    });
    let error = error.await.unwrap();
    assert!(error.contains("hides the instances of `billing`: the token may not read it"), "{error}");
    let error = registry.register(billing).await.err().unwrap().to_string();
    assert!(error.contains("403") && !error.contains(&token), "{error}");

    // Without a token, and with one that is none.
    let stranger = ConsulRegistry::new(ConsulConfig::at(&consul.address)).unwrap();
    let error = stranger.watch("stock").await.unwrap().next().await.unwrap_err().to_string();
    assert!(error.contains("hides the instances of `stock`: no token is set"), "{error}");
    assert!(stranger.register(stock("x")).await.is_err());
    let unknown = "22222222-2222-2222-2222-222222222222";
    let (config, _unknown_file) = with(&consul, unknown);
    let wrong = ConsulRegistry::new(config).unwrap();
    let error = wrong.watch("stock").await.unwrap().next().await.unwrap_err();
    let said = format!("{error} {error:?}");
    assert!(said.contains("ACL not found") && !said.contains(unknown), "{said}");

    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn a_token_may_be_replaced() -> Ran {
    let consul = Consul::guarded().await?;
    let (old, old_accessor) = consul.new_token(RULES).await;
    let (new, new_accessor) = consul.new_token(RULES).await;
    let (config, file) = with(&consul, &old);
    let ours = ConsulRegistry::new(config).unwrap();
    let a = ours.register(stock("a")).await.unwrap();
    let mut watcher = ours.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    std::fs::write(file.path(), &new).unwrap();
    consul.revoke(&old_accessor).await; // ends the queries that wait with it
    let begun = Instant::now();
    let b = ours.register(stock("b")).await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    assert!(begun.elapsed() <= Duration::from_secs(2), "{:?}", begun.elapsed());
    // The known instances stay while the file holds no valid token; once it does, their changes are seen again.
    std::fs::write(file.path(), &old).unwrap();
    consul.revoke(&new_accessor).await;
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ACL not found"), "{error}");
    std::fs::write(file.path(), consul.new_token(RULES).await.0).unwrap();
    let answer = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap();
    assert_eq!(ids_of(&answer), ["a", "b"]);
    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn who_may_read_without_a_token_needs_none() -> Ran {
    let consul = Consul::guarded().await?;
    let rules = r#"service_prefix "" { policy = "read" } node_prefix "" { policy = "read" }"#;
    let policy = serde_json::json!({ "Name": "all", "Rules": rules });
    consul.ok("PUT", "/v1/acl/policy", policy).await;
    let anonymous = serde_json::json!({
        "AccessorID": "00000000-0000-0000-0000-000000000002", "Policies": [{ "Name": "all" }] });
    consul.ok("PUT", "/v1/acl/token/00000000-0000-0000-0000-000000000002", anonymous).await;
    let reader = ConsulRegistry::new(ConsulConfig::at(&consul.address)).unwrap();
    let mut watcher = reader.watch("stock").await.unwrap();
    assert_eq!(watcher.next().await.unwrap(), Membership::Unknown);
    let (config, _file) = with(&consul, MASTER);
    let a = ConsulRegistry::new(config).unwrap().register(stock("a")).await.unwrap();
    until(&mut watcher, &["a"]).await;
    a.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    Ok(())
}

async fn keys_have_rules_too() -> Ran {
    let consul = Consul::guarded().await?;
    consul.put("orders/outbound", "defaults: { timeout: 3s }").await;
    consul.put("orders/secret", "x: 1").await;
    let source = |config: ConsulSourceConfig| ConsulSource::new(config).unwrap();
    let first = async |source: ConsulSource| source.watch().await.unwrap().next().await;
    let stranger = first(source(ConsulSourceConfig::key(&consul.address, "orders/outbound"))).await;
    assert!(stranger.unwrap_err().to_string().contains("403"), "a key");
    let stranger = first(source(ConsulSourceConfig::prefix(&consul.address, "orders/"))).await;
    let error = stranger.unwrap_err().to_string();
    assert!(error.ends_with("or hides it: no token is set"), "{error}");

    let (token, _) = consul.new_token(r#"key_prefix "orders/" { policy = "read" }"#).await;
    let (config, _file) = with(&consul, &token);
    let all = ConsulSourceConfig {
        token_file: config.token_file,
        ..ConsulSourceConfig::prefix(&consul.address, "orders/")
    };
    assert!(first(source(all.clone())).await.unwrap().content.contains("secret:"));
    // A part of the sections is not taken for all of them.
    let (token, _) = consul.new_token(r#"key "orders/outbound" { policy = "read" }"#).await;
    let (config, _file) = with(&consul, &token);
    let part = ConsulSourceConfig { token_file: config.token_file, ..all };
    let error = first(source(part.clone())).await.unwrap_err().to_string();
    assert!(error.contains("hides keys of consul:orders/* from the token"), "{error}");
    let one = ConsulSourceConfig { prefix: None, key: Some("orders/outbound".into()), ..part };
    assert!(first(source(one)).await.unwrap().content.contains("3s"));
    Ok(())
}

async fn certificates_let_in() -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let agent = authority.server("consul");
    let (ca, cert, key) = (authority.ca.display(), agent.cert.display(), agent.key.display());
    let files =
        format!("ca_file = \"{ca}\", cert_file = \"{cert}\", key_file = \"{key}\", verify_incoming = true");
    let (consul, secure) = Consul::secure(&files.replace(", ", "\n")).await?;
    let at =
        |tls: TlsConfig| ConsulConfig { tls: Some(tls), ..ConsulConfig::at(format!("https://{secure}")) };
    let known = authority.client("app", &[]);
    let tls = TlsConfig::new(&authority.ca).with_identity(&known.cert, &known.key);
    let registry = ConsulRegistry::new(at(tls.clone())).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    a.deregister().await.unwrap();

    consul.put("c.yaml", "inbound: {}").await;
    let source = ConsulSourceConfig { tls: Some(tls), ..ConsulSourceConfig::key(secure.as_str(), "c.yaml") };
    let mut texts = ConsulSource::new(source).unwrap().watch().await.unwrap();
    assert_eq!(timeout(PATIENCE, texts.next()).await.unwrap().unwrap().content, "inbound: {}");

    let stranger = Authority::new(folder.path(), "stranger");
    for tls in [TlsConfig::new(&stranger.ca), TlsConfig::new(&authority.ca)] {
        let registry = ConsulRegistry::new(at(tls.clone())).unwrap();
        assert!(registry.register(stock("b")).await.is_err(), "{tls:?}");
    }
    Ok(())
}
