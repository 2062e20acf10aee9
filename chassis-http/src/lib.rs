//! The HTTP transport of chassis: client pools and accept loop over hyper, the REST adapter, axum routers.
pub mod connector;
