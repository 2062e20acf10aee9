//! Instances that join and leave.
use std::{error::Error as _, time::Duration};

use chassis::{Event, Reason, registry::Instance as Entry};

use crate::mesh::{Act, Ask, Kind, Load, Mesh, Pushed, Wire, all_well, both, share};

/// Without retries, calls without a node fail at once.
const NO_RETRY: &str = "outbound: { defaults: { retry: off } }";

both! {
    async fn traffic_follows_who_joins_and_leaves(wire: Wire) {
        let mesh = Mesh::new();
        let slow = Act::Delay(Duration::from_millis(3));
        let first = mesh.start("stock", "stock-1").await;
        first.does(slow.clone());
        let caller = mesh.caller(NO_RETRY).await;
        let mut load = Load::new(&caller, wire, 16, || Ask::to("stock"));
        load.more(500).await;

        let second = mesh.start("stock", "stock-2").await;
        second.does(slow.clone());
        load.more(200).await;
        let before = [first.executed(), second.executed()];
        load.more(1_000).await;
        let [by_first, by_second] =
            [first.executed() - before[0], second.executed() - before[1]].map(|n| n as f64 / 1_000.0);
        assert!((0.4..0.6).contains(&by_first), "{by_first}");
        assert!((0.4..0.6).contains(&by_second), "{by_second}");

        let echo = first.echo.clone();
        first.stop().await;
        let executed = (echo.executed(), echo.running());
        load.more(500).await;
        assert_eq!((echo.executed(), echo.running()), executed, "nothing comes to who has left");
        let outcomes = load.stop().await;
        all_well(&outcomes);
        assert!(share(&outcomes, "stock-2") > 0.4);
    }
}

both! {
    async fn the_last_one_leaves_and_another_comes(wire: Wire) {
        let mesh = Mesh::new();
        let first = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(NO_RETRY).await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1");
        first.stop().await;
        // The last set is kept, and none of its instances runs.
        let outcome = caller.call(wire, Ask::to("stock")).await;
        outcome.refused(Reason::NoEndpoint);
        assert_eq!(outcome.maybe_executed, Some(false));

        let _second = mesh.start("stock", "stock-2").await;
        let outcome = caller.call(wire, Ask::to("stock").timeout(Duration::from_secs(2))).await;
        assert_eq!(outcome.by(), "stock-2");
    }
}

both! {
    async fn an_unknown_service_and_the_nearest_name(wire: Wire) {
        let mesh = Mesh::new();
        let _stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        let outcome = caller.call(wire, Ask::to("stok")).await;
        outcome.refused(Reason::UnknownService);
        assert_eq!(outcome.message, "no service `stok` is registered with `memory`");
        let listed = "the registry `memory` lists 1 service: stock; did you mean `stock`?";
        let is_reported = |event: &Event| matches!(event, Event::UnknownService { known, .. } if known == listed);
        assert!(caller.runtime().events().past().iter().any(|(_, event)| is_reported(event)));
    }
}

both! {
    async fn calls_of_every_kind_wait_for_a_service_that_starts_later(wire: Wire) {
        let mesh = Mesh::new();
        let caller = mesh.caller(NO_RETRY).await;
        let begin = |n: usize| {
            let caller = caller.clone();
            tokio::spawn(async move { Kind::ALL[n % 4].whole(&caller, wire, Ask::to("stock"), 3).await })
        };
        let calls: Vec<_> = (0..200).map(begin).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(calls.iter().all(|call| !call.is_finished()));
        caller.push("outbound: { defaults: { retry: off, timeout: 100ms } }").await.applied();
        let stock = mesh.start("stock", "stock-1").await;
        for call in calls {
            call.await.unwrap().unwrap();
        }
        assert_eq!(stock.executed(), 200);
    }
}

both! {
    async fn the_grace_at_the_start_is_a_setting(wire: Wire) {
        let mesh = Mesh::new();
        for (grace, expected) in [("off", 0), ("0s", 0), ("2s", 2), ("3s", 3)] {
            let caller = mesh.caller(&format!("discovery: {{ grace: {grace} }}")).await;
            let began = tokio::time::Instant::now();
            let calls: Vec<_> = (0..20).map(|_| caller.spawn(wire, Ask::to("stock"))).collect();
            for call in calls {
                call.await.unwrap().refused(Reason::UnknownService);
            }
            assert_eq!(began.elapsed().as_secs(), expected, "{grace}");
            caller.call(wire, Ask::to("stock")).await.refused(Reason::UnknownService);
            assert_eq!(began.elapsed().as_secs(), expected, "{grace}: no call waits after it");
        }
        // Live, also for calls that wait.
        let caller = mesh.caller("discovery: { grace: 1m }").await;
        let began = tokio::time::Instant::now();
        let call = caller.spawn(wire, Ask::to("stock"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        caller.push("discovery: { grace: 0s }").await.applied();
        call.await.unwrap().refused(Reason::UnknownService);
        assert_eq!(began.elapsed().as_secs(), 1);
        for (bad, why) in [("61s", "it goes from 0s to 1m"), ("3", "has no unit"), ("-1s", "is negative")] {
            let refused = caller.push(&format!("discovery: {{ grace: {bad} }}")).await;
            let Pushed::Refused(problems) = refused else { panic!("{bad}: {refused:?}") };
            assert!(problems.concat().contains(why), "{bad}: {problems:?}");
        }
    }
}

both! {
    /// The list of services is for the reader of the error in this process. Whoever calls this process does not get it.
    async fn the_names_of_other_services_stay_in_the_process(wire: Wire) {
        let mesh = Mesh::new();
        mesh.registry.put(Entry::new("payroll", "a").with_address("grpc", "127.0.0.1:1"));
        mesh.registry.put(Entry::new("ledgers", "a").with_address("grpc", "127.0.0.1:1"));
        let off = "discovery: { grace: off }";
        let _front = mesh.server("front", "front-1").config(off).calls(&["ledger"]).start().await;
        let caller = mesh.caller(off).await;
        let outcome = caller.call(wire, Ask::to("front").via(&[(wire, "ledger")])).await;
        assert_eq!(outcome.message, "no service `ledger` is registered with `memory`");
        let is_named = |outcome: &str| outcome.contains("payroll") || outcome.contains("ledgers");
        assert!(!is_named(&format!("{outcome:?}")), "{outcome:?}");

        let outcome = caller.call(wire, Ask::to("ledger")).await;
        assert!(!is_named(&format!("{outcome:?}")), "{outcome:?}: a handler may pass it on");
        let listed = "the registry `memory` lists 3 services: front, ledgers, payroll; did you mean `ledgers`?";
        let is_reported = |event: &Event| matches!(event, Event::UnknownService { known, .. } if known == listed);
        assert!(caller.runtime().events().past().iter().any(|(_, event)| is_reported(event)));
        if wire == Wire::Rest {
            let error = caller.clients("ledger").rest.get("/").send().await.unwrap_err();
            assert_eq!(error.source().unwrap().to_string(), listed);
        }
    }
}

both! {
    async fn weights_are_shares(wire: Wire) {
        let mesh = Mesh::new();
        let _heavy = mesh.server("stock", "stock-1").weight(3).start().await;
        let _light = mesh.server("stock", "stock-2").weight(1).start().await;
        let _none = mesh.server("stock", "stock-3").weight(0).start().await;
        let caller = mesh.caller("").await;
        let outcomes = caller.calls(wire, 1_000, || Ask::to("stock")).await;
        all_well(&outcomes);
        let heavy = share(&outcomes, "stock-1");
        assert!((0.70..0.80).contains(&heavy), "{heavy}");
        assert_eq!(share(&outcomes, "stock-3"), 0.0);
    }
}

both! {
    async fn a_lower_priority_is_called_when_the_first_one_is_gone(wire: Wire) {
        let mesh = Mesh::new();
        let plan = |id, priority: u32| {
            mesh.server("stock", id).config(&format!("service: {{ priority: {priority} }}"))
        };
        let first = plan("stock-1", 0).start().await;
        let second = plan("stock-2", 1).start().await;
        let caller = mesh.caller("").await;
        let mut load = Load::new(&caller, wire, 16, || Ask::to("stock"));
        load.more(500).await;
        assert_eq!(second.executed(), 0);
        // A stream goes on at the node that it began at.
        let mut streamed = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|_| panic!("no stream"));
        first.stop().await;
        streamed.rest().await;
        load.more(500).await;
        let by_second = second.executed();
        assert!(by_second >= 500, "{by_second}");
        let first = plan("stock-1", 0).start().await;
        load.more(100).await;
        let before = (first.executed(), second.executed());
        load.more(500).await;
        assert!(first.executed() >= before.0 + 500, "the first one is back");
        assert_eq!(second.executed(), before.1);
        all_well(&load.stop().await);
    }
}

both! {
    async fn an_address_without_a_listener_is_not_picked(wire: Wire) {
        let mesh = Mesh::new();
        let _there = mesh.start("stock", "stock-1").await;
        let gone = Entry::new("stock", "stock-2").with_label("track", "gone");
        let gone = gone.with_address("grpc", "memory:gone").with_address("http", "memory:gone");
        mesh.registry.put(gone);
        let caller = mesh.caller(NO_RETRY).await;
        let outcomes = caller.calls(wire, 200, || Ask::to("stock")).await;
        all_well(&outcomes);
        assert_eq!(share(&outcomes, "stock-1"), 1.0);
        let outcome = caller.call(wire, Ask::to("stock").pin("track", "gone")).await;
        outcome.refused(Reason::NoEndpoint);
        assert!(outcome.message.contains("memory:gone"), "{}", outcome.message);
    }
}
