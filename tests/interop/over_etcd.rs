//! Services that find each other through a real etcd, and read their settings from it.
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
    etcd_server::Etcd,
    peer::PATIENCE,
    trials::Ran,
};

trials! {
    the_example_of_a_center_passes_its_checks
    three_instances_are_restarted_under_callers
    etcd_is_away_under_callers
    settings_come_from_a_key
    a_center_that_is_away_is_waited_for
    settings_of_the_page_are_valid
}

fn registry(etcd: &Etcd) -> Value {
    json!({ "kind": "etcd", "endpoints": [etcd.address] })
}

async fn stock(etcd: &Etcd) -> Running {
    callers::stock(&registry(etcd)).await
}

async fn three_instances_are_restarted_under_callers() -> Ran {
    let etcd = Etcd::start().await?;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(stock(&etcd).await);
    }
    let callers = Callers::start(&registry(&etcd)).await;
    callers.know(&all.iter().collect::<Vec<_>>()).await;
    for _ in 0..2 {
        for _ in 0..3 {
            callers.go_on(200).await;
            all.remove(0).stop().await;
            all.push(stock(&etcd).await);
            callers.know(&all.iter().collect::<Vec<_>>()).await;
        }
    }
    let (calls, failed) = callers.end().await;
    println!("etcd: {calls} calls while three instances were restarted twice, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    Ok(())
}

async fn etcd_is_away_under_callers() -> Ran {
    let mut etcd = Etcd::start().await?;
    let (first, second) = (stock(&etcd).await, stock(&etcd).await);
    let callers = Callers::start(&registry(&etcd)).await;
    callers.know(&[&first, &second]).await;
    // etcd is frozen and then resumed; meanwhile an instance stops, and its entry stays until its lease
    // expires.
    etcd.signal("STOP").await;
    callers.go_on(2_000).await;
    etcd.signal("CONT").await;
    etcd.kill().await;
    callers.go_on(2_000).await;
    second.stop().await;
    callers.go_on(2_000).await;
    etcd.run().await;
    // Later changes are seen.
    let third = stock(&etcd).await;
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
    println!("etcd: {calls} calls while it was away, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    Ok(())
}

async fn settings_come_from_a_key() -> Ran {
    let etcd = Etcd::start().await?;
    let good = |seconds: u32| format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}");
    let revision = etcd.put("/orders/chassis.yaml", &good(3)).await;
    etcd.put("/orders/over.yaml", "inbound: { timeout: 7s }").await;
    let center = |key: &str| json!({ "kind": "etcd", "endpoints": [etcd.address], "key": key });
    let settings = json!({
        "registry": { "kind": "memory" },
        "outbound": { "defaults": { "timeout": "9s" } },
        "config": { "last_good": "off", "centers": [center("/orders/chassis.yaml"), center("/orders/over.yaml")] },
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
        let at = etcd.put("/orders/chassis.yaml", bad).await;
        let event = news().await;
        let Event::ConfigRefused { problems, .. } = &*event else { panic!("{bad}: {event}") };
        assert!(problems[0].contains(&format!("etcd:/orders/chassis.yaml@{at}")), "{bad}: {problems:?}");
        assert_eq!(timeout_of(), Some(Duration::from_secs(3)));
    }
    etcd.delete("/orders/chassis.yaml").await;
    let event = news().await;
    assert!(matches!(&*event, Event::ConfigUnreadable { .. }), "{event}");
    assert_eq!(timeout_of(), Some(Duration::from_secs(3)));
    assert!(etcd.put("/orders/chassis.yaml", &good(4)).await > revision);
    let event = news().await;
    assert!(matches!(&*event, Event::ConfigApplied { .. }), "{event}");
    assert_eq!(timeout_of(), Some(Duration::from_secs(4)));
    // The later center overrides the earlier one.
    etcd.put("/orders/over.yaml", &good(5)).await;
    news().await;
    assert_eq!(timeout_of(), Some(Duration::from_secs(5)));
    Ok(())
}

async fn a_center_that_is_away_is_waited_for() -> Ran {
    let mut etcd = Etcd::start().await?;
    etcd.put("/c.yaml", "outbound: { defaults: { timeout: 3s } }").await;
    etcd.kill().await;
    let start = |required: bool| {
        let center =
            json!({ "kind": "etcd", "endpoints": [etcd.address], "key": "/c.yaml", "required": required });
        let settings = json!({ "registry": { "kind": "memory" }, "config": { "last_good": "off", "centers": [center] } });
        let builder = Chassis::builder("orders").without_file().environment(Environment::default());
        builder.settings(settings).build()
    };
    let begun = Instant::now();
    let (required, optional) = tokio::join!(start(true), start(false));
    let took = begun.elapsed();
    let Err(StartError::Settings(error)) = required.map(drop) else { panic!("a start without its settings") };
    assert!(error.contains("config.centers[0]") && error.contains("within 10s"), "{error}");
    assert!(error.contains(&etcd.address), "{error}");
    assert!(took < Duration::from_secs(12), "{took:?}");
    // A service whose center is not required starts, reports the missing center, and reads its settings later.
    let app = optional.unwrap();
    let mut events = app.runtime().events().subscribe();
    let past = app.runtime().events().past();
    assert!(past.iter().any(|(_, event)| matches!(&**event, Event::ConfigUnreadable { .. })), "{past:?}");
    etcd.run().await;
    let back = Instant::now();
    let applied = timeout(PATIENCE, async {
        while !events.recv().await.is_ok_and(|event| matches!(&*event, Event::ConfigApplied { .. })) {}
    });
    applied.await.expect("the settings arrive");
    println!("etcd: settings are there {:?} after it is back", back.elapsed());
    Ok(())
}

async fn settings_of_the_page_are_valid() {
    let page = include_str!("../../docs/etcd.md");
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

/// `examples/config_center`, over a real etcd, and over chassis' own server.
async fn the_example_of_a_center_passes_its_checks() -> Ran {
    let etcd = Etcd::start().await?;
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let build =
        ["build", "--quiet", "--all-features", "--example", "config_center", "--manifest-path", manifest];
    let built = tokio::process::Command::new(env!("CARGO")).args(build).status().await.unwrap();
    assert!(built.success());
    let test = std::env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples/config_center");
    for arguments in [&[][..], &["--etcd", &etcd.address]] {
        let printed = crate::process::succeed(tokio::process::Command::new(&program).args(arguments)).await;
        let passed = printed.lines().filter(|line| line.starts_with("  yes  ")).count();
        assert_eq!(passed, 11, "{printed}");
    }
    // A center that is not there is a failure, and not a hang.
    let (printed, output) =
        crate::process::finish(tokio::process::Command::new(&program).args(["--etcd", "127.0.0.1:1"])).await;
    assert!(!output.status.success() && printed.contains("config_center: "), "{printed}");
    Ok(())
}
