//! Who may read: tokens, certificates, kubeconfig files, and the rights that the shipped manifest gives.
use std::time::Duration;

use chassis_core::{
    config::ConfigSource,
    registry::{Membership, Registry},
};
use chassis_http::connector::TlsConfig;
use chassis_kubernetes::{KubernetesConfig, KubernetesRegistry, KubernetesSource, KubernetesSourceConfig};
use tokio::time::timeout;

use crate::{
    registry::{hosts, registry, until},
    server::{Api, GUARDED, PATIENCE, Server, shared},
    trials::Ran,
};

trials! {
    the_manifest_gives_what_is_needed
    a_token_may_be_replaced
    a_kubeconfig_with_a_certificate_is_enough
}

/// Applies these manifests, first as `kubectl apply --dry-run=server --validate=strict` does.
pub(crate) async fn apply(api: &Api, namespace: &str, manifests: &[&str]) {
    let text = manifests.join("\n---\n");
    for dry in ["?dryRun=All&fieldValidation=Strict", "?fieldValidation=Strict"] {
        for one in text.split("\n---\n") {
            let kind = if one.contains("kind: RoleBinding\n") { "rolebindings" } else { "roles" };
            let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/{kind}{dry}");
            let (status, answer) = api.request("POST", &path, one, "application/yaml").await;
            assert_eq!(status, 201, "{path}: {answer}");
        }
    }
}

async fn the_manifest_gives_what_is_needed() -> Ran {
    let api = shared().await?;
    api.make_namespace("guarded").await;
    api.put("guarded", "a", &[1]).await;
    let config = KubernetesConfig { token_file: Some(api.token_file(GUARDED)), ..api.config("guarded") };
    let mut watcher = registry(config.clone()).watch("stock").await.unwrap();
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("403") && error.contains("endpointslices"), "{error}");
    assert!(!error.contains(GUARDED), "{error}");
    let manifests = [include_str!("../../deploy/rbac.yaml"), include_str!("../../deploy/rbac-center.yaml")];
    apply(&api, "guarded", &manifests).await;
    until(&mut watcher, &hosts(&[1])).await;
    // The object of the manifest may be read, and no other one.
    api.put_config_map("guarded", serde_json::json!({ "c.yaml": "a: 1" })).await;
    let KubernetesConfig { server, tls, token_file, namespace, .. } = config.clone();
    let of = |name: &str| KubernetesSourceConfig {
        server: server.clone(),
        tls: tls.clone(),
        token_file: token_file.clone(),
        namespace: namespace.clone(),
        ..KubernetesSourceConfig::config_map(name, "c.yaml")
    };
    let mut texts = KubernetesSource::new(of("orders")).unwrap().watch().await.unwrap();
    assert_eq!(timeout(PATIENCE, texts.next()).await.unwrap().unwrap().content, "a: 1");
    let mut texts = KubernetesSource::new(of("others")).unwrap().watch().await.unwrap();
    let error = timeout(PATIENCE, texts.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("403"), "{error}");
    api.put("guarded", "a", &[2]).await;
    until(&mut watcher, &hosts(&[2])).await;
    // Not in another namespace.
    let mut other = registry(config).watch("stock.kube-system").await.unwrap();
    let error = timeout(PATIENCE, other.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("403"), "{error}");
    Ok(())
}

async fn a_token_may_be_replaced() -> Ran {
    let api = shared().await?;
    let namespace = api.namespace().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "is-over").unwrap();
    let config = KubernetesConfig { token_file: Some(file.path().to_owned()), ..api.config(&namespace) };
    let mut watcher = registry(config).watch("stock").await.unwrap();
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("401") && !error.contains("is-over"), "{error}");
    std::fs::copy(api.token_file("admin-token"), file.path()).unwrap();
    let known = timeout(Duration::from_secs(10), watcher.next()).await.unwrap().unwrap();
    assert_eq!(known, Membership::Unknown);
    Ok(())
}

async fn a_kubeconfig_with_a_certificate_is_enough() -> Ran {
    let server = Server::start(&[]).await?;
    let api = &server.api;
    api.make_namespace("shop").await;
    api.put("shop", "a", &[1]).await;
    let admin = server.client("admin", &["system:masters"]);
    let path = api.folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: one\n\
         clusters: [{{ name: c, cluster: {{ server: 'https://{}', certificate-authority: authority.pem }} }}]\n\
         contexts: [{{ name: one, context: {{ cluster: c, user: u, namespace: shop }} }}]\n\
         users: [{{ name: u, user: {{ client-certificate: {}, client-key: {} }} }}]\n",
        api.address,
        admin.cert.display(),
        admin.key.display()
    );
    std::fs::write(&path, text).unwrap();
    let config = KubernetesConfig { kubeconfig: Some(path.clone()), ..KubernetesConfig::default() };
    let mut watcher = registry(config.clone()).watch("stock").await.unwrap();
    until(&mut watcher, &hosts(&[1])).await;
    let error = KubernetesRegistry::new(KubernetesConfig { context: Some("two".into()), ..config });
    assert!(error.err().unwrap().to_string().contains("no context `two`"));
    // A certificate of another authority is not accepted.
    let stranger =
        crate::certificates::Authority::new(&api.folder, "stranger").client("x", &["system:masters"]);
    let tls = TlsConfig::new(api.folder.join("authority.pem")).with_identity(&stranger.cert, &stranger.key);
    let config = KubernetesConfig { tls: Some(tls), token_file: None, ..api.config("shop") };
    let mut watcher = registry(config).watch("stock").await.unwrap();
    assert!(timeout(PATIENCE, watcher.next()).await.unwrap().is_err());
    Ok(())
}
