//! The first service without chassis: the code that remains after chassis is removed. Handlers and stubs are
//! unchanged, because they are axum's and tonic's; every changed line is marked `was`.
use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use chassis_protos::shop::{stock_client::StockClient, stock_server::*, *};
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint, Server}; // was: chassis::Channel
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
) -> Result<String, StatusCode> {
    let level = stock.level(Sku { id }).await.map_err(problem)?.into_inner();
    Ok(format!("{} of {} left\n", level.count, level.id))
}

/// Was: chassis::grpc::problem.
fn problem(_: Status) -> StatusCode {
    StatusCode::BAD_GATEWAY
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // was: app.grpc("stock")
    let stock = Endpoint::from_static("http://127.0.0.1:50051").connect_lazy();
    let routes = Router::new().route("/stock/{id}", get(left)).with_state(StockClient::new(stock));
    // was: app.serve_grpc(StockServer::new(Shelves)).serve_http(routes).run().await
    let grpc = Server::builder().serve("127.0.0.1:50051".parse()?, StockServer::new(Shelves));
    let http = axum::serve(TcpListener::bind("127.0.0.1:8080").await?, routes);
    tokio::select! {
        ended = grpc => Ok(ended?),
        ended = async { http.await } => Ok(ended?),
    }
}
