//! What tests of users and of our own need: the contract suites of the ports, a counting upstream, a
//! scripted registry.
pub mod contract;
