//! The stubs of `proto/etcd.proto`.
#![allow(missing_docs, unreachable_pub, clippy::enum_variant_names)] // generated

include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
