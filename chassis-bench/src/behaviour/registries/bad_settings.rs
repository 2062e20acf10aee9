//! Bad settings are pushed through a config center: none is put in force.
use std::{collections::BTreeSet, time::Duration};

use chassis::{Chassis, Event, document::Environment, registries::MemoryRegistry, testing::BadSettings};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{
    Figures, Pace,
    calls::SERVICE,
    server::{KEY, Kind, Server},
    start,
};
use crate::Result;

/// The number of texts; a fifth of it in a quick run.
const TEXTS: usize = 1_000;
/// A text without any news for so long is missed.
const NEWS: Duration = Duration::from_secs(10);

/// The outcome of a text.
enum News {
    Accepted,
    Refused(Vec<String>),
    /// By the center itself.
    NotTaken,
    Unreadable,
    Missed,
}

#[derive(Default)]
struct Counts {
    accepted: u32,
    not_taken: u32,
    unexplained: u32,
    missed: u32,
    longest: Duration,
    classes: BTreeSet<&'static str>,
}

pub(super) async fn run(kind: Kind, pace: Pace) -> Result<Vec<Figures>> {
    let Some(server) = start("bad-settings", kind).await? else { return Ok(Vec::new()) };
    let Some(center) = server.center() else { return Ok(Vec::new()) };
    let texts = TEXTS * usize::try_from(pace.seconds(10).as_secs())? / 10;
    let mut all = vec![through(kind.name(), &server, center, &origin(&server), texts).await?];
    if let Some(url) = server.url() {
        let center = json!({ "kind": "http", "url": url, "watch": { "events": "60s" } });
        all.push(through("http", &server, center, &url, texts).await?);
    }
    Ok(all)
}

async fn through(case: &str, server: &Server, center: Value, origin: &str, texts: usize) -> Result<Figures> {
    server.put(&good(1)).await?;
    // The texts are about every table: no other source sets any.
    let config = json!({ "centers": [center], "last_good": "off" });
    let builder = Chassis::builder("caller").without_file().environment(Environment::default());
    let builder = builder.registry(MemoryRegistry::new()).settings(json!({ "config": config }));
    let app = builder.build().await?;
    let in_force = (app.config().version(), timeout_of(&app));
    let mut counts = Counts::default();
    for bad in BadSettings::seeded(7).take(texts) {
        let begun = Instant::now();
        match push(&app, server, &bad.yaml).await? {
            News::Accepted => counts.accepted += 1,
            News::Refused(problems) => {
                if let Err(why) = bad.check(origin, &problems) {
                    counts.unexplained += 1;
                    eprintln!("{case}: {why}");
                }
            }
            News::NotTaken => counts.not_taken += 1,
            News::Unreadable => counts.unexplained += 1,
            News::Missed => {
                counts.missed += 1;
                eprintln!("{case}: no news of {}: {:?}", bad.class, bad.yaml);
            }
        }
        counts.longest = counts.longest.max(begun.elapsed());
        if (app.config().version(), timeout_of(&app)) != in_force {
            return Err(format!("{case}: {} moves the version in force:\n{}", bad.class, bad.yaml).into());
        }
        counts.classes.insert(bad.class);
    }
    // The center is still followed.
    let is_followed = matches!(push(&app, server, &good(2)).await?, News::Accepted);
    app.runtime().shutdown(Duration::from_secs(5)).await;
    Ok(Figures::new(
        "bad-settings",
        case,
        [
            ("texts", texts as f64),
            ("classes", counts.classes.len() as f64),
            ("accepted", f64::from(counts.accepted)),
            ("not taken by the center itself", f64::from(counts.not_taken)),
            ("refused without reason or place", f64::from(counts.unexplained)),
            ("without news", f64::from(counts.missed)),
            ("refused after, max, ms", counts.longest.as_secs_f64() * 1e3),
            ("a good text then is accepted", f64::from(u8::from(is_followed))),
        ],
    ))
}

/// Puts a text, and waits for what becomes of it.
async fn push(app: &Chassis, server: &Server, text: &str) -> Result<News> {
    let mut news = app.runtime().events().subscribe();
    if server.put(text).await.is_err() {
        return Ok(News::NotTaken);
    }
    let came = timeout(NEWS, async {
        loop {
            match &*news.recv().await? {
                Event::ConfigApplied { .. } => return Ok(News::Accepted),
                Event::ConfigRefused { problems, .. } => return Ok(News::Refused(problems.clone())),
                Event::ConfigUnreadable { error, .. } => {
                    eprintln!("{error}");
                    return Ok(News::Unreadable);
                }
                _ => {}
            }
        }
    });
    came.await.unwrap_or(Ok(News::Missed))
}

/// The name of the text in messages.
fn origin(server: &Server) -> String {
    match server {
        Server::Etcd(_) => format!("etcd:/{KEY}"),
        Server::Consul(_) => format!("consul:{KEY}"),
        Server::Ttl(_) | Server::Dns(_) => format!("ttl:{KEY}"),
    }
}

fn good(seconds: u64) -> String {
    format!("outbound: {{ defaults: {{ timeout: {seconds}s }} }}\n")
}

fn timeout_of(app: &Chassis) -> Option<Duration> {
    app.runtime().policies().get().outbound(&SERVICE.into(), "x").timeout()
}
