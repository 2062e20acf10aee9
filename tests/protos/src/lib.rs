//! The protos of the examples and tests, compiled in a member of its own: users of chassis compile none of
//! them.

/// `chassis.test.v1`: the service of the tests.
pub mod echo {
    tonic::include_proto!("chassis.test.v1");

    /// The encoded descriptors of this package, for reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo.bin"));
}

/// `grpc.testing`: the service of the interoperability tests of all gRPC implementations.
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
