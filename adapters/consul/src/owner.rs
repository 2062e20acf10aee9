//! The entry of one process on the agent.
use std::time::Duration;

use async_trait::async_trait;
use chassis_core::{
    adapter::{Entry, Pace, Throttle, Updates},
    clock,
    registry::RegistryError,
};
use serde::Deserialize;
use tokio::{sync::watch, time::sleep};

use crate::{
    client::{After, Client, Failure, Query},
    entry::{Definition, OWNER},
};

/// An instance that this process has registered.
pub(crate) struct Own {
    client: Client,
    definition: Definition,
    /// Distinguishes this registration from others of the same id.
    owner: String,
    /// How often the process says that it lives; `None`: the agent asks by itself.
    renew: Option<Duration>,
    pace: Pace,
    /// The token that the agent has for it. It writes to the catalog with the one that came with the registration.
    token: Option<String>,
}

/// The entry, as the agent has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// It is this registration's.
    Ours,
    /// It is another one's, of the same id.
    Taken,
    Gone,
}

/// A service as the agent describes it.
#[derive(Deserialize)]
struct Service {
    #[serde(rename = "Meta", default)]
    meta: Option<std::collections::BTreeMap<String, String>>,
}

// === impl Own ===

impl Own {
    pub(crate) fn new(
        client: Client,
        definition: Definition,
        owner: String,
        ttl: Option<Duration>,
        jitter: Duration,
    ) -> Self {
        let pace = Pace::new(jitter);
        Own { client, definition, owner, renew: ttl.map(|ttl| ttl / 3), pace, token: None }
    }

    async fn register(&mut self, definition: &Definition) -> Result<(), Failure> {
        let token = self.client.token().await?;
        // Checks of an earlier life would stay, and be critical.
        let query =
            Query::agent("/v1/agent/service/register", "", "").with("replace-existing-checks", "true");
        found(self.client.put(&query, &definition.body).await)?;
        // The request has read it anew. If it was replaced in between, that is found out once more.
        self.token = token;
        Ok(())
    }

    fn error(&self, failure: Failure) -> RegistryError {
        RegistryError::new(format!("{}: {failure}", self.client.name()))
    }

    /// Registers until that works.
    async fn register_again(&mut self) {
        let (mut pace, definition) = (self.pace.beside(), self.definition.clone());
        while let Err(failure) = self.register(&definition).await {
            tracing::debug!(id = self.definition.id, %failure, "not in Consul yet");
            sleep(pace.next(clock::Instant::now(), self.client.random())).await;
        }
    }

    /// Says that the process lives until the agent does not know it any more.
    async fn renew(&self) {
        let Some(every) = self.renew else { return std::future::pending().await };
        let query = Query::agent("/v1/agent/check/update/{check}", "check", self.definition.check.as_str());
        let (mut pace, body) = (self.pace.beside(), serde_json::json!({ "Status": self.definition.status }));
        loop {
            let pause = match self.client.put(&query, &body).await {
                Ok(answer) if !answer.is_there => return,
                Ok(_) => {
                    pace.reset();
                    every
                }
                Err(failure) => {
                    tracing::debug!(id = self.definition.id, %failure, "a check of Consul is not renewed");
                    pace.next(clock::Instant::now(), self.client.random())
                }
            };
            sleep(pause).await;
        }
    }

    /// Has the token been replaced since the registration?
    async fn has_other_token(&self) -> bool {
        self.client.token().await.is_ok_and(|token| token != self.token)
    }

    /// Resolves when it has.
    async fn token_replaced(&self) {
        while !self.has_other_token().await {
            sleep(TOKEN_EVERY).await;
        }
    }

    /// Looks at the entry. `after`: once it has changed.
    async fn look(&self, after: &After) -> Result<(Seen, After), Failure> {
        let query = Query::agent("/v1/agent/service/{id}", "id", self.definition.id.as_str());
        let answer = self.client.get(&query, after).await?;
        if !answer.is_there {
            return Ok((Seen::Gone, After::Nothing));
        }
        let service: Service = serde_json::from_slice(&answer.body)
            .map_err(|error| Failure::of(format!("a service of the agent: {error}")))?;
        let is_ours = service.meta.is_some_and(|meta| meta.get(OWNER) == Some(&self.owner));
        let after = answer.hash.map_or(After::Nothing, After::Hash);
        Ok((if is_ours { Seen::Ours } else { Seen::Taken }, after))
    }

    /// Follows the entry until it is dropped.
    async fn follow(&self, seen: watch::Sender<Option<Seen>>) {
        let (mut pace, mut throttle, mut after) = (self.pace.beside(), Throttle::default(), After::Nothing);
        loop {
            sleep(throttle.pause(clock::Instant::now())).await;
            let pause = match self.look(&after).await {
                Ok((now, next)) => {
                    seen.send_if_modified(|seen| seen.replace(now) != Some(now));
                    pace.reset();
                    // Without a hash nothing can be waited for.
                    let is_waiting = next != After::Nothing;
                    after = next;
                    if is_waiting { Duration::ZERO } else { UNHASHED }
                }
                Err(failure) => {
                    tracing::debug!(id = self.definition.id, %failure, "an entry of Consul is not followed");
                    after = After::Nothing;
                    pace.next(clock::Instant::now(), self.client.random())
                }
            };
            sleep(pause).await;
        }
    }
}

/// How often the token is compared with that of the registration.
const TOKEN_EVERY: Duration = Duration::from_secs(1);
/// How often an entry is looked for that can't be waited for.
const UNHASHED: Duration = Duration::from_millis(500);

#[async_trait]
impl Entry for Own {
    type Value = Definition;
    type Ended = ();

    async fn put_up(&mut self) -> Result<(), RegistryError> {
        let definition = self.definition.clone();
        self.register(&definition).await.map_err(|failure| self.error(failure))
    }

    async fn keep(&mut self, updates: &mut Updates<Definition>) {
        loop {
            let (seen, mut presence) = watch::channel(None);
            let lost = async {
                let is_lost = |seen: &Option<Seen>| seen.is_some_and(|seen| seen != Seen::Ours);
                let lost = presence.wait_for(is_lost).await.map(|seen| *seen);
                lost.ok().flatten().unwrap_or(Seen::Gone)
            };
            let ended = tokio::select! {
                lost = lost => Ok(lost),
                () = self.renew() => Ok(Seen::Gone),
                () = self.token_replaced() => Ok(Seen::Ours),
                () = self.follow(seen) => Ok(Seen::Gone),
                update = updates.next() => Err(update),
            };
            match ended {
                Ok(Seen::Taken) => {
                    tracing::warn!(target: "chassis", id = self.definition.id, "another process has registered the same id in Consul");
                    self.wait_until_gone().await;
                }
                Ok(Seen::Gone) => {
                    tracing::warn!(target: "chassis", id = self.definition.id, "the entry in Consul went; it is put up again");
                }
                Ok(Seen::Ours) => {
                    tracing::debug!(
                        id = self.definition.id,
                        "registered again in Consul, with another token"
                    );
                }
                Err((definition, done)) => {
                    match self.register(&definition).await {
                        Ok(()) => {
                            self.definition = definition;
                            done(Ok(()));
                        }
                        Err(failure) => done(Err(self.error(failure))),
                    }
                    continue;
                }
            }
            self.register_again().await;
        }
    }

    async fn take_down(&mut self) -> Result<(), RegistryError> {
        match self.look(&After::Nothing).await {
            Ok((Seen::Ours, _)) => {}
            Ok((Seen::Taken | Seen::Gone, _)) => return Ok(()),
            Err(failure) => return Err(self.error(failure)),
        }
        if self.has_other_token().await {
            // The agent could not take it out of the catalog with a token that is gone.
            let definition = self.definition.clone();
            self.register(&definition).await.map_err(|failure| self.error(failure))?;
        }
        let query = Query::agent("/v1/agent/service/deregister/{id}", "id", self.definition.id.as_str());
        match self.client.put(&query, &()).await {
            Ok(_) => Ok(()), // 404: it went by itself
            Err(failure) => Err(self.error(failure)),
        }
    }
}

impl Own {
    /// Waits until the other process has taken its entry down.
    async fn wait_until_gone(&self) {
        let (seen, mut presence) = watch::channel(None);
        let gone = presence.wait_for(|seen| *seen == Some(Seen::Gone));
        tokio::select! {
            _ = gone => {}
            () = self.follow(seen) => {}
        }
    }
}

/// An answer 404 is a failure, too.
fn found(answer: Result<crate::client::Answer, Failure>) -> Result<(), Failure> {
    match answer {
        Ok(answer) if answer.is_there => Ok(()),
        Ok(_) => Err(Failure::of("it answers 404".to_owned())),
        Err(failure) => Err(failure),
    }
}
