//! Permits and other resources of a call are held to the end of its stream.
use std::time::Duration;

use chassis::{Code, Reason};

use crate::mesh::{Act, Ask, Gate, Mesh, Wire, both, until};

const BOUND: &str = "{ concurrency: { limit: 1 } }";

both! {
    /// Limits of the client, of the server and of an endpoint count a stream until it ends in any way.
    async fn a_place_is_taken_until_the_stream_ends(wire: Wire) {
        for (server, client) in [
            (format!("inbound: {BOUND}"), String::new()),
            (String::new(), format!("outbound: {{ defaults: {BOUND} }}")),
            (String::new(), "outbound: { defaults: { concurrency: { limit: 1, scope: endpoint } } }".to_owned()),
        ] {
            let (mesh, gate) = (Mesh::new(), Gate::shut());
            let stock = mesh.server("stock", "stock-1").config(&server).start().await;
            let caller = mesh.caller(&client).await;
            stock.does_next([Act::Wait(gate.clone()), Act::Hang]);
            let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|no| panic!("{no:?}"));
            assert_eq!(parts.next().await.unwrap().unwrap(), "hello 1");
            caller.call(wire, Ask::to("stock")).await.refused(Reason::Overloaded);
            let in_flight = || {
                let services = caller.runtime().inspect().services;
                let service = services.iter().find(|service| service.protocol == wire.protocol());
                service.map(|service| service.nodes[0].in_flight)
            };
            assert_eq!(in_flight(), Some(1), "it weighs on the next pick");
            gate.open();
            assert!(matches!(parts.rest().await, (2, None)));
            until("the handler has seen its end", || stock.running() == 0).await;
            assert_eq!(in_flight(), Some(0));

            // A stream that is dropped early returns its permit too.
            let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|no| panic!("{no:?}"));
            assert_eq!(parts.next().await.unwrap().unwrap(), "hello 1");
            caller.call(wire, Ask::to("stock")).await.refused(Reason::Overloaded);
            drop(parts);
            until("the handler has stopped", || stock.running() == 0).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert!(caller.call(wire, Ask::to("stock")).await.is_ok(), "{server}{client}");

            // And so does a stream of requests, at its end.
            let (send, requests) = tokio::sync::mpsc::channel(1);
            let upload = tokio::spawn({
                let clients = caller.clients("stock");
                async move { clients.upload(wire, Ask::to("stock"), requests).await }
            });
            send.send("a".to_owned()).await.unwrap();
            until("it has begun", || stock.running() == 1).await;
            caller.call(wire, Ask::to("stock")).await.refused(Reason::Overloaded);
            drop(send);
            assert_eq!(upload.await.unwrap().count, 1);
            assert!(caller.call(wire, Ask::to("stock")).await.is_ok());
        }
    }
}

both! {
    /// `timeout` covers the head; `total_timeout` ends the stream, and both sides free it.
    async fn total_timeout_holds_to_the_end(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("outbound: { defaults: { timeout: 100ms } }").await;
        stock.does(Act::Delay(Duration::from_secs(1)));
        let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|no| panic!("{no:?}"));
        assert!(matches!(parts.rest().await, (3, None)), "a slow body is no slow head");

        caller.push("outbound: { defaults: { timeout: 100ms, total_timeout: 300ms } }").await.applied();
        let began = tokio::time::Instant::now();
        let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|no| panic!("{no:?}"));
        let (more, failed) = parts.rest().await;
        assert_eq!((more, failed.map(|failed| failed.code)), (1, Some(Code::DeadlineExceeded)));
        assert_eq!(began.elapsed().as_millis(), 300);
        assert!(stock.last().remaining.is_some_and(|left| left <= Duration::from_millis(300)), "it travels");
        until("the handler has stopped", || stock.running() == 0).await;
    }
}

both! {
    /// The server's own `total_timeout`, for callers that set none.
    async fn the_servers_total_timeout_cuts_what_it_streams(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").config("inbound: { total_timeout: 300ms }").start().await;
        let caller = mesh.caller("").await;
        stock.does(Act::Hang);
        let began = tokio::time::Instant::now();
        let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap_or_else(|no| panic!("{no:?}"));
        let (more, failed) = parts.rest().await;
        assert_eq!(more, 1);
        let failed = failed.expect("it was cut");
        if wire == Wire::Grpc {
            assert_eq!(failed.code, Code::DeadlineExceeded, "{failed:?}");
        }
        assert_eq!(began.elapsed().as_millis(), 300);
        assert_eq!(stock.running(), 0);
    }
}
