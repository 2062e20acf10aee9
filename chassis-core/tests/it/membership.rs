//! Membership: the registry's answers, and the nodes that result from them.
use std::error::Error as _;

use chassis_core::{
    Code, Connection, Event, Grace, Reason,
    clock::Instant,
    registry::{Instance, Membership, Status},
    testing::{Answer, CallBuilder, ScriptedRegistry, Upstream},
};
use serde_json::json;

use crate::support::*;

fn bench() -> Bench {
    Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder)
}

#[tokio::test(start_paused = true)]
async fn calls_wait_for_the_registrys_first_word() {
    let bench = bench();
    let call = bench.spawn(get());
    tokio::time::sleep(S).await;
    assert!(!call.is_finished());
    bench.registry.put("stock", ["a"]);
    call.await.unwrap().unwrap();
    let bench = self::bench();
    bench.stock(json!({ "timeout": "1s" }));
    let refused = bench.get().await; // and no longer than its deadline
    check(&refused, Code::DeadlineExceeded, Reason::NoEndpoint);
}

#[tokio::test(start_paused = true)]
async fn instances_come_and_go() {
    let bench = Bench::with(["a", "b"], |_| Answer::ok(""));
    for _ in 0..20 {
        bench.get().await.unwrap();
    }
    bench.registry.put("stock", ["b", "c"]);
    bench.settle().await;
    let before = bench.upstream.calls("memory:a");
    for _ in 0..20 {
        bench.get().await.unwrap();
    }
    assert_eq!((bench.upstream.calls("memory:a"), bench.upstream.closes("memory:a")), (before, 1));
    assert!(bench.upstream.calls("memory:c") > 0);
    let joined = |id: &str| {
        bench.count_events(|e| matches!(e, Event::InstanceJoined { instance, .. } if instance == id))
    };
    assert_eq!((joined("a"), joined("b"), joined("c")), (1, 1, 1), "who stays does not join again");
    assert_eq!(bench.count_events(|e| matches!(e, Event::InstanceLeft { .. })), 1);
    assert_eq!(bench.metric("chassis_endpoints", &[("service", "stock"), ("protocol", "test")]), 2.0);
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_of_a_node_outlives_refreshes() {
    let bench = Bench::new(|_| Answer::status(500));
    for _ in 0..10 {
        bench.post().await.unwrap();
    }
    let instance = |weight, zone: &str| {
        let instance = ScriptedRegistry::instance("stock", "a").with_weight(weight);
        instance.with_zone(zone)
    };
    // Also with weight 0, where it takes no calls, and back.
    let other = ScriptedRegistry::instance("stock", "b");
    for (weight, zone) in [(1, "eu-1"), (0, "eu-1"), (0, "eu-2"), (5, "eu-2")] {
        bench.registry.set("stock", Membership::known([instance(weight, zone), other.clone()]));
        bench.settle().await;
        let node = bench.node("a");
        assert_eq!((node.calls, node.weight, &*node.labels["zone"]), (10, weight, zone));
        assert!(node.failure_share > 0.1);
    }
    assert_eq!(bench.upstream.closes("memory:a"), 0);
    bench.registry.put("stock", ["b"]);
    bench.settle().await;
    assert_eq!(bench.upstream.closes("memory:a"), 1);
    // Another address is another node.
    let moved = Instance::new("stock", "b").with_address("test", "memory:elsewhere");
    bench.registry.set("stock", Membership::known([moved]));
    bench.settle().await;
    assert_eq!(
        (bench.upstream.closes("memory:b"), bench.get().await.unwrap().address.unwrap()),
        (1, "memory:elsewhere".into())
    );
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_is_held_for_a_while() {
    for nothing in [
        Membership::Known(Vec::new()),
        Membership::Unknown,
        Membership::known([Instance::new("stock", "http-only").with_address("http", "10.0.0.1:80")]),
        Membership::known([Instance::new("stock", "broken").with_address("test", "10.0.0.1:0")]),
    ] {
        let bench = Bench::new(|_| Answer::ok(""));
        bench.get().await.unwrap();
        bench.registry.set("stock", nothing.clone());
        let is_of_another_protocol = format!("{nothing:?}").contains("http-only");
        tokio::time::sleep(30 * S).await;
        bench.registry.set("stock", nothing); // reported again: the grace period continues
        tokio::time::sleep(29 * S).await;
        bench.get().await.unwrap();
        assert_eq!(bench.count_events(|e| matches!(e, Event::EmptySetHeld { kept: 1, .. })), 1);
        tokio::time::sleep(2 * S).await;
        let refused = bench.get().await;
        check(&refused, Code::Unavailable, Reason::NoEndpoint);
        let message = match is_of_another_protocol {
            true => "stock (test): its instances do not offer test, only http",
            false => "stock (test): it has no instances in `scripted`",
        };
        assert_eq!(refused.unwrap_err().message(), message);
        bench.registry.put("stock", ["a"]);
        bench.settle().await;
        bench.get().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_empty_set_that_was_a_slip_is_forgotten() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.get().await.unwrap();
    bench.registry.put("stock", []);
    tokio::time::sleep(30 * S).await;
    bench.registry.put("stock", ["a"]);
    tokio::time::sleep(600 * S).await;
    bench.get().await.unwrap();
    bench.registry.put("stock", []);
    tokio::time::sleep(59 * S).await;
    bench.get().await.unwrap();
    assert_eq!(bench.upstream.closes("memory:a"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_believed_at_once() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.get().await.unwrap();
    bench.registry.set("stock", Membership::Deleted);
    bench.settle().await;
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
    assert_eq!(bench.upstream.closes("memory:a"), 1);
}

#[tokio::test(start_paused = true)]
async fn without_instances_from_the_start_calls_are_refused_at_once() {
    let bench = bench();
    bench.runtime.set_grace(Grace::NONE);
    bench.registry.put("stock", []);
    let began = Instant::now();
    check(&bench.get().await, Code::Unavailable, Reason::NoEndpoint);
    assert!(began.elapsed().is_zero());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_service_is_reported_with_the_nearest_name() {
    let bench = bench();
    bench.registry.put("stocks", ["x"]);
    bench.registry.put("billing", ["y"]);
    bench.registry.set("stock", Membership::Unknown);
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::UnknownService);
    let (error, message) = (refused.unwrap_err(), "no service `stock` is registered with `scripted`");
    let known = "the registry `scripted` lists 2 services: billing, stocks; did you mean `stocks`?";
    // The message may leave the process, so it has no name of another service.
    assert_eq!((error.message(), error.source().unwrap().to_string().as_str()), (message, known));
    let event = format!("{message} ({known})");
    assert_eq!(bench.count_events(|reported| reported.to_string() == event), 1);
    bench.registry.set("stocks", Membership::Deleted);
    tokio::time::sleep(S).await;
    bench.registry.set("stock", Membership::Unknown);
    bench.settle().await;
    let error = bench.get().await.unwrap_err();
    assert_eq!(error.message(), message);
    assert_eq!(error.source().unwrap().to_string(), "the registry `scripted` lists 1 service: billing");
    bench.registry.put("stock", ["a"]); // the service may appear later
    bench.settle().await;
    bench.get().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_error_is_no_news() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.get().await.unwrap();
    bench.registry.fail("stock", "no route to host");
    tokio::time::sleep(3600 * S).await;
    bench.get().await.unwrap();
    let events = bench.count_events(
        |e| matches!(e, Event::RegistryUnreachable { error, .. } if error == "no route to host"),
    );
    assert!((50..=61).contains(&events), "reported once a minute: {events}");
    let asked = bench.metric("chassis_registry_errors_total", &[]);
    assert!((100.0..1_000.0).contains(&asked), "asked again with a backoff: {asked}");
    bench.registry.put("stock", ["b"]);
    tokio::time::sleep(15 * S).await;
    assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:b");
}

#[tokio::test(start_paused = true)]
async fn instances_that_make_no_sense_are_left_out() {
    let bench = bench();
    let at = |id: &str, address: &str| Instance::new("stock", id).with_address("test", address);
    bench.registry.set(
        "stock",
        Membership::known([
            at("a", "memory:a"),
            at("a", "memory:twice"),
            at("", "memory:nameless"),
            at("zero", "10.0.0.1:0"),
            Instance::new("stock", "nowhere"),
        ]),
    );
    for _ in 0..20 {
        assert_eq!(bench.get().await.unwrap().address.unwrap(), "memory:a");
    }
    assert_eq!(bench.runtime.inspect().services[0].nodes.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn services_do_not_share_anything() {
    let bench = Bench::new(|_| Answer::ok(""));
    let upstream = Upstream::new(|_| Answer::status(500));
    let other = chassis_core::pipeline::client(&bench.runtime, "billing", &std::sync::Arc::new(upstream));
    bench.registry.put("billing", ["a"]);
    bench.apply(json!({ "outbound": { "defaults": { "breaker": { "consecutive": 1 }, "retry": "off" } } }));
    for _ in 0..3 {
        let _ = chassis_core::testing::run(&other, CallBuilder::get("billing", "Get").build()).await;
    }
    bench.get().await.unwrap();
    assert_eq!(bench.runtime.inspect().services.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn following_ends_with_the_runtime() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.get().await.unwrap();
    assert_eq!(bench.runtime.tasks().running(), 1);
    let tasks = bench.runtime.tasks().clone();
    assert!(bench.runtime.shutdown(S).await);
    assert_eq!(tasks.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn instances_of_other_environments_are_not_called() {
    let bench = Bench::build(Upstream::new(|_| Answer::ok("")), |builder| builder.environment("production"));
    let at =
        |id: &str, environment: &str| ScriptedRegistry::instance("stock", id).with_environment(environment);
    bench.registry.set("stock", Membership::known([at("a", "staging"), at("b", "test")]));
    let refused = bench.get().await;
    check(&refused, Code::Unavailable, Reason::NoEndpoint);
    let why = "its instances are in other environments than this process: staging, test";
    assert!(refused.as_ref().unwrap_err().message().contains(why), "{refused:?}");
    bench.registry.set("stock", Membership::known([at("a", "staging"), at("b", "production"), at("c", "")]));
    bench.settle().await;
    for _ in 0..40 {
        bench.get().await.unwrap();
    }
    let calls = ["memory:a", "memory:b", "memory:c"].map(|address| bench.upstream.calls(address));
    assert!(calls[0] == 0 && calls[1] > 0 && calls[2] > 0, "{calls:?}");
    assert_eq!(bench.metric("chassis_instances_refused_total", &[]), 0.0, "an environment is no fault");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_out_of_service_gets_no_new_calls() {
    let bench = Bench::with(["a", "b"], |_| Answer::ok(""));
    for _ in 0..20 {
        bench.get().await.unwrap();
    }
    let [a, b] = ["a", "b"].map(|id| ScriptedRegistry::instance("stock", id));
    for status in [Status::OutOfService, Status::Starting, Status::Down, "unheard-of".to_owned().into()] {
        bench.registry.set("stock", Membership::known([a.clone().with_status(status), b.clone()]));
        bench.settle().await;
        let before = bench.upstream.calls("memory:a");
        for _ in 0..20 {
            bench.get().await.unwrap();
        }
        assert_eq!(bench.upstream.calls("memory:a"), before);
    }
    // There is no other node: it is better than none.
    let all = [&a, &b].map(|one| one.clone().with_status(Status::OutOfService));
    bench.registry.set("stock", Membership::known(all));
    bench.settle().await;
    bench.get().await.unwrap();
    assert_eq!(bench.upstream.closes("memory:a"), 0, "its connection stays: calls under way go on");
}

/// Held, alarmed, probed, aged out; deletes at once. Share and time are settings, which apply also to what is held.
#[tokio::test(start_paused = true)]
async fn a_mass_removal_is_held_for_the_time_that_is_set() {
    let nodes = ["a", "b", "c", "d", "e"];
    let hold = |share: u32, time: &str| {
        Some(serde_json::from_value(json!({ "share": format!("{share}%"), "time": time })).unwrap())
    };
    let bench = Bench::with(nodes, |_| Answer::ok(""));
    let held = || bench.metric("chassis_endpoints_held", &[]);
    let count = || bench.runtime.inspect().services[0].nodes.len();
    let alarms = || bench.count_events(|event| matches!(event, Event::RemovalsHeld { .. }));
    bench.get().await.unwrap();

    // The default: 50 %, 60 s.
    bench.registry.put("stock", ["a", "b"]);
    bench.settle().await;
    assert_eq!((count(), held(), alarms()), (5, 3.0, 1));
    // One that cannot be reached is given up at once.
    bench.upstream.connect("memory:c", Connection::TransientFailure);
    bench.settle().await;
    assert_eq!((count(), held()), (4, 2.0));
    tokio::time::sleep(59 * S).await;
    assert_eq!(count(), 4);
    tokio::time::sleep(2 * S).await;
    assert_eq!((count(), held()), (2, 0.0));

    // Another time and share, also while some are held; those that are idle are probed.
    bench.runtime.set_hold(hold(20, "10s"));
    bench.registry.put("stock", nodes);
    bench.settle().await;
    assert_eq!(count(), 5);
    for id in ["d", "e"] {
        bench.upstream.connect(&format!("memory:{id}"), Connection::Idle);
    }
    let wakes = bench.upstream.wakes("memory:d");
    bench.registry.put("stock", ["a", "b", "c"]);
    bench.settle().await;
    assert_eq!((count(), held(), alarms()), (5, 2.0, 2));
    assert!(bench.upstream.wakes("memory:d") > wakes);
    tokio::time::sleep(9 * S).await;
    assert_eq!(count(), 5);
    bench.runtime.set_hold(hold(20, "30s"));
    tokio::time::sleep(20 * S).await;
    assert_eq!(count(), 5, "held longer");
    bench.runtime.set_hold(hold(20, "5s"));
    bench.settle().await;
    assert_eq!((count(), held()), (3, 0.0), "its time is over");
    // An empty set is held as long; a deletion is believed at once; off holds nothing.
    bench.registry.put("stock", []);
    tokio::time::sleep(4 * S).await;
    assert_eq!(count(), 3);
    bench.runtime.set_hold(None);
    bench.settle().await;
    assert_eq!(count(), 0, "off applies to what is held");
    bench.registry.put("stock", nodes);
    bench.settle().await;
    bench.registry.put("stock", ["a"]);
    bench.settle().await;
    assert_eq!((count(), alarms()), (1, 2));
    bench.runtime.set_hold(hold(0, "1h"));
    bench.registry.put("stock", nodes);
    bench.settle().await;
    bench.registry.put("stock", ["a", "b", "c", "d"]);
    bench.settle().await;
    assert_eq!((count(), held()), (5, 1.0), "one of five");
    bench.registry.set("stock", Membership::Deleted);
    bench.settle().await;
    assert_eq!((count(), held()), (0, 0.0));
}

/// Kept instances are probed some at a time, and the next ones once these have failed.
#[tokio::test(start_paused = true)]
async fn all_held_instances_are_probed_while_probes_fail() {
    let ids: Vec<String> = (0..100).map(|number| format!("n{number:02}")).collect();
    let bench = Bench::with(["n00"], |_| Answer::ok(""));
    let all = ids.iter().map(|id| ScriptedRegistry::instance("stock", id));
    bench.registry.set("stock", Membership::known(all));
    bench.get().await.unwrap();
    let address = |id: &String| format!("memory:{id}");
    for id in &ids {
        bench.upstream.connect(&address(id), Connection::Idle);
    }
    let wakes = |id: &String| bench.upstream.wakes(&address(id));
    let before: Vec<_> = ids.iter().map(wakes).collect();
    let mut failed = vec![false; ids.len()];
    bench.registry.put("stock", ["n00"]);
    for left in [99, 67, 35, 3] {
        bench.settle().await;
        assert_eq!(bench.metric("chassis_endpoints_held", &[]), f64::from(left));
        let mut probed = 0;
        for at in 1..ids.len() {
            if !failed[at] && wakes(&ids[at]) > before[at] {
                failed[at] = true;
                probed += 1;
                bench.upstream.connect(&address(&ids[at]), Connection::TransientFailure);
            }
        }
        assert_eq!(probed, left.min(32), "of {left}");
    }
    bench.settle().await;
    assert_eq!(bench.runtime.inspect().services[0].nodes.len(), 1);
}

/// A change is applied, and the next one waits for its turn: meanwhile the setting changes.
#[tokio::test(start_paused = true)]
async fn a_hold_time_that_changes_between_two_changes_applies() {
    let nodes = ["a", "b", "c", "d", "e"];
    let bench = Bench::with(nodes, |_| Answer::ok(""));
    bench.get().await.unwrap();
    for round in 0..40 {
        match round % 2 {
            0 => bench.registry.put("stock", ["a", "b", "c", "d"]),
            _ => bench.registry.put("stock", nodes),
        }
        bench.settle().await;
    }
    bench.registry.put("stock", []);
    while bench.count_events(|event| matches!(event, Event::EmptySetHeld { .. })) == 0 {
        tokio::time::sleep(MS).await;
    }
    bench.runtime.set_hold(None);
    tokio::time::sleep(S).await;
    assert_eq!(bench.runtime.inspect().services[0].nodes.len(), 0);
}
