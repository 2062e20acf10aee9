//! Options of one call on the request of a tonic stub.
use chassis_core::{CallOptions, RequestExt};
use tonic::Request;

use crate::Grpc;

/// They travel in its extensions. Of [`timeout`](RequestExt::timeout) and tonic's `set_timeout` the shorter one holds.
impl<T> RequestExt<Grpc> for Request<T> {
    fn options_mut(&mut self) -> &mut CallOptions {
        self.extensions_mut().get_or_insert_default()
    }
}
