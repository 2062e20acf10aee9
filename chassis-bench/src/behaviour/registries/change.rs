//! How soon a caller sees a change of the registry: an instance that comes, changes, or goes.
use std::time::Duration;

use chassis::{Chassis, registry::Instance};
use tokio::time::Instant;

use super::{
    super::fleet::Fleet,
    Figures, Pace,
    calls::{SERVICE, follow, nodes, until},
    server::{Kind, Server},
    start,
};
use crate::Result;

/// The number of changes; a fifth of it in a quick run.
const CHANGES: u32 = 200;
/// DNS answers for so many services, whose records all change at once.
const SERVICES: u32 = 20;

pub(super) async fn run(kind: Kind, pace: Pace) -> Result<Vec<Figures>> {
    let Some(mut server) = start("change", kind).await? else { return Ok(Vec::new()) };
    let fleet = Fleet::over(server.settings())?;
    let app = fleet.caller("").await?;
    let count = CHANGES * u32::try_from(pace.seconds(10).as_secs())? / 10;
    let mut taken = match kind {
        Kind::Dns => of_records(&app, &mut server, count).await?,
        Kind::Etcd | Kind::Consul | Kind::Ttl => of_instances(&app, &server, count).await?,
    };
    app.runtime().shutdown(Duration::from_secs(5)).await;
    taken.sort_unstable();
    let at = |percent: usize| taken[(taken.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let figures = Figures::new(
        "change",
        kind.name(),
        [
            ("changes", taken.len() as f64),
            ("seen after, p50, ms", at(50)),
            ("seen after, p99, ms", at(99)),
            ("seen after, max, ms", at(100)),
        ],
    );
    Ok(vec![figures])
}

/// One instance comes, changes its weight, and goes, again and again, beside two that stay.
async fn of_instances(app: &Chassis, server: &Server, count: u32) -> Result<Vec<Duration>> {
    let registry = server.registry()?;
    let instance = |id: &str| Instance::new(SERVICE, id).with_address("grpc", "127.0.0.1:1");
    let _first = registry.register(instance("first")).await?;
    let _second = registry.register(instance("second")).await?;
    follow(app, SERVICE);
    until("two instances are known", || nodes(app).len() == 2).await?;
    let mut taken = Vec::new();
    for round in 0..count.div_ceil(3) {
        let id = format!("i{round}");
        let weight = || nodes(app).iter().find(|node| node.id == id).map(|node| node.weight);
        let begun = Instant::now();
        let mut registration = registry.register(instance(&id)).await?;
        until("a new instance is known", || weight() == Some(1)).await?;
        taken.push(begun.elapsed());
        let begun = Instant::now();
        registration.update(instance(&id).with_weight(2)).await?;
        until("a new weight is known", || weight() == Some(2)).await?;
        taken.push(begun.elapsed());
        let begun = Instant::now();
        registration.deregister().await?;
        until("an instance is gone", || weight().is_none()).await?;
        taken.push(begun.elapsed());
    }
    Ok(taken)
}

/// The records of many services change at once, from the moment when the server has them.
async fn of_records(app: &Chassis, server: &mut Server, count: u32) -> Result<Vec<Duration>> {
    let Server::Dns(knot) = server else { return Err("it is not DNS".into()) };
    let mut taken = Vec::new();
    for round in 0..=count / SERVICES {
        let port = 1 + round;
        let mut records = vec!["host 1 A 127.0.0.1".to_owned()];
        records.extend((0..SERVICES).map(|n| format!("_grpc._tcp.{SERVICE}{n} 1 SRV 0 1 {port} host")));
        knot.write(&records.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let begun = Instant::now();
        if round == 0 {
            (0..SERVICES).for_each(|n| follow(app, &format!("{SERVICE}{n}")));
        }
        let address = format!("127.0.0.1:{port}");
        let mut seen = vec![None; SERVICES as usize];
        until("all records are known", || {
            for service in app.runtime().inspect().services {
                let n = service.name.strip_prefix(SERVICE).and_then(|n| n.parse::<usize>().ok());
                let is_seen = service.nodes.iter().any(|node| node.address == address);
                if let Some(seen) = n.and_then(|n| seen.get_mut(n)).filter(|_| is_seen) {
                    seen.get_or_insert_with(|| begun.elapsed());
                }
            }
            seen.iter().all(Option::is_some)
        })
        .await?;
        if round > 0 {
            taken.extend(seen.into_iter().flatten());
        }
    }
    Ok(taken)
}
