//! Callers that cancel early, on a connection that others share.
use std::time::Duration;

use chassis::Code;

use crate::mesh::{Act, Ask, Gate, Mesh, Wire, both, metric};

const HTTP2: &str = "client: { http_version: \"2\" }\noutbound: { defaults: { retry: off, breaker: off } }";

both! {
    /// All of their calls exceed their timeouts, 3,200 in a second: they gave a short one.
    async fn callers_with_short_timeouts_do_not_end_the_connection(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(HTTP2).await;
        let gate = Gate::shut();
        stock.does_next([Act::Wait(gate.clone())]);
        let long = caller.spawn(wire, Ask::to("stock"));
        crate::mesh::until("it runs", || stock.running() == 1).await;
        stock.does(Act::Delay(Duration::from_secs(1)));
        let callers = (0..64).map(|_| {
            let caller = caller.clone();
            tokio::spawn(async move {
                for _ in 0..50 {
                    let ask = Ask::to("stock").timeout(Duration::from_millis(20));
                    let code = caller.call(wire, ask).await.code;
                    assert_eq!(code, Code::DeadlineExceeded);
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        gate.open();
        assert!(long.await.unwrap().is_ok());
        assert_eq!(mesh.network.memory().connections("stock-1"), 1);
        assert_eq!(metric(stock.runtime(), r#"chassis_connections_closed_total{reason="reset_rate",side="server"}"#), 0.0);
    }
}

both! {
    /// Half of the calls are cancelled after 50 ms: no other is lost.
    async fn callers_that_cancel_half_of_their_calls_keep_the_connection(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller(HTTP2).await;
        stock.does(Act::Delay(Duration::from_millis(60)));
        let callers = (0..64).map(|n| {
            let caller = caller.clone();
            tokio::spawn(async move {
                for call in 0..40 {
                    let ask = Ask::to("stock");
                    match (call + n) % 2 {
                        0 => assert!(caller.call(wire, ask).await.is_ok()),
                        _ => drop(tokio::time::timeout(Duration::from_millis(50), caller.call(wire, ask)).await),
                    }
                }
            })
        });
        for caller in callers.collect::<Vec<_>>() {
            caller.await.unwrap();
        }
        assert_eq!(mesh.network.memory().connections("stock-1"), 1);
    }
}
