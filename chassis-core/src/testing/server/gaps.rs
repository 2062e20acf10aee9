//! A watcher that was cut off finds everything that happened meanwhile, also what was removed.
use std::{collections::BTreeMap, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Proxy, SOON, Server, deregistered, registered, until, watched};
use crate::{random::Random, registry::Registration, testing::contract::config_source::Place};

/// A series of gaps ends after this time, and after [`GAPS`] at the latest.
const LASTS: Duration = Duration::from_secs(15);
const GAPS: usize = 200;
const LEAST: usize = 20;

/// Cuts the connection of a watcher again and again while instances come and go; half of the time the server also
/// forgets the changes. Prints the number of gaps, and the longest time until a watcher has seen everything.
///
/// # Panics
/// If a watcher misses a change, reports a removed instance, or takes longer than [`SOON`].
pub async fn gaps(server: &mut impl Server) {
    let proxy = Proxy::start(server.address()).await.expect("there is a free port");
    let reader = server.registry(proxy.address(), None);
    let writer = server.registry(server.address(), None);
    let mut watcher = watched(&*reader).await;
    let mut there: BTreeMap<String, Box<dyn Registration>> = BTreeMap::new();
    let random = Random::seeded(5);
    let (begun, mut gaps, mut longest) = (Instant::now(), 0, Duration::ZERO);
    while gaps < GAPS && begun.elapsed() < LASTS {
        proxy.cut();
        let before: Vec<_> = there.keys().cloned().collect();
        let mut changes: Vec<_> = (0..1 + random.below(10)).map(|_| random.below(20)).collect();
        while let Some(n) = changes.pop() {
            let id = format!("i{n:02}");
            match there.remove(&id) {
                Some(registration) => deregistered(registration).await,
                None => drop(there.insert(id.clone(), registered(&*writer, &id).await)),
            }
            if changes.is_empty() && there.keys().eq(&before) {
                changes.push(20); // changes that undo each other may be no news
            }
        }
        if gaps.is_multiple_of(2) {
            server.compact().await;
        }
        proxy.heal();
        let healed = Instant::now();
        let ids: Vec<_> = there.keys().map(String::as_str).collect();
        until(&mut watcher, &ids).await;
        longest = longest.max(healed.elapsed());
        gaps += 1;
    }
    println!("{}: {gaps} gaps; everything was seen after {longest:?} at most", reader.name());
    assert!(longest <= SOON, "{longest:?}");
    assert!(gaps >= LEAST, "only {gaps}");
}

/// The same for a config center: `place` reads its text through `proxy` and writes it past the proxy.
///
/// # Panics
/// If the source misses a text, or takes longer than [`SOON`].
pub async fn config_gaps(mut place: impl Place, proxy: &Proxy) {
    place.write("a: -1").await;
    let source = place.source();
    let mut watcher = source.watch().await.expect("the source can be watched");
    for n in 0..LEAST {
        proxy.cut();
        let content = format!("a: {n}");
        place.write(&content).await;
        proxy.heal();
        let seen = timeout(SOON, async {
            while watcher.next().await.ok().is_none_or(|text| text.content != content) {}
        });
        seen.await.unwrap_or_else(|_| panic!("{content} is not seen"));
    }
}
