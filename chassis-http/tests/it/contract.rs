//! REST keeps to what the pipeline expects of a protocol.
use chassis_core::testing::contract;
use chassis_http::HTTP;

#[test]
fn rest_is_a_protocol() {
    contract::protocol::protocol(&HTTP);
}
