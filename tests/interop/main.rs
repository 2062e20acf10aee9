//! Programs that are not ours against ours, as real processes on loopback: grpcio, grpc-go, curl, nginx,
//! Python's HTTP server; and bad input, byte by byte.
//!
//! `scripts/setup` installs them and says where they are by the variables `CHASSIS_PEER_*`. Where one is
//! not set, its tests pass without having run, and `scripts/test` says so.
#![allow(clippy::unwrap_used)]
mod bad_input;
mod bad_instances;
mod curl;
mod echo;
mod from_go;
mod from_grpcio;
mod interop;
mod mirror;
mod ours;
mod peer;
mod raw;
mod through_nginx;
mod to_go;
mod to_grpcio;
mod to_nginx;
mod to_python;
