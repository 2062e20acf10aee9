//! Services that find each other through a ServiceComb service center, and read their settings from kie: stand-ins, or the
//! real ones that `CHASSIS_PEER_SERVICECENTER` and `CHASSIS_PEER_KIE` name.
use std::{path::Path, sync::Arc, time::Duration};

use chassis::{Chassis, Event, Running, StartError, document::Environment};
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};

use crate::{
    callers::{self, Callers},
    center::{Center, needs_stand_in},
    kie_server::{self, Kie},
    peer::PATIENCE,
    trials::Ran,
};

trials! {
    three_instances_are_restarted_under_callers
    service_center_is_away_under_callers
    settings_are_swapped_under_callers
    settings_come_from_kie
    no_bad_settings_are_put_in_force
    a_start_without_kie_goes_on_with_the_last_good_text
}

fn registry(center: &Center) -> Value {
    json!({ "kind": "servicecomb", "addresses": [center.address], "app": center.app })
}

async fn stock(center: &Center) -> Running {
    callers::stock(&registry(center)).await
}

async fn three_instances_are_restarted_under_callers() {
    let center = Center::start().await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(stock(&center).await);
    }
    let callers = Callers::start(&registry(&center)).await;
    callers.know(&all.iter().collect::<Vec<_>>()).await;
    for _ in 0..2 {
        for _ in 0..3 {
            callers.go_on(200).await;
            all.remove(0).stop().await;
            all.push(stock(&center).await);
            callers.know(&all.iter().collect::<Vec<_>>()).await;
        }
    }
    let (calls, failed) = callers.end().await;
    println!(
        "servicecomb: {calls} calls while three instances were restarted twice, {} failed",
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
}

async fn service_center_is_away_under_callers() -> Ran {
    needs_stand_in()?;
    let mut center = Center::start().await;
    let (first, second) = (stock(&center).await, stock(&center).await);
    let callers = Callers::start(&registry(&center)).await;
    callers.know(&[&first, &second]).await;
    // It is frozen and then resumed. Then it is gone, and loses its memory; meanwhile an instance stops.
    let frozen = center.freeze();
    callers.go_on(2_000).await;
    drop(frozen);
    center.kill();
    callers.go_on(2_000).await;
    second.stop().await;
    callers.go_on(2_000).await;
    center.forget();
    center.run().await;
    let third = stock(&center).await;
    let back = callers.know(&[&first, &third]).await;
    assert!(back <= Duration::from_secs(2), "{back:?}");
    first.stop().await;
    callers.go_on(200).await;
    let (calls, failed) = callers.end().await;
    println!("servicecomb: {calls} calls while service center was away, {} failed", failed.len());
    assert_eq!(failed, Vec::<String>::new());
    Ok(())
}

/// A program that reads its settings from these centers.
async fn start(
    registry: Value,
    centers: Value,
    last_good: Option<&Path>,
) -> Result<chassis::Chassis, StartError> {
    let last_good = last_good.map_or(json!("off"), |path| json!(path));
    let settings = json!({
        "registry": registry,
        "service": { "advertise": "127.0.0.1" },
        "outbound": { "defaults": { "timeout": "9s" } },
        "config": { "centers": centers, "last_good": last_good },
    });
    let builder = Chassis::builder("caller").without_file().environment(Environment::default());
    builder.settings(settings).build().await
}

fn timeout_of(app: &Chassis) -> Option<u64> {
    let policies = app.runtime().policies().get();
    policies.outbound(&"stock".into(), "x").timeout().map(|timeout| timeout.as_secs())
}

/// Waits until this time-out is in force.
async fn until(app: &Chassis, seconds: u64) {
    let seen = timeout(PATIENCE, async {
        while timeout_of(app) != Some(seconds) {
            tokio::task::yield_now().await;
        }
    });
    seen.await.unwrap_or_else(|_| panic!("{seconds}s is not in force, but {:?}", timeout_of(app)));
}

/// The settings of all services of a shop, and over them those of one service.
fn centers(kie: &Kie, shared: &Kie) -> Value {
    let center = |kie: &Kie| json!({ "kind": "kie", "addresses": [kie.address], "labels": kie.labels });
    json!([center(shared), center(kie)])
}

async fn settings_are_swapped_under_callers() {
    let (mut center, mut kie) = (Center::start().await, Kie::start().await);
    let (first, second) = (stock(&center).await, stock(&center).await);
    kie.put("chassis.outbound.services.stock.timeout", "text", "10s").await;
    let centers = json!([{ "kind": "kie", "addresses": [kie.address], "labels": kie.labels }]);
    let app = start(registry(&center), centers, None).await.unwrap();
    let callers = Callers::of(app);
    callers.know(&[&first, &second]).await;
    let mut longest = Duration::ZERO;
    for n in 11..61 {
        let begun = Instant::now();
        kie.put("chassis.outbound.services.stock.timeout", "text", &format!("{n}s")).await;
        until(&callers.app, n).await;
        longest = longest.max(begun.elapsed());
        callers.go_on(20).await;
    }
    // A bad version in the midst changes nothing.
    let mut events = callers.app.runtime().events().subscribe();
    kie.put("chassis.outbound.services.stock.timeout", "text", "soon").await;
    let event = news(&mut events).await;
    assert!(matches!(&*event, Event::ConfigRefused { .. }), "{event}");
    callers.go_on(200).await;
    assert_eq!(timeout_of(&callers.app), Some(60));
    let are_stand_ins = needs_stand_in().is_ok() && kie_server::needs_stand_in().is_ok();
    if are_stand_ins {
        // Both are gone at once; calls go on with the version and the instances of before.
        center.kill();
        kie.kill();
        callers.go_on(2_000).await;
        assert_eq!(timeout_of(&callers.app), Some(60));
        center.run().await;
        kie.run().await;
        let back = Instant::now();
        kie.put("chassis.outbound.services.stock.timeout", "text", "61s").await;
        until(&callers.app, 61).await;
        assert!(back.elapsed() <= Duration::from_secs(2), "{:?}", back.elapsed());
    }
    let (calls, failed) = callers.end().await;
    println!(
        "kie: {calls} calls over 50 versions, each in force after {longest:?} at most; {} failed",
        failed.len()
    );
    assert_eq!(failed, Vec::<String>::new());
}

/// The next event of the settings.
async fn news(events: &mut broadcast::Receiver<Arc<Event>>) -> Arc<Event> {
    loop {
        let event = timeout(PATIENCE, events.recv()).await.expect("an event").unwrap();
        if matches!(
            &*event,
            Event::ConfigApplied { .. } | Event::ConfigRefused { .. } | Event::ConfigUnreadable { .. }
        ) {
            return event;
        }
    }
}

async fn settings_come_from_kie() {
    let kie = Kie::start().await;
    let shared = kie.with_labels([("app".to_owned(), kie.labels["service"].clone())].into());
    let place = |key: &str| format!("kie:app=shop,service={}/{key}", kie.labels["service"]);
    shared.put("chassis.outbound.defaults.timeout", "text", "3s").await;
    shared.put("chassis.inbound", "yaml", "timeout: 7s\n").await;
    kie.put("chassis.outbound.defaults.retry", "json", r#"{ "attempts": 3 }"#).await;
    let app = start(json!({ "kind": "memory" }), centers(&kie, &shared), None).await.unwrap();
    assert_eq!(timeout_of(&app), Some(3), "a center stands over the program");
    let origin = app.config().origin("outbound.defaults.timeout").map(|origin| origin.to_string());
    assert!(origin.as_ref().is_some_and(|it| it.contains("/chassis.*@")), "{origin:?}");

    // An invalid text is refused with its entry, and the version in force stays.
    let mut events = app.runtime().events().subscribe();
    for (value_type, bad) in [
        ("text", "soon"),
        ("text", "0s"),
        ("text", "a: b # c"),
        ("text", "[1, 2]"),
        ("yaml", "a: 1"),
        ("yaml", "["),
        ("yaml", "&a [*a]"),
        ("json", "[]"),
    ] {
        kie.put("chassis.outbound.defaults.timeout", value_type, bad).await;
        let event = news(&mut events).await;
        let Event::ConfigRefused { problems, .. } = &*event else { panic!("{bad}: {event}") };
        assert!(problems[0].contains(&place("chassis.*@")), "{bad}: {problems:?}");
        assert_eq!(timeout_of(&app), Some(3));
        kie.delete("chassis.outbound.defaults.timeout").await;
        let event = news(&mut events).await;
        assert!(matches!(&*event, Event::ConfigApplied { .. }), "{bad}: {event}");
    }
    for (key, value_type, bad) in [
        ("chassis.outbund", "text", "1"),
        ("chassis.config.centers", "text", "[]"),
        ("chassis.outbound.defaults", "yaml", "{}"),
        ("chassis.x", "json", "{"),
        ("chassis.x", "yaml", "a: 1\n---\nb: 2"),
        ("chassis.x", "xml", "<a/>"),
    ] {
        kie.put(key, value_type, bad).await;
        let event = news(&mut events).await;
        let is_refused = matches!(&*event, Event::ConfigRefused { .. } | Event::ConfigUnreadable { .. });
        assert!(is_refused, "{key} {bad}: {event}");
        assert_eq!(timeout_of(&app), Some(3));
        kie.delete(key).await;
        news(&mut events).await;
    }
    // The later center overrides the earlier one.
    kie.put("chassis.outbound.defaults.timeout", "text", "4s").await;
    until(&app, 4).await;
    shared.put("chassis.outbound.defaults.timeout", "text", "5s").await;
    news(&mut events).await;
    kie.delete("chassis.outbound.defaults.timeout").await;
    until(&app, 5).await;
    // The last entry goes: no reason to give up the version in force.
    shared.delete("chassis.inbound").await;
    shared.put_as("chassis.outbound.defaults.timeout", "text", "5s", "disabled").await;
    let unreadable = timeout(PATIENCE, async {
        loop {
            if let Event::ConfigUnreadable { error, .. } = &*news(&mut events).await {
                return error.clone();
            }
        }
    });
    let error = unreadable.await.unwrap();
    assert!(error.contains("has no enabled key that begins with kie:app="), "{error}");
    assert_eq!(timeout_of(&app), Some(5));
}

/// Texts of every class of mistakes, twice: none is accepted, and each refusal explains itself.
#[cfg(feature = "testing")]
async fn no_bad_settings_are_put_in_force() -> Ran {
    use chassis::{registries::MemoryRegistry, testing::BadSettings};

    let (kie, key) = (Kie::start().await, "orders.yaml");
    kie.put(key, "yaml", "outbound: { defaults: { timeout: 3s } }").await;
    let centers = json!([{ "kind": "kie", "addresses": [kie.address], "labels": kie.labels, "key": key }]);
    // A table `registry` without a kind is one of the mistakes: the program names none.
    let builder = Chassis::builder("caller").without_file().environment(Environment::default());
    let settings = json!({ "config": { "centers": centers, "last_good": "off" } });
    let app = builder.registry(MemoryRegistry::new()).settings(settings).build().await.unwrap();
    let in_force = (app.config().version(), app.config().hash());
    let mut events = app.runtime().events().subscribe();
    let mut wrong = Vec::new();
    for bad in BadSettings::seeded(7).take(2 * BadSettings::CLASSES) {
        let revision = kie.put(key, "yaml", &bad.yaml).await;
        let problems = loop {
            match &*news(&mut events).await {
                Event::ConfigRefused { problems, .. } => break problems.clone(),
                Event::ConfigUnreadable { .. } => {} // a blank text is put after a deletion
                event => panic!("{}: {event}\n{}", bad.class, bad.yaml),
            }
        };
        let origin = format!("kie:app=shop,service={}/{key}@{revision}", kie.labels["service"]);
        wrong.extend(bad.check(&origin, &problems).err());
        assert_eq!((app.config().version(), app.config().hash()), in_force, "{}", bad.class);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    kie.put(key, "yaml", "outbound: { defaults: { timeout: 4s } }").await;
    until(&app, 4).await;
    Ok(())
}

#[cfg(not(feature = "testing"))]
async fn no_bad_settings_are_put_in_force() -> Ran {
    Err(crate::trials::NotRun("the cargo feature `testing` has the texts".to_owned()))
}

async fn a_start_without_kie_goes_on_with_the_last_good_text() -> Ran {
    let mut kie = Kie::stand_in().await?;
    kie.put("orders.yaml", "yaml", "outbound: { defaults: { timeout: 3s } }").await;
    let state = tempfile::tempdir().unwrap();
    let centers =
        json!([{ "kind": "kie", "addresses": [kie.address], "labels": kie.labels, "key": "orders.yaml" }]);
    let memory = || json!({ "kind": "memory" });
    let app = start(memory(), centers.clone(), Some(state.path())).await.unwrap();
    assert_eq!(timeout_of(&app), Some(3));
    let is_kept = timeout(PATIENCE, async {
        while std::fs::read_dir(state.path()).unwrap().next().is_none() {
            tokio::task::yield_now().await;
        }
    });
    is_kept.await.expect("the text is kept");
    drop(app);
    kie.kill();
    let begun = Instant::now();
    let app = start(memory(), centers.clone(), Some(state.path())).await.unwrap();
    assert_eq!(timeout_of(&app), Some(3));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let past = app.runtime().events().past();
    assert!(past.iter().any(|(_, event)| event.to_string().contains("last good text on disk")), "{past:?}");
    // It is followed once it is back.
    kie.run().await;
    kie.put("orders.yaml", "yaml", "outbound: { defaults: { timeout: 4s } }").await;
    until(&app, 4).await;
    kie.kill();
    let begun = Instant::now();
    let Err(StartError::Settings(error)) = start(memory(), centers, None).await.map(drop) else {
        panic!("a start without its settings")
    };
    assert!(error.contains(&kie.address), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    Ok(())
}
