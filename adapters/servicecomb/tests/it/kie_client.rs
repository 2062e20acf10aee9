//! kie-client and go-archaius, with which go-chassis reads its settings, against the same kie: they agree with it and with
//! the source about the API.
use chassis_core::config::ConfigSource;
use chassis_servicecomb::{KieSource, KieSourceConfig};
use tokio::time::timeout;

use crate::{go_chassis::Peer, kie_server::Kie, registry::PATIENCE, trials::Ran};

trials! {
    what_the_client_library_writes_is_read
    go_archaius_reads_the_same_entries
}

fn peer(kie: &Kie, role: &str) -> Result<Peer, crate::trials::NotRun> {
    let address = format!("http://{}", kie.address);
    Peer::start(&[role, &address, &kie.labels["app"], &kie.labels["service"]], None, None)
}

async fn what_the_client_library_writes_is_read() -> Ran {
    let kie = Kie::start().await;
    let mut go = peer(&kie, "kie")?;
    go.says("ready").await;
    go.send("put orders.yaml yaml a: 1").await;
    go.says("refused ").await; // the same key twice
    go.says("done put").await;
    let config = KieSourceConfig::key(&kie.address, kie.labels.clone(), "orders.yaml");
    let mut document = KieSource::new(config).unwrap().watch().await.unwrap();
    assert_eq!(document.next().await.unwrap().content, "a: 1");
    go.send("put orders.yaml yaml a: 2").await;
    go.says("done put").await;
    assert_eq!(timeout(PATIENCE, document.next()).await.unwrap().unwrap().content, "a: 2");

    go.send("put chassis.outbound.defaults.timeout text 3s").await;
    go.says("done put").await;
    let config = KieSourceConfig::labels(&kie.address, kie.labels.clone());
    let mut settings = KieSource::new(config).unwrap().watch().await.unwrap();
    let text = settings.next().await.unwrap().content;
    assert!(text.starts_with("outbound:\n  defaults:\n    timeout: 3s # "), "{text}");

    // Its view of the same entries.
    go.send("list").await;
    assert_eq!(go.says("entry chassis").await, "entry chassis.outbound.defaults.timeout text enabled 3s");
    go.says("no changes").await;
    go.says("done list").await;
    go.send("poll 1s").await;
    go.says("no changes in 1s").await;
    // A real one may answer between counting a change and storing it: one of a few polls ends with it.
    let mut ends = 0;
    for n in 3..8 {
        go.send("poll 2s").await;
        kie.put("orders.yaml", "yaml", &format!("a: {n}")).await;
        let said = go.says_one_of(&["polled orders", "no changes in"]).await;
        ends += u32::from(said == format!("polled orders.yaml a: {n}"));
        let seen = async { while document.next().await.unwrap().content != format!("a: {n}") {} };
        timeout(PATIENCE, seen).await.unwrap_or_else(|_| panic!("a: {n}"));
    }
    assert!(ends > 0, "a poll ends with a change");

    go.send("disable orders.yaml").await;
    let error = timeout(PATIENCE, document.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("has no enabled key"), "{error}");
    go.says("done disable").await;
    go.send("put orders.yaml yaml a: 9").await;
    assert_eq!(timeout(PATIENCE, document.next()).await.unwrap().unwrap().content, "a: 9");
    go.says("done put").await;
    go.send("delete orders.yaml").await;
    let error = timeout(PATIENCE, document.next()).await.unwrap().unwrap_err().to_string();
    assert!(error.contains("has no key"), "{error}");
    go.says("done delete").await;
    Ok(())
}

async fn go_archaius_reads_the_same_entries() -> Ran {
    let server = Kie::start().await;
    // It has this label always, also where it is empty.
    let mut labels = server.labels.clone();
    labels.insert("environment".to_owned(), String::new());
    let kie = server.with_labels(labels);
    kie.put("chassis.inbound.timeout", "text", "7s").await;
    kie.put_as("chassis.inbound.body", "text", "1MiB", "disabled").await;
    let mut go = peer(&kie, "archaius")?;
    go.says("ready").await;
    let config = KieSourceConfig::labels(&kie.address, kie.labels.clone());
    let mut settings = KieSource::new(config).unwrap().watch().await.unwrap();
    let text = settings.next().await.unwrap().content;
    assert!(text.starts_with("inbound:\n  timeout: 7s # ") && text.lines().count() == 2, "{text}");
    for (key, value) in [("chassis.inbound.timeout", "7s"), ("chassis.inbound.body", "<nil>")] {
        go.send(key).await;
        assert_eq!(go.says("value ").await, format!("value {key} {value}"));
    }
    kie.put("chassis.inbound.timeout", "text", "8s").await;
    assert_eq!(go.says("changed ").await, "changed UPDATE chassis.inbound.timeout 8s");
    let text = timeout(PATIENCE, settings.next()).await.unwrap().unwrap().content;
    assert!(text.starts_with("inbound:\n  timeout: 8s # "), "{text}");
    Ok(())
}
