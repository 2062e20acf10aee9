//! Foreign programs against chassis, as real processes on loopback: grpcio, grpc-go, curl, nginx, Python's
//! HTTP server, etcd, Consul, kube-apiserver, Knot; and invalid input, byte by byte.
//!
//! `scripts/setup` installs them and sets their paths in the variables `CHASSIS_PEER_*`. If one is not set,
//! its tests are ignored, and `scripts/test` counts them as not run.
#![allow(clippy::unwrap_used)]
#[macro_use]
mod trials;

mod bad_input;
mod bad_instances;
#[cfg(any(feature = "consul", feature = "etcd", feature = "kubernetes", feature = "servicecomb"))]
#[allow(dead_code)] // not every feature needs all of it
mod callers;
#[cfg(feature = "servicecomb")]
#[path = "../../adapters/servicecomb/tests/it/center.rs"]
#[allow(dead_code)] // the tests of the adapter use the other half
mod center;
#[cfg(feature = "kubernetes")]
#[path = "../../chassis-http/tests/it/certificates.rs"]
mod certificates;
#[cfg(feature = "consul")]
#[path = "../../adapters/consul/tests/it/server.rs"]
#[allow(dead_code)] // the tests of the adapter use the other half
mod consul_server;
mod curl;
mod echo;
#[cfg(any(feature = "etcd", feature = "kubernetes"))]
#[path = "../../adapters/etcd/tests/it/server.rs"]
#[allow(dead_code)] // the tests of the adapter use the other half
mod etcd_server;
#[cfg(feature = "kubernetes")]
use etcd_server as etcd;
mod from_go;
mod from_grpcio;
#[cfg(feature = "servicecomb")]
#[path = "../../adapters/servicecomb/tests/it/host.rs"]
mod host;
mod interop;
#[cfg(feature = "servicecomb")]
#[path = "../../adapters/servicecomb/tests/it/kie_server.rs"]
#[allow(dead_code)] // likewise
mod kie_server;
#[cfg(feature = "dns")]
#[path = "../../chassis-registry/tests/dns/knot.rs"]
mod knot;
#[cfg(feature = "kubernetes")]
#[path = "../../adapters/kubernetes/tests/it/server.rs"]
mod kubernetes_server;
mod mirror;
#[cfg(feature = "kubernetes")]
mod namespace;
mod ours;
#[cfg(feature = "consul")]
mod over_consul;
#[cfg(feature = "dns")]
mod over_dns;
#[cfg(feature = "etcd")]
mod over_etcd;
#[cfg(feature = "http-center")]
mod over_http_center;
#[cfg(feature = "kubernetes")]
mod over_kubernetes;
#[cfg(feature = "servicecomb")]
mod over_servicecomb;
#[cfg(feature = "ttl")]
mod over_ttl;
mod peer;
#[path = "../examples/process.rs"]
#[allow(dead_code)] // the tests of the examples use the other half
mod process;
mod quickstart;
mod raw;
#[cfg(feature = "ttl")]
#[path = "../../adapters/ttl/tests/it/process.rs"]
#[allow(dead_code)] // the tests of the adapter use the other half
mod registry_server;
#[path = "../examples/shop.rs"]
#[allow(dead_code)] // likewise
mod shop;
mod through_nginx;
mod to_go;
mod to_grpcio;
mod to_nginx;
mod to_python;

fn main() -> std::process::ExitCode {
    trials::run([
        bad_input::trials(),
        bad_instances::trials(),
        curl::trials(),
        from_go::trials(),
        from_grpcio::trials(),
        #[cfg(feature = "consul")]
        over_consul::trials(),
        #[cfg(feature = "dns")]
        over_dns::trials(),
        #[cfg(feature = "etcd")]
        over_etcd::trials(),
        #[cfg(feature = "http-center")]
        over_http_center::trials(),
        #[cfg(feature = "kubernetes")]
        over_kubernetes::trials(),
        #[cfg(feature = "servicecomb")]
        over_servicecomb::trials(),
        #[cfg(feature = "ttl")]
        over_ttl::trials(),
        quickstart::trials(),
        through_nginx::trials(),
        to_go::trials(),
        to_grpcio::trials(),
        to_nginx::trials(),
        to_python::trials(),
    ])
}
