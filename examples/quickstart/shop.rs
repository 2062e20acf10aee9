//! The two services of the shop.
use std::{
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    routing::get,
};
use chassis::{Channel, Chassis, Problem, Stage, from_fn, grpc::problem, inspect::Inspection};
use chassis_protos::shop::{
    FILE_DESCRIPTOR_SET, Receipt, Reservation, Sku, StockLevel,
    stock_client::StockClient,
    stock_server::{Stock, StockServer},
};
use serde::{Deserialize, Serialize};
use tonic::{Request, Response, Status};

use crate::BoxError;

/// The answer of `orders`.
#[derive(Serialize, Deserialize)]
pub(crate) struct Order {
    /// The ordered article.
    pub(crate) sku: String,
    /// The remaining quantity.
    pub(crate) left: u32,
    /// The instance of `stock` that answered.
    pub(crate) instance: String,
    /// That instance's release track.
    pub(crate) track: String,
    /// The version of the settings that applied to the call to `stock`.
    pub(crate) version: u64,
}

/// The behaviour of an instance of `stock`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Normal; the current release.
    Stable,
    /// Normal; the next release.
    Canary,
    /// Answers slowly.
    Slow,
    /// Fails a third of its calls.
    Flaky,
}

/// One instance of `stock`.
struct Shelves {
    id: String,
    manner: Manner,
    calls: AtomicU64,
}

/// Header that carries the version of the settings from the pipeline to the handler.
const VERSION: &str = "x-settings-version";

// === orders ===

/// The REST service: reads the quantity of an article over gRPC.
pub(crate) async fn orders() -> chassis::Result {
    let app = Chassis::builder("orders")
        .instance("orders-1")
        .descriptors(FILE_DESCRIPTOR_SET) // marks `Level` as safe to repeat
        .layer(
            Stage::Call,
            "version",
            from_fn(|call, next| async move {
                let version = call.policy().version();
                let mut reply = next.run(call).await?;
                reply.metadata.insert(VERSION, version.into());
                Ok(reply)
            }),
        )
        .build()
        .await?;
    let runtime = app.runtime().clone();
    let stock = StockClient::new(app.grpc("stock"));
    let routes = Router::new().route("/orders/{sku}", get(order)).with_state(stock);
    // Only reachable from this machine, like everything here: the settings name `127.0.0.1`.
    let look =
        Router::new().route("/inspect", get(move || async move { Json::<Inspection>(runtime.inspect()) }));
    app.serve_http(routes.merge(look)).run().await
}

async fn order(
    State(mut stock): State<StockClient<Channel>>,
    Path(sku): Path<String>,
) -> Result<Json<Order>, Problem> {
    let answer = stock.level(Sku { id: sku }).await.map_err(|status| problem(&status))?;
    let version = answer.metadata().get(VERSION).and_then(|value| value.to_str().ok()?.parse().ok());
    let StockLevel { id, count, instance, track } = answer.into_inner();
    Ok(Json(Order { sku: id, left: count, instance, track, version: version.unwrap_or_default() }))
}

// === stock ===

/// The gRPC service.
pub(crate) async fn stock(id: &str, manner: Manner) -> chassis::Result {
    let app = Chassis::builder("stock")
        .instance(id)
        .settings(serde_json::json!({ "service": { "labels": { "track": manner.track() } } }))
        .descriptors(FILE_DESCRIPTOR_SET)
        .build()
        .await?;
    let shelves = Shelves { id: id.to_owned(), manner, calls: AtomicU64::new(0) };
    app.serve_grpc(StockServer::from_arc(Arc::new(shelves))).reflection().run().await
}

#[tonic::async_trait]
impl Stock for Shelves {
    async fn level(&self, request: Request<Sku>) -> Result<Response<StockLevel>, Status> {
        self.work().await?;
        let id = request.into_inner().id;
        let count = 100 + u32::try_from(id.len()).unwrap_or_default();
        let (instance, track) = (self.id.clone(), self.manner.track().to_owned());
        Ok(Response::new(StockLevel { id, count, instance, track }))
    }

    async fn reserve(&self, request: Request<Reservation>) -> Result<Response<Receipt>, Status> {
        self.work().await?;
        Ok(Response::new(Receipt { id: request.into_inner().id, instance: self.id.clone() }))
    }
}

impl Shelves {
    async fn work(&self) -> Result<(), Status> {
        let takes = if self.manner == Manner::Slow { 60 } else { 5 };
        tokio::time::sleep(Duration::from_millis(takes)).await;
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        match self.manner == Manner::Flaky && number.is_multiple_of(3) {
            true => Err(Status::unavailable("out of order")),
            false => Ok(()),
        }
    }
}

// === impl Manner ===

impl Manner {
    /// The name of it on the command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Manner::Stable => "stable",
            Manner::Canary => "canary",
            Manner::Slow => "slow",
            Manner::Flaky => "flaky",
        }
    }

    fn track(self) -> &'static str {
        match self {
            Manner::Canary => "canary",
            Manner::Stable | Manner::Slow | Manner::Flaky => "stable",
        }
    }
}

impl FromStr for Manner {
    type Err = BoxError;

    fn from_str(word: &str) -> Result<Self, BoxError> {
        let all = [Manner::Stable, Manner::Canary, Manner::Slow, Manner::Flaky];
        all.into_iter()
            .find(|manner| manner.word() == word)
            .ok_or_else(|| format!("no manner: {word}").into())
    }
}
