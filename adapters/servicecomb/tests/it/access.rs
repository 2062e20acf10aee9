//! Credentials: a user with a password, a token, and a key.
use chassis_core::registry::Registry;
use chassis_servicecomb::{ServiceCombConfig, ServiceCombRegistry};
use tokio::time::timeout;

use crate::{
    center::{Center, CenterConfig, needs_stand_in},
    registry::{PATIENCE, config, stock, until},
    trials::Ran,
};

trials! {
    a_user_gets_a_token
    a_token_may_be_replaced
    a_secret_key_is_never_sent
}

fn file(content: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), content).unwrap();
    file
}

async fn guarded() -> Center {
    let user = Some(("orders".to_owned(), "secret!".to_owned()));
    Center::start_with(CenterConfig { user, ..CenterConfig::default() }).await
}

async fn a_user_gets_a_token() -> Ran {
    needs_stand_in()?;
    let center = guarded().await;
    let password = file("secret!\n");
    let with = |password_file: &tempfile::NamedTempFile| ServiceCombConfig {
        user: Some("orders".into()),
        password_file: Some(password_file.path().to_owned()),
        ..config(&center)
    };
    let registry = ServiceCombRegistry::new(with(&password)).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    let tokens = center.log().iter().filter(|line| line.starts_with("POST /v4/token")).count();
    assert_eq!(tokens, 1, "a token serves all requests");
    // Its time is over: another one is fetched, also for the pushes.
    center.revoke();
    center.cut();
    let b = registry.register(stock("b")).await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
    until(&mut watcher, &[]).await;

    let wrong = file("wrong");
    let stranger = ServiceCombRegistry::new(with(&wrong)).unwrap();
    let error = stranger.register(stock("x")).await.err().unwrap().to_string();
    assert!(error.contains("401") && error.contains("`orders`") && !error.contains("wrong!"), "{error}");
    let mut watcher = stranger.watch("stock").await.unwrap();
    let error = timeout(PATIENCE, watcher.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("401"), "{error}");
    let nobody = ServiceCombRegistry::new(config(&center)).unwrap();
    assert!(nobody.register(stock("x")).await.is_err());
    Ok(())
}

async fn a_token_may_be_replaced() -> Ran {
    needs_stand_in()?;
    let center = guarded().await;
    let fetch = || async {
        let body = r#"{"name":"orders","password":"secret!"}"#;
        let (_, answer) = crate::host::ask(&center.address, "POST", "/v4/token", body).await;
        answer["token"].as_str().unwrap().to_owned()
    };
    let token = file(&fetch().await);
    let token_file = Some(token.path().to_owned());
    let registry = ServiceCombRegistry::new(ServiceCombConfig { token_file, ..config(&center) }).unwrap();
    let a = registry.register(stock("a")).await.unwrap();
    let mut watcher = registry.watch("stock").await.unwrap();
    until(&mut watcher, &["a"]).await;
    center.revoke();
    let error = registry.register(stock("b")).await.err().unwrap().to_string();
    assert!(error.contains("401") && !error.contains("token-"), "{error}");
    std::fs::write(token.path(), fetch().await).unwrap();
    let b = registry.register(stock("b")).await.unwrap();
    until(&mut watcher, &["a", "b"]).await;
    a.deregister().await.unwrap();
    b.deregister().await.unwrap();
    Ok(())
}

async fn a_secret_key_is_never_sent() -> Ran {
    needs_stand_in()?;
    // HMAC-SHA256 of `AK` with the key `SK`, by another program.
    let hash = "32d633d480c6d326ddd8f439f4fbfc7c9a4e0fa3fc0565ccd56e027700d41b14".to_owned();
    let key = Some(("AK".to_owned(), hash));
    let center = Center::start_with(CenterConfig { key, ..CenterConfig::default() }).await;
    let secret = file("SK");
    let with = ServiceCombConfig {
        access_key: Some("AK".into()),
        secret_key_file: Some(secret.path().to_owned()),
        ..config(&center)
    };
    let a = ServiceCombRegistry::new(with.clone()).unwrap().register(stock("a")).await.unwrap();
    a.deregister().await.unwrap();
    std::fs::write(secret.path(), "other").unwrap();
    let error = ServiceCombRegistry::new(with).unwrap().register(stock("a")).await.err().unwrap().to_string();
    assert!(error.contains("401") && !error.contains("other"), "{error}");
    Ok(())
}
