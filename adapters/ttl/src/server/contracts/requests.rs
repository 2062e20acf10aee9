//! The requests for contracts, by the rules of HTTP.
use axum::{
    Json,
    body::to_bytes,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
};
use chassis_core::contracts::{Contract, ContractOwner, ContractsErrorKind};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS},
};
use serde::Deserialize;
use tokio::time::{Instant, timeout};

use super::{
    super::{BODY, Server, refusal},
    Failed, Put,
    store::Full,
};
use crate::wire::ListedContract;

/// The owner of a contract, in the query.
#[derive(Deserialize)]
pub(in crate::server) struct Of {
    service: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    environment: String,
}

/// The contracts to list: a part that is not given counts as any.
#[derive(Deserialize)]
pub(in crate::server) struct Filter {
    service: Option<String>,
    version: Option<String>,
    environment: Option<String>,
}

/// The type of a content that states none.
const BYTES: &str = "application/octet-stream";

pub(in crate::server) async fn list(State(server): Server, Query(filter): Query<Filter>) -> Response {
    let Filter { service, version, environment } = filter;
    let is = |asked: &Option<String>, of: &String| asked.as_ref().is_none_or(|asked| asked == of);
    let fits = |of: &ContractOwner| {
        is(&service, &of.service) && is(&version, &of.version) && is(&environment, &of.environment)
    };
    let mut store = server.contracts.store();
    // A list of all versions says nothing about one of them.
    if version.is_some() {
        store.asked(fits, Instant::now());
    }
    let listed = store.iter(fits).map(|(of, name, kept)| ListedContract {
        service: of.service.clone(),
        version: of.version.clone(),
        environment: of.environment.clone(),
        name: name.clone(),
        media_type: kept.media_type.clone(),
        etag: kept.etag.clone(),
        bytes: kept.content.len(),
    });
    let listed: Vec<_> = listed.collect();
    drop(store);
    Json(listed).into_response()
}

pub(in crate::server) async fn get(
    State(server): Server,
    Path(name): Path<String>,
    Query(of): Query<Of>,
    headers: HeaderMap,
) -> Response {
    let Some(kept) = server.contracts.get(&of.owner(), &name) else {
        return refusal(StatusCode::NOT_FOUND, "there is no such contract");
    };
    let known =
        text(&headers, &IF_NONE_MATCH).map(|etag| etag.trim().trim_start_matches("W/").trim_matches('"'));
    let mut answer = match known == Some(&kept.etag) {
        true => StatusCode::NOT_MODIFIED.into_response(),
        false => kept.content.into_response(),
    };
    let headers = answer.headers_mut();
    let media_type = HeaderValue::try_from(kept.media_type);
    headers.insert(CONTENT_TYPE, media_type.unwrap_or(HeaderValue::from_static(BYTES)));
    // Services write these texts: no browser shall take one for a page.
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.extend(etag(&kept.etag));
    answer
}

pub(in crate::server) async fn put(
    State(server): Server,
    Path(name): Path<String>,
    Query(of): Query<Of>,
    request: Request,
) -> Response {
    let most = server.config.max_contract.get();
    let headers = request.headers();
    let kept = text(headers, &IF_NONE_MATCH) == Some("*");
    let media_type = text(headers, &CONTENT_TYPE).unwrap_or(BYTES).to_owned();
    let body = match timeout(BODY, to_bytes(request.into_body(), most)).await {
        Ok(Ok(body)) => body,
        Ok(Err(_)) => {
            let message = format!("a contract has at most {most} bytes, and an end");
            return refusal(StatusCode::PAYLOAD_TOO_LARGE, &message);
        }
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let (of, contract) = (of.owner(), Contract::new(name, media_type, body));
    if let Err(error) = of.check(std::slice::from_ref(&contract)) {
        let status = match error.kind() {
            ContractsErrorKind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            _ => StatusCode::BAD_REQUEST,
        };
        return refusal(status, &error.to_string());
    }
    match server.contracts.publish(of, contract, kept).await {
        Ok(Ok(Put::Done(hash))) => {
            let mut answer = Json(serde_json::json!({ "etag": hash })).into_response();
            answer.headers_mut().extend(etag(&hash));
            answer
        }
        Ok(Ok(Put::Stays)) => refusal(StatusCode::PRECONDITION_FAILED, "there is a contract of this name"),
        Ok(Err(Failed::Full(Full::Versions))) => {
            let message =
                "this server is full: `max_contract_versions` other versions of this service are in use";
            refusal(StatusCode::INSUFFICIENT_STORAGE, message)
        }
        Ok(Err(Failed::Full(Full::Used))) => {
            let message = "this server keeps no more contracts: `max_contracts`, or their bytes, are used up";
            refusal(StatusCode::INSUFFICIENT_STORAGE, message)
        }
        Ok(Err(Failed::Disk(error))) => not_on_disk(&error.to_string()),
        Err(error) => not_on_disk(&error.to_string()),
    }
}

pub(in crate::server) async fn delete(
    State(server): Server,
    Path(name): Path<String>,
    Query(of): Query<Of>,
) -> Response {
    match server.contracts.withdraw(of.owner(), name).await {
        Ok(Ok(())) => StatusCode::NO_CONTENT.into_response(),
        Ok(Err(error)) => not_on_disk(&error.to_string()),
        Err(error) => not_on_disk(&error.to_string()),
    }
}

fn not_on_disk(error: &str) -> Response {
    tracing::error!(target: "chassis", error, "a contract can't be written to disk");
    refusal(StatusCode::SERVICE_UNAVAILABLE, "the contract can't be written to disk")
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn etag(hash: &str) -> Option<(HeaderName, HeaderValue)> {
    Some((ETAG, HeaderValue::try_from(format!("\"{hash}\"")).ok()?))
}

// === impl Of ===

impl Of {
    fn owner(self) -> ContractOwner {
        ContractOwner::new(self.service, self.version).in_environment(self.environment)
    }
}
