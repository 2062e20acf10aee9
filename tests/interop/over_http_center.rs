//! Services that read their settings from nginx, as files.
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use chassis::{Chassis, Event, StartError, document::Environment};
use serde_json::{Value, json};
use tokio::{
    sync::broadcast,
    time::{Instant, timeout},
};

use crate::{
    peer::{self, PATIENCE},
    trials::Ran,
};

trials! {
    settings_come_from_a_file_of_nginx
    two_changes_within_a_second_are_both_seen
    a_start_without_nginx_goes_on_with_the_last_good_text
}

fn good(seconds: u32) -> String {
    format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}")
}

/// Replaces a file as a whole, readable for a worker of nginx that another user runs.
fn put(folder: &Path, name: &str, content: &str) {
    let new = folder.join("new");
    fs::write(&new, content).unwrap();
    fs::rename(new, folder.join(name)).unwrap();
}

async fn start(centers: Value, last_good: Option<&Path>) -> Result<Chassis, StartError> {
    let last_good = last_good.map_or(json!("off"), |path| json!(path));
    let settings = json!({
        "registry": { "kind": "memory" },
        "outbound": { "defaults": { "timeout": "9s" } },
        "config": { "centers": centers, "last_good": last_good },
    });
    let builder = Chassis::builder("orders").without_file().environment(Environment::default());
    builder.settings(settings).build().await
}

fn timeout_of(app: &Chassis) -> Option<u64> {
    let policies = app.runtime().policies().get();
    policies.outbound(&"stock".into(), "x").timeout().map(|timeout| timeout.as_secs())
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

async fn settings_come_from_a_file_of_nginx() -> Ran {
    let (_nginx, address, folder) = peer::nginx_with_files().await?;
    put(&folder, "chassis.yaml", &good(3));
    put(&folder, "over.toml", "[inbound]\ntimeout = \"7s\"\n");
    let center = |name: &str| json!({ "kind": "http", "url": format!("http://{address}/files/{name}"), "watch": { "poll": "50ms" } });
    let app = start(json!([center("chassis.yaml"), center("over.toml")]), None).await.unwrap();
    assert_eq!(timeout_of(&app), Some(3), "a center stands over the program");
    let origin = app.config().origin("outbound.defaults.timeout").map(|origin| origin.to_string());
    assert!(origin.as_ref().is_some_and(|it| it.contains("/files/chassis.yaml@")), "{origin:?}");

    let mut events = app.runtime().events().subscribe();
    for bad in [
        "outbound: { defaults: { timeout: soon } }",
        "outbound: { defaults: { timeout: 0s } }",
        "outbund: {}",
        "outbound: [",
        "config: { centers: [] }",
        "a: &a [*a]",
    ] {
        put(&folder, "chassis.yaml", bad);
        let event = news(&mut events).await;
        let Event::ConfigRefused { problems, .. } = &*event else { panic!("{bad}: {event}") };
        let place = format!("http://{address}/files/chassis.yaml@");
        assert!(problems[0].contains(&place), "{bad}: {problems:?}");
        assert_eq!(timeout_of(&app), Some(3));
    }
    // What is no document is no version either.
    for (bad, why) in [("", "is empty"), ("<html><body>Sign in</body></html>", "a page")] {
        put(&folder, "chassis.yaml", bad);
        let event = news(&mut events).await;
        let Event::ConfigUnreadable { error, .. } = &*event else { panic!("{bad}: {event}") };
        assert!(error.contains(why), "{error}");
        assert_eq!(timeout_of(&app), Some(3));
    }
    fs::remove_file(folder.join("chassis.yaml")).unwrap();
    let event = news(&mut events).await;
    let Event::ConfigUnreadable { error, .. } = &*event else { panic!("{event}") };
    assert!(error.contains("there is no document (404)"), "{error}");
    assert_eq!(timeout_of(&app), Some(3), "a deletion leaves the version in force");
    put(&folder, "chassis.yaml", &good(4));
    let event = news(&mut events).await;
    assert!(matches!(&*event, Event::ConfigApplied { .. }), "{event}");
    assert_eq!(timeout_of(&app), Some(4));
    // The later center overrides the earlier one.
    put(&folder, "over.toml", "[outbound.defaults]\ntimeout = \"5s\"\n");
    news(&mut events).await;
    assert_eq!(timeout_of(&app), Some(5));

    let moved =
        json!([{ "kind": "http", "url": format!("http://{address}/files/moved/x"), "required": true }]);
    let Err(StartError::Settings(error)) = start(moved, None).await.map(drop) else {
        panic!("redirects are not followed")
    };
    assert!(error.contains("it redirects (302) to "), "{error}");
    Ok(())
}

/// nginx makes the etag of the time in seconds and the length: it is the same for both texts.
async fn two_changes_within_a_second_are_both_seen() -> Ran {
    let (_nginx, address, folder) = peer::nginx_with_files().await?;
    put(&folder, "chassis.yaml", &good(1));
    let url = format!("http://{address}/files/chassis.yaml");
    let app =
        start(json!([{ "kind": "http", "url": url, "watch": { "poll": "20ms" } }]), None).await.unwrap();
    for n in 2..9 {
        let before = Instant::now();
        put(&folder, "chassis.yaml", &good(n));
        let seen = timeout(PATIENCE, async {
            while timeout_of(&app) != Some(n.into()) {
                tokio::task::yield_now().await;
            }
        });
        seen.await.unwrap_or_else(|_| panic!("{n} is lost"));
        println!("nginx: a change is in force {:?} after it", before.elapsed());
    }
    Ok(())
}

async fn a_start_without_nginx_goes_on_with_the_last_good_text() -> Ran {
    let (nginx, address, folder) = peer::nginx_with_files().await?;
    put(&folder, "chassis.yaml", &good(3));
    let state = tempfile::tempdir().unwrap();
    let centers = json!([{ "kind": "http", "url": format!("http://{address}/files/chassis.yaml") }]);
    let app = start(centers.clone(), Some(state.path())).await.unwrap();
    let kept: PathBuf = timeout(PATIENCE, async {
        loop {
            if let Some(file) = fs::read_dir(state.path()).unwrap().next() {
                return file.unwrap().path();
            }
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the text is kept");
    assert!(kept.exists());
    drop((app, nginx));
    let begun = Instant::now();
    let app = start(centers.clone(), Some(state.path())).await.unwrap();
    assert_eq!(timeout_of(&app), Some(3));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let past = app.runtime().events().past();
    let said = past.iter().any(|(_, event)| event.to_string().contains("last good text on disk"));
    assert!(said, "{past:?}");
    let begun = Instant::now();
    let Err(StartError::Settings(error)) = start(centers, None).await.map(drop) else {
        panic!("a start without its settings")
    };
    assert!(error.contains(&address), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
    Ok(())
}
