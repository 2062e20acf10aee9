//! Handlers that panic: one call fails and nothing else.
use std::sync::Arc;

use chassis::{Code, Event, Reason};

use crate::mesh::{Act, Ask, Gate, Mesh, Op, Wire, all_well, both, metric};

both! {
    async fn a_panic_costs_one_call(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
        all_well(&caller.calls(wire, 1, || Ask::to("stock")).await);
        stock.does_next([Act::Panic]);
        let outcome = caller.call(wire, Ask::to("stock")).await;
        outcome.refused(Reason::Panicked);
        assert_eq!(outcome.code, Code::Internal);
        assert_eq!(outcome.status, (wire == Wire::Rest).then_some(500));
        assert_ne!(outcome.maybe_executed, Some(false), "it was executed, in part");
        all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
        assert_eq!(mesh.network.memory().connections("stock-1"), 1, "the connection is kept");
        assert_eq!(metric(stock.runtime(), "chassis_handler_panics_total"), 1.0);
        let text = stock.runtime().events().past().into_iter().find_map(|(_, event)| match &*event {
            Event::HandlerPanicked { operation, message } if operation == wire.operation(Op::Call) => Some(message.clone()),
            _ => None,
        });
        let text = text.expect("no event of the panic");
        assert!(text.starts_with("as asked for") && text.contains("tests/it/mesh/") && text.contains(".rs:"), "{text}");
        assert_eq!(stock.running(), 0);
    }
}

both! {
    async fn a_panic_in_the_midst_of_a_stream(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
        // Later, so that the first part has been sent.
        let gate = Gate::shut();
        let open = gate.clone();
        stock.does_next([Act::Run(Arc::new(move |_, _| {
            let gate = gate.clone();
            Box::pin(async move {
                gate.passed().await;
                panic!("as asked for")
            })
        }))]);
        let mut parts = caller.download(wire, Ask::to("stock"), 3).await.unwrap();
        assert_eq!(parts.next().await.unwrap().unwrap(), "hello 1");
        open.open();
        let (more, failed) = parts.rest().await;
        let failed = failed.expect("the stream did not end well");
        assert_eq!(more, 0);
        if wire == Wire::Grpc {
            assert_eq!(failed.code, Code::Internal, "{failed:?}");
        }
        assert_eq!(metric(stock.runtime(), "chassis_handler_panics_total"), 1.0);
        let is_panic = |event: &Event| matches!(event, Event::HandlerPanicked { .. });
        assert!(stock.runtime().events().past().iter().any(|(_, event)| is_panic(event)));
        all_well(&caller.calls(wire, 5, || Ask::to("stock")).await);
        assert_eq!(stock.running(), 0);
    }
}

both! {
    async fn a_panic_of_a_layer_of_ones_own_costs_one_call_too(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.server("stock", "stock-1").with(|builder| {
            builder.layer(chassis::Stage::Handler, "shaky", chassis::from_fn(|call, next: chassis::Next| async move {
                assert!(!call.metadata.contains_key("x-panic"), "as asked for");
                next.run(call).await
            }))
        });
        let stock = stock.start().await;
        let caller = mesh.caller("outbound: { defaults: { retry: off } }").await;
        let outcome = caller.call(wire, Ask::to("stock").header("x-panic", "1")).await;
        outcome.refused(Reason::Panicked);
        all_well(&caller.calls(wire, 3, || Ask::to("stock")).await);
        assert_eq!(stock.executed(), 3);
    }
}
