//! The admin surface of a service: its listeners, which open first and close last, and the process that it shows.
mod process;

use std::{io::ErrorKind, num::NonZeroU32, sync::Arc, time::Duration};

use chassis_admin::{Admin, AdminConfig, HostPattern, Reach};
use chassis_config::Finding;
use chassis_core::{
    Section,
    units::{PositiveSpan, Size, Switch},
};
use chassis_http::{
    ServerConfig,
    connector::Listener,
    server::{Answer, Connected, Mux, Received, Server, ServerBody},
};
use http::Request;

use self::process::View;
use crate::{
    Chassis, StartError,
    document::{Address, OWN_LISTENERS},
    kinds::Kinds,
};

/// The listeners of the admin surface. Each has a server of its own, so that none uses up the connections of another one,
/// or of the service.
#[derive(Default)]
pub(crate) struct Surface {
    view: Option<Arc<View>>,
    admin: Option<Admin>,
    servers: Vec<Server>,
    addresses: Vec<(String, String)>,
}

/// The default port of `listen.admin`. If it is taken, the next free one is used.
const PORT: u16 = 9900;
/// So many ports are tried; then any free one is used.
const PORTS: u16 = 100;
/// A request is one small head: who needs longer to send it is not served.
const HEADER_TIMEOUT: PositiveSpan = PositiveSpan::from_millis(5_000);

/// Registers the section `admin`.
pub(crate) fn register(kinds: &mut Kinds) {
    let section = Section::<AdminConfig>::new("admin").read_once();
    kinds.section(section.schema(crate::cli::schema_of!(AdminConfig)));
}

// === impl Surface ===

impl Surface {
    /// Listens at `listen.admin` and `listen.probes`.
    pub(crate) async fn open(app: &Chassis) -> Result<Self, StartError> {
        let (parts, rest) = (&app.parts, &app.rest);
        let config = parts.runtime.section::<AdminConfig>("admin").map(|live| live.newest());
        let config = config.unwrap_or_default();
        let mut listeners = Vec::new();
        for name in OWN_LISTENERS {
            let listener = match rest.listen.0.get(name) {
                None if name == "admin" => listen_by_default(app).await,
                None | Some(Address::Off) => None,
                Some(address) => {
                    let address = address.to_string();
                    let bound = rest.network.bind(&address).await;
                    let name = name.to_owned();
                    Some(bound.map_err(|source| StartError::Listen { name, address, source })?)
                }
            };
            listeners.extend(listener.map(|listener| (name, listener)));
        }
        if listeners.is_empty() {
            return Ok(Surface::default());
        }
        let view = Arc::new(View::new(parts));
        let own_names = [&parts.service.advertise, &parts.service.hostname].into_iter().flatten();
        let own_names = own_names.filter_map(|name| name.parse::<HostPattern>().ok());
        let admin = Admin::new(parts.runtime.clone(), view.clone(), &config, own_names);
        if let Err(why) = admin.check_token().await {
            let problem = Finding::error("admin.token_file".to_owned(), why).place(&rest.tree);
            return Err(StartError::Settings(problem.to_string()));
        }
        let has_token = config.token_file.is_some();
        let mut surface = Surface { view: Some(view), admin: Some(admin.clone()), ..Surface::default() };
        for (name, listener) in listeners {
            surface.serve(app, &config, &admin, name, listener, has_token);
        }
        Ok(surface)
    }

    fn serve(
        &mut self,
        app: &Chassis,
        config: &AdminConfig,
        admin: &Admin,
        name: &str,
        listener: Box<dyn Listener>,
        has_token: bool,
    ) {
        let runtime = &app.parts.runtime;
        let address = listener.address();
        let reach = reach(name, &address);
        let for_whom = match (reach, has_token) {
            (Reach::Probes, _) => "probes and metrics for every peer",
            (Reach::Network, false) => "probes and metrics for every peer; the rest needs `admin.token_file`",
            (Reach::Network, true) => "probes and metrics for every peer; the rest with the token",
            (Reach::Machine | Reach::Private, _) => "for peers on this machine",
        };
        tracing::info!(target: "chassis", "{name} at {}: {for_whom}", url(&address));
        let server = Server::new(limits(config), runtime.tasks(), runtime.random().clone());
        let server = server.metrics(runtime.metrics().clone()).evict_idle();
        let admin = admin.clone();
        let service = move |request: Request<Received>| -> Answer {
            let peer = request.extensions().get::<Connected>().and_then(|connected| connected.peer().ip());
            let (admin, (head, _)) = (admin.clone(), request.into_parts());
            Box::pin(async move { admin.answer(head, reach, peer).await.map(ServerBody::new) })
        };
        server.serve(name, listener, Mux { http: Some(Arc::new(service)), ..Mux::default() }, None);
        self.servers.push(server);
        self.addresses.push((name.to_owned(), address));
    }

    /// The addresses of its listeners, by name.
    pub(crate) fn addresses(&self) -> Vec<(String, String)> {
        self.addresses.clone()
    }

    /// Shows the listeners of the service, with the addresses at which others reach them.
    pub(crate) fn serves(&self, addresses: &[(String, String)], advertised: &[(String, String)]) {
        if let Some(view) = &self.view {
            view.serves(addresses, advertised);
        }
    }

    /// Closes the listeners; answers that are under way have `bound` to end.
    pub(crate) async fn close(&self, bound: Duration) {
        if let Some(admin) = &self.admin {
            admin.close();
        }
        for server in &self.servers {
            server.drain(bound).await;
        }
    }
}

/// Listens at the default port of loopback, or at the next free one. A service starts without an admin surface rather
/// than not at all.
async fn listen_by_default(app: &Chassis) -> Option<Box<dyn Listener>> {
    let is_named = |port: u16| {
        let is_it = |address: &Address| matches!(address, Address::Tcp { port: named, .. } if *named == port);
        app.rest.listen.0.values().any(is_it)
    };
    let ports = (PORT..PORT + PORTS).filter(|port| !is_named(*port)).chain([0]);
    for port in ports {
        match app.rest.network.bind(&format!("127.0.0.1:{port}")).await {
            Ok(listener) => return Some(listener),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            Err(error) => {
                tracing::warn!(target: "chassis", %error, "no admin surface: can't listen at 127.0.0.1:{port}");
                return None;
            }
        }
    }
    None
}

/// Small limits: the readers are few.
fn limits(config: &AdminConfig) -> ServerConfig {
    ServerConfig {
        max_connections: config.max_connections,
        header_timeout: HEADER_TIMEOUT,
        handshake_timeout: HEADER_TIMEOUT,
        max_streams: NonZeroU32::new(16).expect("16 is not 0"),
        max_body: Size::from_kib(1),
        stream_window: Size::from_kib(64),
        connection_window: Size::from_kib(128),
        send_buffer: Size::from_kib(2 * 1024),
        // A page is at most a few MiB, which a reader that is worth waiting for takes in a minute.
        min_write_rate: Switch::On(NonZeroU32::new(10 * 1024).expect("it is not 0")),
        ..ServerConfig::default()
    }
}

/// Who reaches the listener `name` at `address`.
fn reach(name: &str, address: &str) -> Reach {
    let is_loopback = |address: &str| {
        address.parse::<std::net::SocketAddr>().is_ok_and(|it| it.ip().to_canonical().is_loopback())
    };
    match name {
        "probes" => Reach::Probes,
        _ if address.starts_with("unix:") || address.starts_with("memory:") => Reach::Private,
        _ if is_loopback(address) => Reach::Machine,
        _ => Reach::Network,
    }
}

fn url(address: &str) -> String {
    match address.starts_with("unix:") || address.starts_with("memory:") {
        true => address.to_owned(),
        false => format!("http://{address}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_private_addresses_are_this_machine() {
        for (address, expected) in [
            ("127.0.0.1:9900", Reach::Machine),
            ("127.9.9.9:1", Reach::Machine),
            ("[::1]:9900", Reach::Machine),
            ("[::ffff:127.0.0.1]:9900", Reach::Machine),
            ("unix:/run/a.sock", Reach::Private),
            ("memory:a", Reach::Private),
            ("0.0.0.0:9900", Reach::Network),
            ("[::]:9900", Reach::Network),
            ("10.0.0.7:9900", Reach::Network),
            ("localhost:9900", Reach::Network), // no bound address has a name
        ] {
            assert_eq!(reach("admin", address), expected, "{address}");
            assert_eq!(reach("probes", address), Reach::Probes);
        }
    }
}
