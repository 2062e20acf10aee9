//! Answers in place of failed calls: from a function, from the settings; metrics count the failure all the
//! same.
use std::time::Duration;

use bytes::Bytes;
use chassis::{
    Body, Code, Error, Reason,
    layer::fallback::{Answer, FailedCall},
};
use chassis_protos::echo::EchoReply;
use http::{HeaderMap, StatusCode};

use crate::mesh::{Act, Ask, Mesh, Wire, both};

/// Answers with the failure it received, in the protocol of the call.
async fn describe_failure(failed: FailedCall) -> Result<Answer, Error> {
    let FailedCall { target, error, .. } = failed;
    let message = format!("{} for {}", error.reason(), error.code());
    if target.operation.as_str().contains("Echo/") {
        return Ok(chassis::grpc::answer(&EchoReply { message, ..EchoReply::default() }));
    }
    let json = serde_json::json!(
        { "message": message, "instance": "", "count": 0, "hops": [], "remaining_ms": 0 }
    );
    let body = Body::full(Bytes::from(json.to_string()));
    Ok(Answer { status: StatusCode::OK, metadata: HeaderMap::new(), body })
}

both! {
    async fn a_function_sees_the_error_and_answers(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let settings = "outbound: { defaults: { retry: off, breaker: { min_calls: 4 } } }";
        let plan = mesh.server("tests", "tests").config(settings);
        let caller = plan.with(|builder| builder.fallback("stock", describe_failure)).caller().await;
        assert_eq!(caller.call(wire, Ask::to("stock")).await.by(), "stock-1", "nothing failed");

        // Three of four calls fail, which is enough.
        stock.does(Act::Fail(Code::Unavailable));
        for _ in 0..3 {
            let instead = caller.call(wire, Ask::to("stock")).await;
            assert!(instead.is_ok() && instead.message.ends_with("for UNAVAILABLE"), "{instead:?}");
        }
        // It is no success of the endpoint: the circuit has opened.
        let instead = caller.call(wire, Ask::to("stock")).await;
        assert_eq!(instead.message, "CIRCUIT_OPEN for UNAVAILABLE");
        assert_eq!(stock.executed(), 4);
        let node = &caller.view(wire, "stock").nodes[0];
        assert_eq!((node.calls, node.successes), (4, 1));
        // And the metrics keep the original reason.
        let refused = r#"chassis_fallbacks_total{reason="CIRCUIT_OPEN",service="stock"}"#;
        assert_eq!(caller.metric(refused), 1.0);
        let rejected = r#"chassis_rejected_total{reason="CIRCUIT_OPEN",service="stock",side="client"}"#;
        assert_eq!(caller.metric(rejected), 1.0);
        let failed = match wire {
            Wire::Grpc => r#"rpc_client_call_duration_seconds_count{error_type="UNAVAILABLE",rpc_method="chassis.test.v1.Echo/Call",rpc_status_code="UNAVAILABLE",rpc_system_name="grpc"}"#,
            Wire::Rest => r#"http_client_request_duration_seconds_count{error_type="503",http_request_method="POST",http_response_status_code="503",http_route="/echo",server_address="stock"}"#,
        };
        assert_eq!(caller.metric(failed), 3.0);
    }
}

both! {
    async fn a_function_for_one_operation(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Fail(Code::Unavailable));
        let operation = wire.operation(crate::mesh::Op::Safe);
        let plan = mesh.server("tests", "tests").config("outbound: { defaults: { retry: off } }");
        let plan = plan.with(|builder| builder.fallback_for("stock", operation, describe_failure));
        let caller = plan.caller().await;
        assert!(caller.call(wire, Ask::to("stock").safe()).await.is_ok());
        assert_eq!(caller.call(wire, Ask::to("stock")).await.code, Code::Unavailable);
    }
}

both! {
    async fn a_function_that_fails_or_takes_too_long(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Fail(Code::Unavailable));
        let no_retry = "outbound: { defaults: { retry: off } }";
        let fails = |failed: FailedCall| async move {
            assert_eq!(failed.error.code(), Code::Unavailable);
            Err(Error::local(Reason::Internal, "no cache either").with_code(Code::FailedPrecondition))
        };
        let plan = mesh.server("tests", "tests").config(no_retry);
        let caller = plan.with(move |builder| builder.fallback("stock", fails)).caller().await;
        let outcome = caller.call(wire, Ask::to("stock")).await;
        assert_eq!((outcome.code, outcome.message.as_str()), (Code::FailedPrecondition, "no cache either"));

        let slow = |_: FailedCall| std::future::pending();
        let plan = mesh.server("tests", "tests").config(no_retry);
        let caller = plan.with(move |builder| builder.fallback("stock", slow)).caller().await;
        let outcome = caller.call(wire, Ask::to("stock")).await;
        assert_eq!((outcome.code, outcome.took), (Code::Unavailable, Duration::from_secs(1)));
        assert_eq!(outcome.message, "stock-1 fails as asked", "the failing answer itself");
    }
}

both! {
    async fn answers_from_the_settings(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        stock.does(Act::Fail(Code::Unavailable));
        // Field 1, six bytes: `static`.
        let settings = "
            outbound:
              defaults: { retry: off }
              services:
                stock:
                  operations:
                    'POST /echo': { fallback: { status: 203, body: 'nothing new', content_type: text/plain, on: [503, connect] } }
                    'chassis.test.v1.Echo/Call': { fallback: { message: CgZzdGF0aWM=, on: [UNAVAILABLE] } }
            ";
        let caller = mesh.caller(settings).await;
        let instead = caller.call(wire, Ask::to("stock")).await;
        assert!(instead.is_ok());
        match wire {
            Wire::Grpc => assert_eq!(instead.message, "static"),
            Wire::Rest => {
                assert_eq!((instead.status, instead.body.as_str()), (Some(203), "nothing new"));
                assert_eq!(instead.header("content-type"), Some("text/plain"));
            }
        }
        stock.does(Act::Fail(Code::NotFound));
        assert_eq!(caller.call(wire, Ask::to("stock")).await.code, Code::NotFound, "not among `on`");
        assert_eq!(caller.call(wire, Ask::to("unknown")).await.reason, Some(Reason::UnknownService));
        let fallbacks = crate::mesh::scrape(caller.runtime());
        let fallbacks = fallbacks.lines().filter(|line| line.starts_with("chassis_fallbacks_total{"));
        assert_eq!(fallbacks.count(), 1, "for one reason, once");

        // It can be removed like any other setting.
        stock.does(Act::Fail(Code::Unavailable));
        caller.push("outbound: { defaults: { retry: off } }").await.applied();
        assert_eq!(caller.call(wire, Ask::to("stock")).await.code, Code::Unavailable);
    }
}
