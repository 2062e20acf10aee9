//! The protos of the examples and tests, compiled in a member of its own: who depends on chassis compiles none.

/// `chassis.test.v1`: what the tests call.
pub mod echo {
    tonic::include_proto!("chassis.test.v1");

    /// The encoded descriptors of this package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));
}

/// `grpc.testing`: what the interoperability tests of all gRPC implementations call.
pub mod interop {
    tonic::include_proto!("grpc.testing");

    /// The encoded descriptors of this package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/interop.bin"));
}

/// `shop.v1`: the quickstart's shop.
pub mod shop {
    tonic::include_proto!("shop.v1");

    /// The encoded descriptors of this package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/shop.bin"));
}
