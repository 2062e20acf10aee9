//! The part of `orders`' inspection that the quickstart shows.
use std::{collections::BTreeMap, time::Duration};

use chassis::{HttpClient, RequestExt};
use serde::Deserialize;

/// One inspection of `orders`.
#[derive(Clone, Deserialize)]
pub(crate) struct Seen {
    /// The version of its settings.
    pub(crate) version: u64,
    services: Vec<Service>,
}

#[derive(Clone, Deserialize)]
struct Service {
    name: String,
    nodes: Vec<Node>,
    rules: Vec<Rule>,
}

/// An instance of `stock`, in the inspection of `orders`.
#[derive(Clone, Deserialize)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// `closed`, `open` or `half-open`.
    pub(crate) circuit: Option<String>,
    pub(crate) calls: u64,
    pub(crate) successes: u64,
    pub(crate) in_flight: u32,
    pub(crate) p50: Option<Duration>,
    pub(crate) p99: Option<Duration>,
}

/// A rule of the routes to `stock`.
#[derive(Clone, Deserialize)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) hits: u64,
}

// === impl Seen ===

impl Seen {
    /// Reads the inspection of `orders`; `None` without an answer.
    pub(crate) async fn ask(orders: &HttpClient) -> Option<Self> {
        let response = orders.get("/inspect").timeout(Duration::from_secs(2)).send().await.ok()?;
        response.ok().await.ok()?.json().await.ok()
    }

    /// The instances of `stock`, by their ids.
    pub(crate) fn nodes(&self) -> Vec<&Node> {
        let mut nodes: Vec<&Node> = self.stock().flat_map(|service| &service.nodes).collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes
    }

    /// The instance with this id.
    pub(crate) fn node(&self, id: &str) -> Option<&Node> {
        self.stock().flat_map(|service| &service.nodes).find(|node| node.id == id)
    }

    /// The rules in their order.
    pub(crate) fn rules(&self) -> Vec<&Rule> {
        self.stock().flat_map(|service| &service.rules).collect()
    }

    fn stock(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(|service| service.name == "stock")
    }
}

impl Node {
    /// Whether its circuit is open.
    pub(crate) fn is_open(&self) -> bool {
        self.circuit.as_deref() == Some("open")
    }
}
