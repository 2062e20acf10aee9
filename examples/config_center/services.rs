//! The processes: `orders`, and `stock` in two releases. All they know at the start is where registry and center are.
use axum::{
    Json, Router,
    extract::{Path, State},
    routing::{get, post},
};
use chassis::{
    Chassis, HttpClient, Problem,
    document::{Environment, Outcome},
};
use serde::{Deserialize, Serialize};

use crate::BoxError;

/// The settings in force in `orders`.
#[derive(Serialize, Deserialize)]
pub(crate) struct InForce {
    pub(crate) version: u64,
    /// The document with its revision that the timeout is from.
    pub(crate) origin: String,
    /// The problems of the last version, if it was refused.
    pub(crate) refused: Vec<String>,
}

fn builder(name: &str, settings: &str) -> Result<chassis::ChassisBuilder, BoxError> {
    let builder = Chassis::builder(name).without_file().environment(Environment::default());
    Ok(builder.settings(serde_json::from_str(settings)?))
}

/// Asks `stock`, and shows its settings.
pub(crate) async fn orders(settings: &str) -> Result<(), BoxError> {
    let app = builder("orders", settings)?.instance("orders-1").build().await?;
    let (stock, config) = (app.http("stock"), app.config());
    let rollback = {
        let config = config.clone();
        async move |Path(version): Path<u64>| match config.rollback(version).await {
            Ok(version) => Ok(Json(version)),
            Err(error) => Err(Problem::new(http::StatusCode::CONFLICT).detail(error.to_string())),
        }
    };
    let in_force = async move || {
        let refused = config.history().last().map(|record| match &record.outcome {
            Outcome::Refused(problems) => problems.iter().map(|problem| problem.in_a_line()).collect(),
            _ => Vec::new(),
        });
        let origin = config.origin("outbound.services.stock.timeout");
        Json(InForce {
            version: config.version(),
            origin: origin.map(|origin| origin.to_string()).unwrap_or_default(),
            refused: refused.unwrap_or_default(),
        })
    };
    let router = Router::new()
        .route("/orders", get(order))
        .with_state(stock)
        .route("/settings", get(in_force))
        .route("/rollback/{version}", post(rollback));
    app.serve_http(router).run().await?;
    Ok(())
}

async fn order(State(stock): State<HttpClient>) -> Result<String, Problem> {
    Ok(stock.get("/stock").send().await?.ok().await?.text().await?)
}

/// Answers with its release.
pub(crate) async fn stock(track: &str, settings: &str) -> Result<(), BoxError> {
    let labels = serde_json::json!({ "service": { "labels": { "track": track } } });
    let app = builder("stock", settings)?.settings(labels).instance(format!("stock-{track}")).build().await?;
    let track = track.to_owned();
    app.serve_http(Router::new().route("/stock", get(async || track))).run().await?;
    Ok(())
}
