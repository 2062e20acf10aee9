//! Binds every port before anything is served, so that a start fails as a whole.
use std::collections::BTreeMap;

use chassis_config::Finding;
use chassis_http::server::{Mux, Server};

use crate::{Chassis, StartError};

/// Listens at every address that something is served at; returns each with its name.
pub(crate) async fn listen(app: &mut Chassis) -> Result<Vec<(String, String)>, StartError> {
    app.rpc.plan(&app.parts.runtime, &mut app.rest.ports)?;
    let planned = app.rest.plan()?;
    // Names of one address share its port; the content-type distinguishes gRPC from REST.
    let mut shared: BTreeMap<String, (Vec<String>, Mux, Vec<String>)> = BTreeMap::new();
    for (name, address, plan) in planned {
        let address_key = if address.ends_with(":0") { format!("{address}#{name}") } else { address };
        let (names, mux, about) = shared.entry(address_key).or_default();
        if (mux.grpc.is_some() && plan.mux.grpc.is_some()) || (mux.http.is_some() && plan.mux.http.is_some())
        {
            let why = format!("`listen.{}` serves the same protocol at this address", names[0]);
            let problem = Finding::error(format!("listen.{name}"), why).place(&app.rest.tree);
            return Err(StartError::Settings(problem.to_string()));
        }
        names.push(name);
        mux.grpc = mux.grpc.take().or(plan.mux.grpc);
        mux.http = mux.http.take().or(plan.mux.http);
        about.extend(plan.about);
    }
    let runtime = &app.parts.runtime;
    let server = Server::new(app.rest.server_config.clone(), runtime.tasks(), runtime.random().clone());
    let server = server.metrics(runtime.metrics().clone());
    let mut bound = Vec::new();
    for (key, (names, mux, about)) in shared {
        let mux = app.rpc.layered(mux);
        let address = key.split('#').next().unwrap_or(&key).to_owned();
        let name = names[0].clone();
        let listener = app.rest.network.bind(&address).await;
        let listener = listener.map_err(|source| StartError::Listen { name, address, source })?;
        bound.push((names, mux, about, listener));
    }
    let mut addresses = Vec::new();
    for (names, mux, about, listener) in bound {
        let address = listener.address();
        tracing::info!(target: "chassis", "listening at {address} for {}: {}", names.join(" and "), about.join(", "));
        addresses.extend(names.iter().map(|name| (name.clone(), address.clone())));
        server.serve(&names[0], listener, mux, app.rest.acceptor.clone());
    }
    app.rest.server = Some(server);
    let [out, inward] = app.chains("*");
    tracing::info!(target: "chassis", "calls that come in: {inward}");
    tracing::info!(target: "chassis", "calls that go out: {out}");
    for cluster in app.parts.runtime.clusters() {
        let [own, _] = app.chains(cluster.service());
        if own != out {
            tracing::info!(target: "chassis", "calls to {}: {own}", cluster.service());
        }
    }
    Ok(addresses)
}
