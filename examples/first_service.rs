//! The `stock` service over gRPC, and a REST service that finds it by name and calls it.
use axum::{
    Router,
    extract::{Path, State},
    routing::get,
};
use chassis::{Channel, Chassis, Problem};
use chassis_protos::shop::{stock_client::StockClient, stock_server::*, *};
use tonic::{Request, Response, Status};

struct Shelves;

#[tonic::async_trait]
impl Stock for Shelves {
    async fn level(&self, sku: Request<Sku>) -> Result<Response<StockLevel>, Status> {
        Ok(Response::new(StockLevel { id: sku.into_inner().id, count: 7, ..Default::default() }))
    }
    async fn reserve(&self, _: Request<Reservation>) -> Result<Response<Receipt>, Status> {
        Err(Status::resource_exhausted("sold out"))
    }
}

async fn left(
    State(mut stock): State<StockClient<Channel>>,
    Path(id): Path<String>,
) -> Result<String, Problem> {
    let level = stock.level(Sku { id }).await?.into_inner();
    Ok(format!("{} of {} left\n", level.count, level.id))
}

#[tokio::main]
async fn main() -> chassis::Result {
    tracing_subscriber::fmt().init();
    let app = Chassis::builder("stock").descriptors(FILE_DESCRIPTOR_SET).build().await?;
    let client = StockClient::new(app.grpc("stock"));
    let routes = Router::new().route("/stock/{id}", get(left)).with_state(client);
    app.serve_grpc(StockServer::new(Shelves)).serve_http(routes).run().await
}
