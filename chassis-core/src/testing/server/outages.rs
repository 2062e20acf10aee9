//! A server that is not there yet, is frozen, or works as it should.
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{PATIENCE, SOON, Server, deregistered, registered, stock, until, watched};
use crate::registry::Membership;

/// A process that begins without the server reports that, and finds the server when it comes.
///
/// # Panics
/// If it does not.
pub async fn begun_without_it(server: &mut impl Server) {
    server.kill().await;
    let registry = server.registry(server.address(), None);
    let mut watcher = watched(&*registry).await;
    let begun = Instant::now();
    assert!(timeout(PATIENCE, watcher.next()).await.is_ok_and(|answer| answer.is_err()), "it reports why");
    assert!(registry.services().await.is_empty());
    assert!(registry.register(stock("a")).await.is_err());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.run().await;
    let back = Instant::now();
    let answer = timeout(PATIENCE, watcher.next()).await;
    assert!(matches!(answer, Ok(Ok(Membership::Unknown))), "{answer:?}");
    assert!(back.elapsed() <= SOON, "{:?}", back.elapsed());
}

/// An entry outlives a server that was frozen for twice the lease: it is renewed in time, or is back soon.
///
/// # Panics
/// If it is not.
pub async fn frozen_beyond_its_lease(server: &mut impl Server) {
    let lease = Duration::from_secs(2);
    let registration = registered(&*server.registry(server.address(), Some(lease)), "a").await;
    let mut watcher = watched(&*server.registry(server.address(), None)).await;
    until(&mut watcher, &["a"]).await;
    server.freeze(true).await;
    sleep(2 * lease).await; // the fault itself
    server.freeze(false).await;
    let back = Instant::now();
    let mut gone = None;
    while back.elapsed() < 2 * lease {
        match server.lists("a").await {
            false => drop(gone.get_or_insert_with(Instant::now)),
            true => {
                if let Some(gone) = gone.take() {
                    assert!(gone.elapsed() <= SOON, "{:?}", gone.elapsed());
                }
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gone, None, "it is listed");
    until(&mut watcher, &["a"]).await;
    deregistered(registration).await;
    until(&mut watcher, &[]).await;
}

/// Prints how long a change takes to be seen by a watcher of another process.
///
/// # Panics
/// If a percent of the changes takes longer than `p99`.
pub async fn change_is_seen(server: &impl Server, p99: Duration) {
    let registry = server.registry(server.address(), None);
    let mut watcher = watched(&*registry).await;
    assert!(matches!(watcher.next().await, Ok(Membership::Unknown)), "nothing is registered yet");
    let writer = server.registry(server.address(), None);
    let mut taken = Vec::new();
    for round in 0..100 {
        let id = format!("i{round}");
        let begun = Instant::now();
        let registration = registered(&*writer, &id).await;
        until(&mut watcher, &[&id]).await;
        taken.push(begun.elapsed());
        let begun = Instant::now();
        deregistered(registration).await;
        until(&mut watcher, &[]).await;
        taken.push(begun.elapsed());
    }
    taken.sort();
    let (median, seen) = (taken[taken.len() / 2], taken[taken.len() * 99 / 100]);
    println!("{}: a change is seen after {median:?}, p99 {seen:?}", registry.name());
    assert!(seen <= p99, "{seen:?}");
}
