//! Follows one service at all servers, and shows the union of what they list.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chassis_core::{
    Random,
    adapter::{Feed, Pace},
    clock,
    registry::Instance,
};
use chassis_http::sse::{Event, Reader};
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    client::Client,
    wire::{BEHIND, DELETE, Gone, KEEP_ALIVE, PUT, READY, RESET, Revision},
};

/// The instances of one server by id.
type All = BTreeMap<String, Arc<Instance>>;

/// The revision up to which each server was read.
pub(crate) type Read = Vec<Option<Revision>>;

/// The state of one server.
#[derive(Default)]
struct Server {
    all: Option<All>,
    revision: Option<Revision>,
    /// `None`: it is watched. Else since when it is not.
    lost: Option<Instant>,
    why: Option<String>,
}

/// The news of a server's follower.
enum News {
    Known(All, Revision),
    Lost(String),
}

/// Follows the service at one server.
struct Follower<'a> {
    client: &'a Client,
    server: usize,
    service: &'a str,
    all: All,
    at: Option<Revision>,
    to: mpsc::Sender<(usize, News)>,
}

/// Why a watch has ended.
enum End {
    /// Its changes are no longer kept: the list has to be read anew.
    Behind,
    Failed(String),
}

/// A server without any event for so long is given up.
pub(crate) const SILENCE: Duration = KEEP_ALIVE.saturating_mul(3);
/// How long the first answer waits for servers that have not answered yet.
const FIRST: Duration = Duration::from_secs(1);
/// The list of a lost server counts for so long while others are there: as long as processes have to reach them.
const LOST: Duration = Duration::from_secs(30);
/// An event has at most so many bytes.
const MAX_EVENT: usize = 1 << 20;
/// So many changes wait to be shown.
const WAITING: usize = 16;

/// Follows `service` until it is dropped.
pub(crate) async fn follow(client: &Client, service: &str, jitter: Duration, feed: &mut Feed<Read>) {
    let (to, mut news) = mpsc::channel(WAITING);
    let mut followers = JoinSet::new(); // end with this
    for server in 0..client.count() {
        let (client, service, to) = (client.clone(), service.to_owned(), to.clone());
        followers.spawn(async move {
            let (client, service, all) = (&client, &*service, All::new());
            Follower { client, server, service, all, at: None, to }.run(jitter).await;
        });
    }
    let begun = Instant::now();
    let mut servers: Vec<Server> = (0..client.count()).map(|_| Server::default()).collect();
    let (mut shown, mut is_failing) = (None, false);
    loop {
        let asked = servers.iter().all(|server| server.all.is_some() || server.lost.is_some());
        if asked || begun.elapsed() >= FIRST {
            let all = union(&servers, Instant::now());
            let read = servers.iter().map(|server| server.revision).collect();
            match &all {
                Some(all) if shown.as_ref() != Some(all) => feed.show(all.clone(), !all.is_empty(), read),
                _ => feed.at(read),
            }
            shown = all;
            let is_there = servers.iter().any(|server| server.all.is_some() && server.lost.is_none());
            if !is_there && asked && !is_failing {
                let why: Vec<_> = servers.iter().filter_map(|server| server.why.as_deref()).collect();
                feed.fail(why.join("; "));
            }
            is_failing = !is_there && asked;
        }
        let first = (begun + FIRST > Instant::now()).then_some(begun + FIRST);
        let over = servers.iter().filter_map(|server| Some(server.lost? + LOST));
        let due = over.filter(|over| *over > Instant::now()).chain(first).min();
        let wait = async {
            match due {
                Some(due) => sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            some = news.recv() => {
                let Some(some) = some else { return };
                take_in(&mut servers, some);
                while let Ok(more) = news.try_recv() {
                    take_in(&mut servers, more);
                }
            }
            () = wait => {}
        }
    }
}

fn take_in(servers: &mut [Server], (from, news): (usize, News)) {
    let Some(server) = servers.get_mut(from) else {
        return;
    };
    match news {
        News::Known(all, revision) => {
            *server = Server { all: Some(all), revision: Some(revision), lost: None, why: None };
        }
        News::Lost(why) => {
            server.lost.get_or_insert_with(Instant::now);
            server.why = Some(why);
        }
    }
}

/// The union of the lists of the servers that are connected, or were until a moment ago; if there is none, of the last
/// lists of all servers.
/// `None`: none has ever answered.
fn union(servers: &[Server], now: Instant) -> Option<Vec<Arc<Instance>>> {
    let is_there = |server: &&Server| server.all.is_some() && server.lost.is_none();
    let is_near = |server: &&Server| server.lost.is_some_and(|lost| now < lost + LOST);
    let is_any = servers.iter().any(|server| is_there(&server));
    let there = servers.iter().filter(is_there);
    let lost = servers.iter().filter(|server| server.lost.is_some() && (!is_any || is_near(server)));
    let mut lists = there.chain(lost).filter_map(|server| server.all.as_ref()).peekable();
    lists.peek()?;
    let mut all = All::new();
    for (id, instance) in lists.flatten() {
        all.entry(id.clone()).or_insert_with(|| instance.clone());
    }
    Some(all.into_values().collect())
}

/// The pause before the next watch. A server that was restarted answers the first one, but no longer has its changes: after
/// a long outage the next one does not wait for another turn.
fn pause(ended: &End, pace: &mut Pace, now: clock::Instant, random: &Random) -> Duration {
    if matches!(ended, End::Behind) {
        pace.answered();
    }
    pace.next(now, random)
}

// === impl Follower ===

impl Follower<'_> {
    async fn run(mut self, jitter: Duration) {
        let mut pace = Pace::new(jitter);
        let mut is_lost = false;
        loop {
            let ended = match self.watch(&mut pace, &mut is_lost).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            };
            let pause = pause(&ended, &mut pace, clock::Instant::now(), self.client.random());
            match ended {
                End::Behind => self.at = None,
                // A stream breaks when a server restarts; it may be back at once.
                End::Failed(why) if pace.failures() > 1 || self.at.is_none() => {
                    if !std::mem::replace(&mut is_lost, true) {
                        tracing::debug!(service = self.service, why, "a registry server is not reached");
                        if self.to.send((self.server, News::Lost(why))).await.is_err() {
                            return;
                        }
                    }
                }
                End::Failed(_) => {}
            }
            sleep(pause).await;
        }
    }

    /// One watch, from the list or from where the last one has ended.
    async fn watch(&mut self, pace: &mut Pace, is_lost: &mut bool) -> Result<std::convert::Infallible, End> {
        let begun = self.client.watch(self.server, self.service, self.at).await;
        let mut body = begun.map_err(|failure| match failure.status {
            Some(StatusCode::GONE) => End::Behind,
            _ => End::Failed(failure.why),
        })?;
        let name = self.client.name(self.server);
        let failed = |why: &str| End::Failed(format!("the registry server {name}: {why}"));
        let (mut reader, mut list) = (Reader::new(MAX_EVENT), None);
        loop {
            let frame = timeout(SILENCE, body.frame()).await.map_err(|_| failed("no event in time"))?;
            let frame = frame.ok_or_else(|| failed("a watch has ended"))?;
            let frame = frame.map_err(|error| failed(&error.to_string()))?;
            let Some(bytes) = frame.data_ref() else {
                continue;
            };
            let mut is_news = false;
            for event in reader.read(bytes).map_err(|why| failed(&why))? {
                is_news |= self.take_in(event, &mut list)?;
            }
            if list.is_some() {
                continue;
            }
            pace.reset();
            // Also without news: it is there again.
            if let Some(at) = self.at.filter(|_| is_news | std::mem::replace(is_lost, false)) {
                let news = (self.server, News::Known(self.all.clone(), at));
                if self.to.send(news).await.is_err() {
                    return Err(failed("the process ends"));
                }
            }
        }
    }

    /// Takes in an event; while a list is read, into `list`. Whether there is something to show.
    fn take_in(&mut self, event: Event, list: &mut Option<All>) -> Result<bool, End> {
        let mut is_news = false;
        match event.name.as_str() {
            RESET => *list = Some(All::new()),
            PUT => match serde_json::from_str::<Instance>(&event.data) {
                Ok(instance) => {
                    let all = list.as_mut().unwrap_or(&mut self.all);
                    all.insert(instance.id.clone(), Arc::new(instance));
                    is_news = true;
                }
                Err(error) => {
                    let (service, server) = (self.service, self.client.name(self.server));
                    tracing::warn!(target: "chassis", service, server, %error, "an instance is refused");
                }
            },
            DELETE => {
                if let Ok(Gone { id }) = serde_json::from_str(&event.data) {
                    self.all.remove(&id);
                    is_news = true;
                }
            }
            READY => {
                if let Some(list) = list.take() {
                    self.all = list;
                    is_news = true;
                }
            }
            BEHIND => return Err(End::Behind),
            _ => is_news = event.id.is_some(), // its revision is news for those who wait for it
        }
        if let Some(at) = event.id.and_then(|id| id.parse().ok()) {
            self.at = Some(at);
        }
        Ok(is_news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_without_the_changes_is_asked_again_soon() {
        let (random, start) = (Random::seeded(7), clock::Instant::now());
        let pause_after = |ended: &End| {
            let (mut pace, mut now) = (Pace::new(Duration::from_secs(5)), start);
            while now < start + Duration::from_secs(60) {
                now += pause(&End::Failed(String::new()), &mut pace, now, &random);
            }
            pause(ended, &mut pace, now, &random)
        };
        assert_eq!(pause_after(&End::Failed(String::new())), Duration::from_secs(5));
        assert!(pause_after(&End::Behind) <= Duration::from_millis(500));
    }

    /// Servers by what they list: `+ab` is there, `-ab` was lost a moment ago, `!ab` long ago, `?` has not answered.
    #[tokio::test(start_paused = true)]
    async fn the_union_is_of_those_that_are_there() {
        let now = Instant::now() + LOST * 2;
        let check = |servers: &str, expected: Option<&str>| {
            let server = |text: &str| {
                let all = text[1..].chars().map(|id| (id.to_string(), Arc::new(Instance::new("stock", id))));
                let all = Some(all.collect::<All>());
                match &text[..1] {
                    "+" => Server { all, ..Server::default() },
                    "-" => Server { all, lost: Some(now - LOST / 2), ..Server::default() },
                    "!" => Server { all, lost: Some(now - LOST * 3 / 2), ..Server::default() },
                    _ => Server::default(),
                }
            };
            let servers: Vec<_> = servers.split(' ').map(server).collect();
            let found = union(&servers, now);
            let found = found.map(|all| all.iter().map(|instance| instance.id.as_str()).collect::<String>());
            assert_eq!(found.as_deref(), expected);
        };
        check("+ab +bc", Some("abc"));
        check("+ab -bc", Some("abc"));
        check("+ab !bc", Some("ab"));
        check("!ab !bc", Some("abc"));
        check("-ab !bc ?", Some("abc"));
        check("+ +", Some(""));
        check("? ?", None);
    }
}
