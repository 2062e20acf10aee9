//! Follows the instances of a service: asks for them, waits for a push or for the time, and asks again.
//!
//! An answer with the revision of the last one has no list (304). A service that nobody has registered yet can't be
//! pushed: the server has nothing to note that the consumer depends on, so it is asked for more often. The same holds
//! for the first moments of a service, because the server notes a dependency a while after it was asked.
use std::time::Duration;

use chassis_core::{
    adapter::{Pace, Throttle},
    clock,
};
use http::StatusCode;
use tokio::time::{sleep, timeout};

use crate::{
    client::{Answer, Client, Failure, Query},
    link::{Link, Wake},
    settings::ServiceCombConfig,
};

/// Builds a view of what is read.
pub(crate) trait View: Send {
    /// Takes in a list, or that the server does not know the service. Or says why it is not to be believed.
    fn show(&mut self, list: Option<Answer>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// The server can't be asked; it is not said again until it can.
    fn fail(&mut self, why: &Failure);
}

/// Asks for the instances of one service.
pub(crate) struct Finder {
    client: Client,
    link: Link,
    config: ServiceCombConfig,
    /// The name of the service on the server.
    name: String,
    /// The revision of the list that the view shows; `None`: it shows none.
    revision: Option<String>,
    /// The consumer that has asked for the list. Another one is not pushed to.
    asked_by: Option<String>,
    /// When it has asked for the first time.
    asked_at: Option<clock::Instant>,
    is_unknown: bool,
}

/// The server's findings.
enum Found {
    List(Answer),
    /// The list of before.
    Same,
    Unknown,
}

/// How long until a service is asked for again that the server does not know, or knows since just now.
const SOON: Duration = Duration::from_secs(1);
/// Within this time the server has noted what a consumer depends on.
const NOTED: Duration = Duration::from_secs(5);
/// The error of service center: a service does not exist, be it the consumer or the one that is looked for.
const NO_SERVICE: u32 = 400_012;

/// Follows a service until it is dropped.
pub(crate) async fn follow<V: View>(mut finder: Finder, mut wake: Wake, view: &mut V) {
    let (mut pace, mut throttle) = (Pace::new(finder.config.jitter.0), Throttle::default());
    let (mut is_known, mut has_failed, mut is_woken) = (false, false, true);
    loop {
        sleep(throttle.pause(clock::Instant::now())).await;
        let answered = async {
            match finder.find(is_woken).await? {
                Found::List(answer) => {
                    let revision = answer.header("x-resource-revision");
                    view.show(Some(answer)).await?;
                    finder.revision = revision.filter(|revision| !revision.is_empty());
                }
                Found::Same => {}
                Found::Unknown => {
                    view.show(None).await?;
                    finder.revision = None;
                }
            }
            Ok::<_, Failure>(())
        };
        match answered.await {
            Ok(()) => {
                (is_known, has_failed) = (true, false);
                pace.reset();
                let pause = finder.pause();
                is_woken = timeout(pause, wake.news()).await.is_ok();
            }
            Err(why) => {
                // When it answers again, its revision may be that of another life.
                finder.revision = None;
                is_woken = true;
                let pause = pace.next(clock::Instant::now(), finder.client.random());
                // A connection breaks when the server restarts, which may be back at once.
                if (pace.failures() > 1 || !is_known) && !has_failed {
                    has_failed = true;
                    view.fail(&why);
                }
                sleep(pause).await;
            }
        }
    }
}

// === impl Finder ===

impl Finder {
    pub(crate) fn new(client: Client, link: Link, config: ServiceCombConfig, name: String) -> Self {
        let (revision, asked_by, asked_at, is_unknown) = (None, None, None, false);
        Finder { client, link, config, name, revision, asked_by, asked_at, is_unknown }
    }

    /// How long the last answer is good, unless there is a push.
    fn pause(&self) -> Duration {
        let refresh = self.config.refresh.get();
        // Processes that begin together do not ask together for ever.
        let is_new = self.asked_at.is_some_and(|at| at.elapsed() < NOTED);
        let longest = match self.is_unknown || is_new {
            true => SOON.min(refresh),
            false => refresh,
        };
        self.client.random().between(longest - longest / 10, longest)
    }

    /// `is_fresh`: not from the server's cache, which is a moment older than its pushes.
    async fn find(&mut self, is_fresh: bool) -> Result<Found, Failure> {
        let consumer = self.link.consumer();
        if consumer != self.asked_by {
            (self.asked_by, self.asked_at) = (consumer.clone(), None);
        }
        // The server notes no dependency on a service that it does not know.
        if self.is_unknown && matches!(self.ask(None, is_fresh).await?, Found::Unknown) {
            return Ok(Found::Unknown);
        }
        let mut found = self.ask(consumer.clone(), is_fresh).await?;
        if let (Found::Unknown, Some(consumer)) = (&found, &consumer) {
            // One of the two is not known.
            found = self.ask(None, is_fresh).await?;
            if !matches!(found, Found::Unknown) {
                self.link.lost(consumer);
            }
        }
        self.is_unknown = matches!(found, Found::Unknown);
        self.asked_at = match (self.is_unknown, consumer) {
            (false, Some(_)) => self.asked_at.or_else(|| Some(clock::Instant::now())),
            _ => None,
        };
        Ok(found)
    }

    async fn ask(&self, consumer: Option<String>, is_fresh: bool) -> Result<Found, Failure> {
        let mut query = Query::get("/v4/{project}/registry/instances")
            .with("appId", self.config.app.as_str())
            .with("serviceName", self.name.as_str())
            .with("version", "0.0.0.0+")
            .of(consumer);
        if !self.config.environment.is_empty() {
            query = query.with("env", self.config.environment.as_str());
        }
        if is_fresh {
            query = query.with("noCache", "1");
        }
        if let Some(revision) = &self.revision {
            query = query.with("rev", revision.as_str());
        }
        match self.client.send(&query).await {
            Ok(answer) if answer.is_modified => Ok(Found::List(answer)),
            Ok(_) if self.revision.is_some() => Ok(Found::Same),
            Ok(_) => Err(Failure::of(format!("it answers {} without being asked", StatusCode::NOT_MODIFIED))),
            Err(failure) if failure.code == NO_SERVICE => Ok(Found::Unknown),
            Err(failure) => Err(failure),
        }
    }
}
