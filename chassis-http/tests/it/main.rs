//! The transport against itself and against raw peers, in memory and over TCP.
mod cuts;
mod h1;
mod h2;
mod rest;
mod server;
mod support;
