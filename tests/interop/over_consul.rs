//! Services that find each other through a real Consul, and read their settings from it.
use std::time::Duration;

use chassis::{
    Chassis, Document, Event, Running, StartError,
    config::{Format, Text},
    document::{Environment, parse, tree::Layer},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::{
    callers::{self, Callers},
    consul_server::Consul,
    peer::PATIENCE,
    trials::Ran,
};

trials! {
    three_instances_are_restarted_under_callers
    consul_is_away_under_callers
    consul_is_frozen_beyond_the_ttl_under_callers
    an_agent_asks_the_health_of_grpc
    settings_come_from_a_key
    a_center_that_is_away_is_waited_for
    settings_of_the_page_are_valid
}

fn registry(consul: &Consul) -> Value {
    json!({ "kind": "consul", "address": consul.address })
}

async fn stock(consul: &Consul) -> Running {
    callers::stock(&registry(consul)).await
}

async fn three_instances_are_restarted_under_callers() -> Ran {
    let consul = Consul::start().await?;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(stock(&consul).await);
    }
    let callers = Callers::start(&registry(&consul)).await;
    callers.know(&all.iter().collect::<Vec<_>>()).await;
    for _ in 0..2 {
        for _ in 0..3 {
            callers.go_on(200).await;
            all.remove(0).stop().await;
            all.push(stock(&consul).await);
            callers.know(&all.iter().collect::<Vec<_>>()).await;
        }
    }
    let (calls, failed) = callers.end().await;
    println!("consul: {calls} calls while three instances were restarted twice, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    Ok(())
}

async fn consul_is_away_under_callers() -> Ran {
    let mut consul = Consul::start().await?;
    let (first, second) = (stock(&consul).await, stock(&consul).await);
    let callers = Callers::start(&registry(&consul)).await;
    callers.know(&[&first, &second]).await;
    // Consul is frozen and then resumed. Then it is gone, and loses its memory; meanwhile an instance stops.
    consul.signal("STOP").await;
    callers.go_on(2_000).await;
    consul.signal("CONT").await;
    consul.kill().await;
    callers.go_on(2_000).await;
    second.stop().await;
    callers.go_on(2_000).await;
    consul.run().await;
    // Later changes are seen.
    let third = stock(&consul).await;
    let (grpc, http) = (third.address("grpc").unwrap().to_owned(), third.address("http").unwrap().to_owned());
    let back = Instant::now();
    let seen = timeout(PATIENCE, async {
        loop {
            let nodes =
                callers.app.runtime().inspect().services.into_iter().flat_map(|service| service.nodes);
            let known: Vec<_> = nodes.map(|node| node.address.to_string()).collect();
            if known.contains(&grpc) && known.contains(&http) {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    seen.await.expect("a new instance is seen");
    assert!(back.elapsed() <= Duration::from_secs(2), "{:?}", back.elapsed());
    first.stop().await;
    callers.go_on(200).await;
    let (calls, failed) = callers.end().await;
    println!("consul: {calls} calls while it was away, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    Ok(())
}

async fn consul_is_frozen_beyond_the_ttl_under_callers() -> Ran {
    let consul = Consul::start().await?;
    let ttl = Duration::from_secs(2);
    let registry = json!({ "kind": "consul", "address": consul.address, "check": { "ttl": "2s" } });
    let mut all = Vec::new();
    for _ in 0..2 {
        all.push(callers::stock(&registry).await);
    }
    let callers = Callers::start(&registry).await;
    callers.know(&[&all[0], &all[1]]).await;
    for _ in 0..2 {
        consul.signal("STOP").await;
        let frozen = Instant::now();
        while frozen.elapsed() < 2 * ttl {
            callers.go_on(500).await;
        }
        consul.signal("CONT").await;
        // The checks are critical at first; what that does to callers is seen now.
        while frozen.elapsed() < 3 * ttl {
            callers.go_on(500).await;
        }
        callers.know(&[&all[0], &all[1]]).await;
    }
    all.push(callers::stock(&registry).await);
    callers.know(&[&all[0], &all[1], &all[2]]).await;
    let (calls, failed) = callers.end().await;
    println!("consul: {calls} calls while it was frozen beyond the TTL, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    Ok(())
}

async fn an_agent_asks_the_health_of_grpc() -> Ran {
    let consul = Consul::start().await?;
    let check = json!({ "grpc": { "interval": "1s" } });
    let registry = json!({ "kind": "consul", "address": consul.address, "check": check });
    let stock = callers::stock(&registry).await;
    let asked = timeout(PATIENCE, async {
        loop {
            // The agent sends the servers a new output, with the same status, only after minutes.
            let checks = consul.ok("GET", "/v1/agent/checks", Value::Null).await;
            let check = checks.as_object().unwrap().values().next().unwrap();
            assert_eq!(check["Status"], "passing", "{check}");
            if check["Output"].as_str().unwrap().contains("success") {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    asked.await.expect("the agent asks");
    stock.stop().await;
    assert_eq!(consul.ok("GET", "/v1/health/checks/stock", Value::Null).await, json!([]));
    Ok(())
}

async fn settings_come_from_a_key() -> Ran {
    let consul = Consul::start().await?;
    let good = |seconds: u32| format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}");
    let revision = consul.put("orders/chassis.yaml", &good(3)).await;
    consul.put("orders/over.yaml", "inbound: { timeout: 7s }").await;
    let center = |key: &str| json!({ "kind": "consul", "address": consul.address, "key": key });
    let settings = json!({
        "registry": { "kind": "memory" },
        "outbound": { "defaults": { "timeout": "9s" } },
        "config": { "centers": [center("orders/chassis.yaml"), center("orders/over.yaml")] },
    });
    let builder = || Chassis::builder("orders").without_file().environment(Environment::default());
    let app = builder().settings(settings).build().await.unwrap();
    let timeout_of = || {
        let policies = app.runtime().policies().get();
        policies.outbound(&"stock".into(), "x").timeout()
    };
    assert_eq!(timeout_of(), Some(Duration::from_secs(3)), "a center stands over the program");

    // An invalid text is refused with its key and revision, and the version in force stays.
    let mut events = app.runtime().events().subscribe();
    let mut news = async || loop {
        let event = timeout(PATIENCE, events.recv()).await.expect("an event").unwrap();
        if matches!(
            &*event,
            Event::ConfigApplied { .. } | Event::ConfigRefused { .. } | Event::ConfigUnreadable { .. }
        ) {
            return event;
        }
    };
    for bad in [
        "outbound: { defaults: { timeout: soon } }",
        "outbound: { defaults: { timeout: 0s } }",
        "outbund: {}",
        "outbound: [",
        "\u{0}",
        "config: { centers: [] }",
        "a: &a [*a]",
    ] {
        let at = consul.put("orders/chassis.yaml", bad).await;
        let event = news().await;
        let Event::ConfigRefused { problems, .. } = &*event else { panic!("{bad}: {event}") };
        assert!(problems[0].contains(&format!("consul:orders/chassis.yaml@{at}")), "{bad}: {problems:?}");
        assert_eq!(timeout_of(), Some(Duration::from_secs(3)));
    }
    consul.delete("orders/chassis.yaml").await;
    let event = news().await;
    assert!(matches!(&*event, Event::ConfigUnreadable { .. }), "{event}");
    assert_eq!(timeout_of(), Some(Duration::from_secs(3)));
    assert!(consul.put("orders/chassis.yaml", &good(4)).await > revision);
    let event = news().await;
    assert!(matches!(&*event, Event::ConfigApplied { .. }), "{event}");
    assert_eq!(timeout_of(), Some(Duration::from_secs(4)));
    // The later center overrides the earlier one.
    consul.put("orders/over.yaml", &good(5)).await;
    news().await;
    assert_eq!(timeout_of(), Some(Duration::from_secs(5)));
    Ok(())
}

async fn a_center_that_is_away_is_waited_for() -> Ran {
    let mut consul = Consul::start().await?;
    consul.put("c.yaml", "outbound: { defaults: { timeout: 3s } }").await;
    consul.kill().await;
    let start = |required: bool| {
        let center =
            json!({ "kind": "consul", "address": consul.address, "key": "c.yaml", "required": required });
        let settings = json!({ "registry": { "kind": "memory" }, "config": { "centers": [center] } });
        let builder = Chassis::builder("orders").without_file().environment(Environment::default());
        builder.settings(settings).build()
    };
    let begun = Instant::now();
    let (required, optional) = tokio::join!(start(true), start(false));
    let took = begun.elapsed();
    let Err(StartError::Settings(error)) = required.map(drop) else { panic!("a start without its settings") };
    assert!(error.contains("config.centers[0]") && error.contains("within 10s"), "{error}");
    assert!(error.contains(&consul.address), "{error}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    // A service whose center is not required starts, reports the missing center, and reads its settings later.
    let app = optional.unwrap();
    let mut events = app.runtime().events().subscribe();
    let past = app.runtime().events().past();
    assert!(past.iter().any(|(_, event)| matches!(&**event, Event::ConfigUnreadable { .. })), "{past:?}");
    consul.run().await; // without its memory
    consul.put("c.yaml", "outbound: { defaults: { timeout: 3s } }").await;
    let back = Instant::now();
    let applied = timeout(PATIENCE, async {
        while !events.recv().await.is_ok_and(|event| matches!(&*event, Event::ConfigApplied { .. })) {}
    });
    applied.await.expect("the settings arrive");
    println!("consul: settings are there {:?} after it is back", back.elapsed());
    Ok(())
}

async fn settings_of_the_page_are_valid() {
    let page = include_str!("../../docs/consul.md");
    let blocks: Vec<_> =
        page.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let (content, origin) = (block.to_owned(), "page".to_owned());
        let tree =
            parse(&Text { content, format: Format::Yaml, origin, revision: None }, Layer::File).unwrap();
        let (document, problems) = Document::read(&tree);
        assert!(document.is_some() && problems.is_empty(), "{block}: {problems:?}");
    }
}
