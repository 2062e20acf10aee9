//! The settings of a running service: origins, history, rollback, dry runs, listeners.
use std::sync::{Arc, Mutex};

use chassis::{
    ConfigHandle, Event, Section,
    config::{Format, Text},
    document::Environment,
    units::{PositiveSpan, Ratio, Switch},
};
use serde::Deserialize;

use crate::mesh::Mesh;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    discount: u8,
    token: String,
}

/// Lets all ready tasks run: listeners are called by tasks of their own.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[track_caller]
fn check(config: &ConfigHandle, path: &str, expected: Option<&str>) {
    assert_eq!(config.origin(path).map(|origin| origin.to_string()).as_deref(), expected, "{path}");
}

#[tokio::test(start_paused = true)]
async fn every_setting_has_an_origin() {
    let mesh = Mesh::new();
    let settings = "outbound:\n  defaults: { retry: { attempts: 3 } }\n  services:\n    stock: { timeout: 1s }\n    \
                    price: { retry: off, operations: { 'a.B/C': { timeout: 2s } } }\nshop: { discount: 1 }\n";
    let variables = [("CHASSIS_OUTBOUND__DEFAULTS__BREAKER", "off")];
    let caller = mesh
        .server("tests", "tests")
        .config(settings)
        .with(move |builder| {
            let builder =
                builder.environment(Environment::of(variables)).section(Section::<Shop>::new("shop"));
            let builder = builder.settings(serde_json::json!({ "service": { "zone": "a" } }));
            builder.set("shop.token", "hunter2")
        })
        .caller()
        .await;
    let config = caller.app.config();
    let check = |path: &str, expected| check(&config, path, expected);
    check("outbound.services.stock.timeout", Some("pushed:4:23"));
    check("outbound.services.stock.retry.attempts", Some("pushed:2:34"));
    check("outbound.services.price.retry.attempts", Some("pushed:5:21"));
    check(r#"outbound.services.price.operations."a.B/C".timeout"#, Some("pushed:5:60"));
    check("outbound.services.price.operations.a.B/C.retry.attempts", Some("pushed:5:21"));
    check("outbound.services.new.breaker.open", Some("$CHASSIS_OUTBOUND__DEFAULTS__BREAKER"));
    check("outbound.defaults.timeout", Some("default"));
    check("inbound.operations.x.timeout", Some("default"));
    check("shop.token", Some("--set"));
    check("service.zone", Some("builder"));
    check("registry", Some("default"));
    check("outbound.defaults.timeuot", None);
    check("shop.dicount", None);
    check("nonesuch", None);
    let secret = config.settings().into_iter().find(|setting| setting.path == "shop.token").unwrap();
    assert_eq!(secret.value, "***");
}

/// No listing, history or event has the text of a secret, whatever its key is called.
#[tokio::test(start_paused = true)]
async fn what_a_reference_stands_for_is_not_shown() {
    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Database {
        login: chassis::units::Secret,
    }
    struct Prefixed;
    impl chassis::document::Decrypt for Prefixed {
        fn decrypt(&self, text: &str) -> Result<String, chassis::BoxError> {
            Ok(format!("hunter{text}"))
        }
    }
    let mesh = Mesh::new();
    let with = |builder: chassis::ChassisBuilder| {
        builder
            .environment(Environment::of([("LOGIN", "hunter1")]))
            .decrypt("prefixed", Prefixed)
            .section(Section::<Database>::new("database"))
    };
    let first = "database: { login: \"${env:LOGIN}\" }";
    let caller = mesh.server("tests", "tests").config(first).with(with).caller().await;
    let (config, database) = (caller.app.config(), caller.app.settings::<Database>("database").unwrap());
    assert_eq!(database.get().login.expose(), "hunter1");
    caller.push("database: { login: \"${prefixed:2}\" }").await.applied();
    assert_eq!(database.get().login.expose(), "hunter2");
    let why = caller.push("database: { login: \"${env:NONE}\" }").await.refused().join("");
    assert!(why.contains("the environment has no variable `NONE`"), "{why}");
    let events: Vec<_> =
        caller.runtime().events().past().iter().map(|(_, event)| event.to_string()).collect();
    let shown = format!("{:?} {:?} {events:?} {:?}", config.settings(), config.history(), database.get());
    assert!(shown.contains("${prefixed:2}") && shown.contains("${env:LOGIN}"), "{shown}");
    assert!(!shown.contains("hunter"), "{shown}");
}

#[tokio::test(start_paused = true)]
async fn a_version_can_be_rolled_back_to() {
    let mesh = Mesh::new();
    let timeout = |seconds: u32| format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}");
    let caller = mesh.caller(&timeout(1)).await;
    let config = caller.app.config();
    let in_force = || {
        let policies = caller.runtime().policies().get();
        policies.outbound(&"stock".into(), "a.B/C").timeout().unwrap_or_default().as_secs()
    };
    caller.push(&timeout(2)).await.applied();
    caller.push("outbound: { defaults: { timeout: 0s } }").await.refused();
    assert_eq!(in_force(), 2);
    let first = config.history()[0].version().unwrap();
    let number = config.rollback(first).await.unwrap();
    assert_eq!((in_force(), config.version()), (1, number));
    let mut events = caller.runtime().events().subscribe();
    caller.source().set(timeout(3));
    while !matches!(&*events.recv().await.unwrap(), Event::ConfigHeld { pinned, .. } if *pinned == first) {}
    assert_eq!(in_force(), 1);
    assert_eq!(config.release().await, Ok(Some(first)));
    while !matches!(&*events.recv().await.unwrap(), Event::ConfigApplied { .. }) {}
    assert_eq!(in_force(), 3);
    assert!(config.rollback(99).await.unwrap_err().to_string().contains("no version 99; it has 1, 2, 3, 4"));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_says_what_would_change_and_what_waits() {
    let mesh = Mesh::new();
    let caller = mesh.caller("outbound: { defaults: { timeout: 1s } }").await;
    let config = caller.app.config();
    let dry_run = async |content: &str| {
        let (content, origin) = (content.to_owned(), "pushed".to_owned());
        config.dry_run(Text { content, format: Format::Yaml, origin, revision: None }).await.unwrap()
    };
    let version = config.version();
    let sound = dry_run("outbound: { defaults: { timeout: 2s } }\nservice: { zone: a }").await;
    let shown: Vec<_> = sound.changes.iter().map(ToString::to_string).collect();
    let zone = "service.zone unset -> a (pushed:2:18)";
    assert_eq!(shown, [zone, "outbound.defaults.timeout 1s -> 2s (pushed:1:34)"]);
    let waiting: Vec<_> = sound.restart.iter().map(ToString::to_string).collect();
    assert_eq!((waiting, sound.is_accepted()), (vec![zone.to_owned()], true));
    let refused = dry_run("outbound: { defaults: { balance: nonesuch, timeuot: 1s } }").await;
    assert!(!refused.is_accepted() && refused.problems[0].to_string().contains("did you mean `timeout`?"));
    assert_eq!((config.version(), config.history().len()), (version, 1));
}

/// Listeners see the values of each version in its order, those of chassis and of a section alike.
#[tokio::test(start_paused = true)]
async fn listeners_see_old_and_new_values_in_order() {
    let mesh = Mesh::new();
    let with = |builder: chassis::ChassisBuilder| builder.section(Section::<Shop>::new("shop"));
    let caller = mesh.server("tests", "tests").config("shop: { discount: 1 }").with(with).caller().await;
    let config = caller.app.config();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listen = |pattern: &str, name: &'static str| {
        let seen = seen.clone();
        config.on_change(pattern, move |change| {
            let word = |value: &Option<_>| {
                value
                    .as_ref()
                    .map_or("unset".to_owned(), |value: &chassis::document::tree::Value| value.to_string())
            };
            let (old, new) = (word(&change.old), word(&change.new));
            seen.lock().unwrap().push(format!("{name} {} {old} -> {new}", change.path));
        });
    };
    config.on_change("shop", |_| panic!("out of cheese"));
    listen("shop", "shop");
    listen("outbound.services.*.timeout", "timeout");
    let pushed =
        caller.push("shop: { discount: 2 }\noutbound: { services: { stock: { timeout: 1s } } }").await;
    pushed.applied();
    caller.push("shop: { discount: 101, nonesuch: 1 }").await.refused();
    caller.push("outbound: { services: { stock: { timeout: 2s, retry: off } } }").await.applied();
    settle().await;
    let seen = seen.lock().unwrap().clone();
    let expected = [
        "shop shop.discount 1 -> 2",
        "timeout outbound.services.stock.timeout unset -> 1s",
        "timeout outbound.services.stock.timeout 1s -> 2s",
        "shop shop.discount 2 -> unset",
    ];
    assert_eq!(seen, expected);
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Prices {
    rounding: Rounding,
    wait: Option<PositiveSpan>,
    share: Option<Ratio>,
    tiers: Vec<u32>,
    token: chassis::units::Secret,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Rounding {
    #[default]
    HalfUp,
    Down,
}

/// Values are read as documents are: with units, words and switches; of chassis and of sections, alone and by the table.
#[tokio::test(start_paused = true)]
async fn a_listener_reads_typed_values() {
    let mesh = Mesh::new();
    let with = |builder: chassis::ChassisBuilder| {
        builder.section(Section::<Prices>::new("prices")).environment(Environment::of([("TOKEN", "hunter2")]))
    };
    let first = "prices: { wait: 250ms, tiers: [1], token: a }\noutbound: { defaults: { timeout: off } }";
    let caller = mesh.server("tests", "tests").config(first).with(with).caller().await;
    let config = caller.app.config();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = |line: String, seen: &Arc<Mutex<Vec<String>>>| seen.lock().unwrap().push(line);
    let all = seen.clone();
    config.on_change("outbound.defaults.timeout", move |change| {
        type Timeout = Switch<PositiveSpan>;
        record(format!("{:?} {:?}", change.read_old::<Timeout>(), change.read_new::<Timeout>()), &all);
        let why = change.read_new::<u32>().unwrap_err();
        record(why.to_string(), &all);
    });
    let all = seen.clone();
    config.on_change("prices", move |change| {
        let line = match change.path.as_str() {
            "prices.rounding" => {
                format!("{:?} {:?}", change.read_old::<Rounding>(), change.read_new::<Rounding>())
            }
            "prices.wait" => {
                format!("{:?} {:?}", change.read_old::<PositiveSpan>(), change.read_new::<PositiveSpan>())
            }
            "prices.share" => format!("{:?} {:?}", change.read_old::<Ratio>(), change.read_new::<Ratio>()),
            "prices.token" => change.read_new::<u32>().unwrap_err().to_string(),
            path => {
                let tiers = (
                    change.read_old_at::<Vec<u32>>("prices.tiers"),
                    change.read_new_at::<Vec<u32>>("prices.tiers"),
                );
                let whole = change.read_new_at::<Prices>("prices").unwrap().unwrap();
                format!(
                    "{path} {tiers:?} {:?} {:?}",
                    whole.rounding,
                    change.read_new_at::<u8>("prices.nonesuch")
                )
            }
        };
        record(line, &all);
    });
    let second = "prices: { rounding: down, share: 2.5%, tiers: [1, 20], token: \"${env:TOKEN}\" }\n\
                  outbound: { defaults: { timeout: 1.5s } }";
    caller.push(second).await.applied();
    settle().await;
    let expected = [
        "Ok(None) Ok(Some(Down))",
        "Ok(None) Ok(Some(Ratio(2.5)))",
        "prices.tiers[1] (Ok(Some([1])), Ok(Some([1, 20]))) Down Ok(None)",
        "C005 pushed:1:63 prices.token: this is no value for it (it is not shown)",
        "Ok(Some(Off)) Ok(Some(On(PositiveSpan(1.5s))))",
        "C005 pushed:2:34 outbound.defaults.timeout: a whole number belongs here, not `1.5s`",
        "Ok(Some(PositiveSpan(250ms))) Ok(None)",
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// A function that blocks keeps no version from being put in force, no call from being made, and no other function from
/// being called; its own changes wait in their order.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_listener_that_blocks_delays_no_version_and_no_other_listener() {
    let mesh = Mesh::new();
    let caller = mesh.caller("outbound: { defaults: { timeout: 1s } }").await;
    let config = caller.app.config();
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let (blocked, seen) = (Mutex::new(blocked), Arc::new(Mutex::new(Vec::new())));
    let record = |name: &'static str| {
        let seen = seen.clone();
        move |change: &chassis::SettingChange| {
            let timeout = change.read_new::<PositiveSpan>().unwrap().unwrap();
            seen.lock().unwrap().push(format!("{name} {timeout}"));
        }
    };
    let slow = record("slow");
    config.on_change("outbound", move |change| {
        blocked.lock().unwrap().recv().ok();
        slow(change);
    });
    config.on_change("outbound", |_| panic!("out of cheese"));
    config.on_change("outbound", record("fast"));
    let mut events = caller.runtime().events().subscribe();
    for seconds in 2..=3 {
        caller.push(&format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}")).await.applied();
    }
    assert_eq!(config.version(), 3);
    loop {
        let event = events.recv().await.unwrap();
        if let Event::PluginBlocked { plugin, call, .. } = &*event {
            assert_eq!((&**plugin, &**call), ("on_change of `outbound`", "outbound.defaults.timeout"));
            break;
        }
    }
    let until = async |expected: &[&str]| {
        while *seen.lock().unwrap() != expected {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    until(&["fast 2s", "fast 3s"]).await;
    drop(unblock);
    until(&["fast 2s", "fast 3s", "slow 2s", "slow 3s"]).await;
}
