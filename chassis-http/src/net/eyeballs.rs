//! Chooses among the addresses of a name: "happy eyeballs", RFC 8305.
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::time::sleep;

/// The time between two attempts, if the previous one has not failed (RFC 8305, 5).
const PAUSE: Duration = Duration::from_millis(250);
/// The minimum between them (ibid.).
const LEAST: Duration = Duration::from_millis(10);

/// Orders the addresses so that families alternate as far as possible, because one family may be unreachable as
/// a whole. The resolver's order decides which family comes first.
pub(super) fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (mut one, mut other): (Vec<_>, Vec<_>) =
        addresses.into_iter().rev().partition(|address| address.is_ipv6() == first);
    let mut turns = Vec::with_capacity(one.len() + other.len());
    while let Some(next) = one.pop().or_else(|| other.pop()) {
        turns.push(next);
        turns.extend(other.pop());
    }
    turns
}

/// The time to wait for one of `count` addresses before the next is tried too, so that the last of them still
/// gets a part of `budget`.
pub(super) fn pause(count: usize, budget: Duration) -> Duration {
    let turns = u32::try_from(count).unwrap_or(u32::MAX).max(1);
    (budget / turns).clamp(LEAST, PAUSE)
}

/// The first connection that succeeds. Each address is tried `pause` after the previous one, or as soon as an
/// attempt fails. If all fail, the error is that of the first.
pub(super) async fn first<T, F: Future<Output = io::Result<T>>>(
    addresses: Vec<SocketAddr>,
    pause: Duration,
    connect: impl Fn(SocketAddr) -> F,
) -> io::Result<T> {
    let mut addresses = addresses.into_iter();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut failed = None;
    while let Some(address) = addresses.next() {
        running.push(Box::pin(connect(address)));
        let is_last = addresses.len() == 0;
        let mut late = pin!(sleep(pause));
        while !running.is_empty() {
            let ended = tokio::select! {
                biased;
                ended = any(&mut running) => ended,
                () = &mut late, if !is_last => break,
            };
            match ended {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = failed.or(Some(error)),
            }
            if !is_last {
                break;
            }
        }
    }
    Err(failed.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the name has no address")))
}

/// Returns the result of the first attempt that ends, and removes that attempt.
async fn any<F: Future>(running: &mut Vec<Pin<Box<F>>>) -> F::Output {
    poll_fn(|cx| {
        for at in 0..running.len() {
            if let Poll::Ready(ended) = running[at].as_mut().poll(cx) {
                drop(running.remove(at));
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Mutex};

    use tokio::time::Instant;

    use super::*;

    fn addresses(text: &str) -> Vec<SocketAddr> {
        let address = |one: &str| match one.split_at(1) {
            ("6", n) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, n.parse().unwrap())),
            (_, n) => SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, n.parse().unwrap())),
        };
        text.split_whitespace().map(address).collect()
    }

    #[test]
    fn families_take_turns() {
        for (given, turns) in [
            ("61 62 43 44", "61 43 62 44"),
            ("41 42 63", "41 63 42"),
            ("61 62 63", "61 62 63"),
            ("41", "41"),
            ("61 42 43 44", "61 42 43 44"),
        ] {
            assert_eq!(by_turns(addresses(given)), addresses(turns), "{given}");
        }
    }

    #[test]
    fn the_time_does_for_all() {
        let millis = |count, budget| pause(count, Duration::from_millis(budget)).as_millis();
        let cases =
            [millis(1, 1_000), millis(2, 1_000), millis(4, 1_000), millis(5, 1_000), millis(1_000, 1_000)];
        assert_eq!(cases, [250, 250, 250, 200, 10]);
        assert_eq!(pause(3, Duration::MAX), PAUSE);
        assert_eq!(pause(0, Duration::ZERO), LEAST);
    }

    /// Each address behaves as `fates` specifies at its place: milliseconds until it connects, fails (`-`), or
    /// never answers (`.`). Compares the connected address and its time, and when each was tried.
    async fn check(fates: &str, expected: Option<(usize, u64)>, tried: &[u64]) {
        let fates: Vec<&str> = fates.split_whitespace().collect();
        let count = fates.len();
        let (begun, starts) = (Instant::now(), Mutex::new(Vec::new()));
        let connect = |address: SocketAddr| {
            let (at, starts) = (usize::from(address.port()), &starts);
            let fate = fates[at];
            async move {
                starts.lock().unwrap().push(begun.elapsed().as_millis() as u64);
                if fate == "." {
                    return pending().await;
                }
                let (millis, fails) = fate.strip_suffix('-').map_or((fate, false), |millis| (millis, true));
                sleep(Duration::from_millis(millis.parse().unwrap())).await;
                if fails { Err(io::Error::other(at.to_string())) } else { Ok(at) }
            }
        };
        let all = (0..count).map(|n| SocketAddr::from(([127, 0, 0, 1], n as u16))).collect();
        let bound = tokio::time::timeout(Duration::from_secs(60), first(all, PAUSE, connect)).await;
        let found = bound.ok().map(|found| match found {
            Ok(at) => (at, begun.elapsed().as_millis() as u64),
            Err(error) => {
                (100 + error.to_string().parse::<usize>().unwrap(), begun.elapsed().as_millis() as u64)
            }
        });
        assert_eq!((found, &starts.lock().unwrap()[..]), (expected, tried), "{fates:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_that_answers_wins() {
        check("10", Some((0, 10)), &[0]).await;
        check("10 10", Some((0, 10)), &[0]).await;
        check(". 10", Some((1, 260)), &[0, 250]).await;
        check(". . 10", Some((2, 510)), &[0, 250, 500]).await;
        check("300 .", Some((0, 300)), &[0, 250]).await;
        check("300 100", Some((0, 300)), &[0, 250]).await;
        check("20- 10", Some((1, 30)), &[0, 20]).await;
        check("400- 300- 10", Some((2, 410)), &[0, 250, 400]).await;
        check("20- 30-", Some((100, 50)), &[0, 20]).await;
        check(". 30-", None, &[0, 250]).await;
        check(". 30- 10", Some((2, 290)), &[0, 250, 280]).await;
    }

    #[tokio::test]
    async fn no_address_is_an_error() {
        let none = first(Vec::new(), PAUSE, |_| pending::<io::Result<()>>()).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }
}
