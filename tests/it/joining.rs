//! Instances that come and go.
use crate::mesh::{Ask, Mesh, Wire, both};

both! {
    async fn a_first_call_is_answered(wire: Wire) {
        let mesh = Mesh::new();
        let stock = mesh.start("stock", "stock-1").await;
        let caller = mesh.caller("").await;
        let outcome = caller.call(wire, Ask::to("stock")).await;
        assert_eq!((outcome.by(), outcome.message.as_str()), ("stock-1", "hello"));
        assert_eq!(stock.executed(), 1);
    }
}
