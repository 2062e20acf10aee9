//! The staged roll-out of settings over a fleet of instances, on the paused clock.
use std::{sync::Arc, time::Duration};

use chassis::{Event, Runtime, document::Outcome, registry::Registry};
use tokio::time::{Instant, sleep, timeout};

use crate::mesh::{Act, Ask, Caller, Load, Mesh, Server, Wire, both};

/// Ten instances of `stock` and their load.
struct Fleet {
    mesh: Mesh,
    members: Vec<Server>,
    caller: Arc<Caller>,
}

/// Settings with this roll-out.
fn settings(rollout: &str, inbound: &str) -> String {
    format!("config: {{ rollout: {{ {rollout} }} }}\ninbound: {{ {inbound} }}")
}

/// Calls of 20 ms fail with it.
const HARMFUL: &str = "timeout: 1ms";

impl Fleet {
    async fn start(settings: &str, outbound: &str) -> Self {
        let mesh = Mesh::new();
        let mut members = Vec::new();
        for n in 0..10 {
            let member = mesh.server("stock", &format!("stock-{n}")).config(settings).start().await;
            member.does(Act::Delay(Duration::from_millis(20)));
            members.push(member);
        }
        let caller = mesh.caller(outbound).await;
        Fleet { mesh, members, caller }
    }

    /// Pushes these settings to all, through the center of each.
    fn push(&self, settings: &str) {
        self.members.iter().for_each(|member| member.source().set(settings));
    }

    /// The members that have these settings of incoming calls in force.
    fn with(&self, inbound: &str) -> Vec<&Server> {
        let has = |member: &&Server| {
            member.running.config().settings().iter().any(|setting| {
                format!("{}: {}", setting.path.trim_start_matches("inbound."), setting.value) == inbound
            })
        };
        self.members.iter().filter(has).collect()
    }

    /// The members that had them at any time.
    fn had(&self, inbound: &str) -> usize {
        let has = |member: &&Server| {
            member.running.config().history().iter().any(|record| {
                matches!(record.outcome, Outcome::Applied { .. })
                    && record.to_string().contains(&inbound.replace(": ", " unset -> "))
            })
        };
        self.members.iter().filter(has).count()
    }

    fn states(&self, state: &str) -> usize {
        let has = |member: &&Server| {
            member.runtime().inspect().rollout.is_some_and(|rollout| rollout.state == state)
        };
        self.members.iter().filter(has).count()
    }
}

/// Waits for an event that is chosen so.
async fn event<T>(runtime: &Runtime, choose: impl Fn(&Event) -> Option<T>) -> T {
    let mut events = runtime.events().subscribe();
    if let Some(found) = runtime.events().past().iter().find_map(|(_, event)| choose(event)) {
        return found;
    }
    loop {
        if let Some(found) = choose(&events.recv().await.unwrap()) {
            return found;
        }
    }
}

fn rolled_back(event: &Event) -> Option<String> {
    match event {
        Event::ConfigRolledBack { why, .. } => Some(why.clone()),
        _ => None,
    }
}

async fn until_some(what: &str, bound: Duration, condition: impl Fn() -> bool) -> Duration {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() <= bound, "not within {bound:?}: {what}");
        sleep((bound / 100).min(Duration::from_millis(100))).await;
    }
    begun.elapsed()
}

/// Callers that take turns: others avoid an instance that fails, so that the guard would wait for its calls.
async fn rolled_back_within(wire: Wire, bound: Duration) -> Fleet {
    let good = settings("share: 10%", "concurrency: 1000");
    let harmful = settings("share: 10%", &format!("concurrency: 1000, {HARMFUL}"));
    let fleet = Fleet::start(&good, "outbound: { defaults: { balance: round_robin } }").await;
    let mut load = Load::new(&fleet.caller, wire, 8, || Ask::to("stock"));
    load.more(1_000).await;
    fleet.push(&harmful);
    until_some("it is applied", Duration::from_secs(1), || fleet.with(HARMFUL).len() == 1).await;
    let first = fleet.with(HARMFUL)[0];
    let view = first.runtime().inspect().rollout.unwrap();
    assert_eq!((view.state, view.is_first, view.first, view.members), ("baking", true, 1, 10));
    let begun = Instant::now();
    let why = timeout(bound, event(first.runtime(), rolled_back)).await.expect("it is rolled back in time");
    let took = begun.elapsed();
    assert!(why.contains("incoming calls failed, 0.0% before"), "{why}");
    assert_eq!(fleet.with(HARMFUL).len(), 0);
    // The others learn of it from the registry, long before their time.
    until_some("all refuse it", Duration::from_secs(1), || fleet.states("refused") == 10).await;
    let outcomes = load.stop().await;
    let failed = outcomes.iter().filter(|outcome| !outcome.is_ok()).count();
    println!("{wire:?}: rolled back after {took:?}; {failed} of {} calls failed", outcomes.len());
    fleet
}

both! {
    async fn a_harmful_version_reaches_the_first_ones_only_and_is_rolled_back(wire: Wire) {
        let fleet = rolled_back_within(wire, Duration::from_secs(5)).await;
        sleep(Duration::from_secs(130)).await;
        fleet.push(&settings("share: 10%", "concurrency: 1000"));
        sleep(Duration::from_secs(1)).await;
        let again = settings("share: 10%", &format!("{HARMFUL}, concurrency: 1000"));
        fleet.push(&again);
        sleep(Duration::from_secs(130)).await;
        assert_eq!((fleet.had(HARMFUL), fleet.with(HARMFUL).len()), (1, 0));
        for member in &fleet.members {
            let record = member.running.config().history().last().unwrap().to_string();
            assert!(record.starts_with("not applied, because "), "{record}");
        }
        // Others are applied; without calls that takes the longest bake time.
        fleet.push(&settings("share: 100%", "concurrency: 7"));
        until_some("others are applied", Duration::from_secs(700), || fleet.with("concurrency: 7").len() == 10).await;
    }
}

both! {
    /// It takes the first one out of service, as settings would that crash it or make it unready.
    async fn a_version_that_silences_the_first_one_stays_there(wire: Wire) {
        let fleet = Fleet::start(&settings("share: 10%", "concurrency: 1000"), "").await;
        let mut load = Load::new(&fleet.caller, wire, 4, || Ask::to("stock"));
        load.more(200).await;
        let next = "concurrency: 999";
        fleet.push(&settings("share: 10%", next));
        until_some("it is applied", Duration::from_secs(1), || fleet.with(next).len() == 1).await;
        sleep(Duration::from_secs(1)).await;
        fleet.with(next)[0].running.presence().take_out_of_service().await.unwrap();
        load.more(200).await;
        load.stop().await;
        sleep(Duration::from_secs(590)).await;
        assert_eq!((fleet.with(next).len(), fleet.states("waiting")), (1, 9));
        until_some("the others refuse it", Duration::from_secs(20), || fleet.states("refused") == 9).await;
        sleep(Duration::from_secs(700)).await;
        assert_eq!(fleet.with(next).len(), 1);
        // Others are applied as usual.
        let next = "concurrency: 998";
        fleet.push(&settings("share: 10%", next));
        until_some("others are applied", Duration::from_secs(700), || fleet.with(next).len() >= 9).await;
    }
}

both! {
    async fn a_good_version_reaches_all_after_the_bake_time(wire: Wire) {
        let rollout = "share: 11%, bake_time: 10s, min_calls: 20";
        let fleet = Fleet::start(&settings(rollout, "concurrency: 1000"), "").await;
        let mut load = Load::new(&fleet.caller, wire, 4, || Ask::to("stock"));
        load.more(500).await;
        let next = "concurrency: 999";
        fleet.push(&settings(rollout, next));
        until_some("the first have it", Duration::from_secs(1), || fleet.with(next).len() == 2).await;
        sleep(Duration::from_secs(9)).await;
        assert_eq!((fleet.with(next).len(), fleet.states("waiting")), (2, 8));
        until_some("all have it", Duration::from_secs(2), || fleet.with(next).len() == 10).await;
        until_some("all are proven", Duration::from_secs(11), || fleet.states("proven") == 10).await;
        let outcomes = load.stop().await;
        crate::mesh::all_well(&outcomes);
        // Few calls prove nothing: the others wait for the first ones, up to a bound.
        let next = "concurrency: 998";
        fleet.push(&settings(&format!("{rollout}, max_bake_time: 60s"), next));
        sleep(Duration::from_secs(500)).await;
        assert_eq!((fleet.with(next).len(), fleet.states("baking"), fleet.states("waiting")), (2, 2, 8));
        until_some("all have it", Duration::from_secs(101), || fleet.with(next).len() == 10).await;
        assert!(fleet.mesh.registry.services().await.contains(&"stock".to_owned()));
    }
}

both! {
    /// A stream that began before passes all of it.
    async fn harm_is_remembered_by_the_next_start(wire: Wire) {
        let (dir, mesh) = (tempfile::tempdir().unwrap(), Mesh::new());
        let start = async |text: &str| {
            let last_good = serde_json::json!({ "config": { "last_good": dir.path() } });
            let plan = mesh.server("stock", "stock-0").config(text);
            plan.with(|builder| builder.settings(last_good)).start().await
        };
        let (good, fault) = (settings("min_calls: 200", "concurrency: 1000"), "faults: [ { name: bad, abort: { code: INTERNAL } } ]");
        let harmful = format!("{good}\n{fault}");
        let has_fault = |stock: &Server| stock.running.config().settings().iter().any(|setting| setting.path.starts_with("faults"));
        let stock = start(&good).await;
        let caller = mesh.caller("outbound: { defaults: { retry: off, breaker: off } }").await;
        sleep(Duration::from_secs(15)).await; // then they are proven on disk
        let (messages, sent) = tokio::sync::mpsc::channel(1);
        messages.send("before".to_owned()).await.unwrap();
        let mut chat = caller.chat(wire, Ask::to("stock"), sent).await.unwrap_or_else(|_| panic!("no stream"));
        assert_eq!(chat.next().await.unwrap().unwrap(), "before");

        let mut load = Load::new(&caller, wire, 2, || Ask::to("stock"));
        load.more(500).await;
        stock.source().set(harmful.as_str());
        until_some("it is applied", Duration::from_secs(1), || has_fault(&stock)).await;
        messages.send("meanwhile".to_owned()).await.unwrap();
        assert_eq!(chat.next().await.unwrap().unwrap(), "meanwhile");
        let why = timeout(Duration::from_secs(5), event(stock.runtime(), rolled_back)).await.expect("within 5 s");
        assert!(why.contains("incoming calls failed, 0.0% before") && !has_fault(&stock), "{why}");
        messages.send("after".to_owned()).await.unwrap();
        assert_eq!(chat.next().await.unwrap().unwrap(), "after");
        drop((messages, chat));
        load.stop().await;
        stock.stop().await;

        let stock = start(&harmful).await;
        let avoided = |event: &Event| match event {
            Event::ConfigAvoided { hash, why, .. } => Some((hash.clone(), why.clone())),
            _ => None,
        };
        let (hash, again) = event(stock.runtime(), avoided).await;
        assert_eq!((again, has_fault(&stock)), (why, false));
        crate::mesh::all_well(&caller.calls(wire, 3, || Ask::to("stock")).await);
        // By hand it is tried again, with the guard.
        let config = stock.running.config();
        assert!(config.allow(&hash).await && !config.allow("0123456789abcdef").await);
        until_some("it is applied", Duration::from_secs(1), || has_fault(&stock)).await;
        let load = Load::new(&caller, wire, 2, || Ask::to("stock"));
        timeout(Duration::from_secs(5), event(stock.runtime(), rolled_back)).await.expect("within 5 s");
        load.stop().await;
        // A rollback by hand is not watched.
        let fault = config.history().iter().find_map(|record| record.version().filter(|version| *version > 1));
        config.rollback(fault.unwrap()).await.unwrap();
        let mut load = Load::new(&caller, wire, 2, || Ask::to("stock"));
        load.more(1_000).await;
        assert!(has_fault(&stock));
        load.stop().await;
        config.release().await.unwrap();
        stock.stop().await;
    }
}
