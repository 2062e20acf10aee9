//! A handler that panics fails one call and affects nothing else.
use chassis_core::{
    Code, Event, Invocation, Reason,
    pipeline::Pipeline,
    testing::{Answer, CallBuilder},
};
use http::StatusCode;
use serde_json::json;

use crate::support::*;

/// Panics at once, after a wait, or while its call is moved; or answers.
fn handler(bench: &Bench) -> Pipeline {
    server(&bench.runtime, |call: Invocation| {
        assert!(call.target.operation.as_str() != "AtOnce", "at once");
        async move {
            if call.target.operation.as_str() == "Later" {
                tokio::time::sleep(MS).await;
                panic!("later");
            }
            Ok(call.answered(StatusCode::OK, Default::default(), Default::default()))
        }
    })
}

#[tokio::test(start_paused = true)]
async fn it_is_reported_counted_and_over() {
    let bench = Bench::new(|_| Answer::ok(""));
    bench.apply(json!({ "inbound": { "concurrency": 1 } }));
    let server = handler(&bench);
    for operation in ["AtOnce", "Later"] {
        let recorder = Recorder::new();
        let mut call = CallBuilder::post("orders", operation).build();
        call.listen(recorder.clone(), 0);
        let result = run(&server, call).await;
        check(&result, Code::Internal, Reason::Panicked);
        let error = result.unwrap_err();
        assert_eq!((error.message(), error.maybe_executed()), ("the handler panicked", true)); // no further details
        recorder.assert_recorded(&[(Code::Internal, Some(Reason::Panicked))], 1);
        assert_eq!(bench.runtime.inspect().concurrency[0].in_use, 0, "its permit is back");
        run(&server, CallBuilder::post("orders", "Fine").build()).await.unwrap();
    }
    assert_eq!(bench.metric("chassis_handler_panics_total", &[]), 2.0);
    let count = |of: &str| {
        bench.count_events(|e| matches!(e, Event::HandlerPanicked { operation, .. } if operation == of))
    };
    assert_eq!((count("AtOnce"), count("Later")), (1, 1));
    let calls = |code| bench.metric("chassis_server_call_duration_seconds", &[("code", code)]);
    assert_eq!((calls("INTERNAL"), calls("OK")), (2.0, 2.0));
    assert_eq!(bench.metric("chassis_rejected_total", &[]), 0.0, "nothing was refused");
    // A value that is dropped on this thread from now on has not panicked.
    let recorder = Recorder::new();
    let mut call = post().build();
    call.listen(recorder.clone(), 0);
    drop(call);
    recorder.assert_recorded(&[(Code::Cancelled, Some(Reason::Cancelled))], 1);
}
