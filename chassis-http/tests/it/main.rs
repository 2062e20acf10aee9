//! The transport with itself and with hand-written peers, in memory and over TCP.
#![allow(clippy::unwrap_used)]
mod certificates;
mod connectors;
mod contract;
mod cuts;
mod ends;
mod floods;
mod h1;
mod h2;
mod hangups;
mod heads;
mod large;
mod lengths;
mod raw;
mod readers;
mod rest;
mod restarts;
mod server;
mod streams;
mod support;
mod tls;
mod whole;
