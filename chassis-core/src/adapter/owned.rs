//! The entry of one process: one task owns it, from its registration until it is taken down.
use std::time::Duration;

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use crate::{plugin::registry::RegistryError, tasks::Tasks};

/// The entry of an instance in a registry's server.
///
/// Its functions run in one task, one after the other.
#[async_trait]
pub trait Entry: Send + 'static {
    /// The content that an update brings.
    type Value: Send + 'static;
    /// The result of its end.
    type Ended: Send + 'static;

    /// Puts it up for the first time. An entry of an earlier life of this process is replaced.
    async fn put_up(&mut self) -> Result<(), RegistryError>;

    /// Keeps it there, and puts it up again when it went. Takes `updates` in between. Never returns: it is dropped.
    async fn keep(&mut self, updates: &mut Updates<Self::Value>);

    /// Takes it down, if it is this process's. Also called for one that [`put_up`](Self::put_up) has half put up.
    async fn take_down(&mut self) -> Result<Self::Ended, RegistryError>;
}

/// An entry with its task. Dropping it takes the entry down.
pub struct Owned<E: Entry> {
    end: Option<oneshot::Sender<oneshot::Sender<Ended<E>>>>,
    updates: mpsc::Sender<Update<E::Value>>,
    /// For messages.
    name: String,
}

/// The updates of an entry.
pub struct Updates<V>(mpsc::Receiver<Update<V>>);

struct Update<V> {
    value: V,
    done: oneshot::Sender<Result<(), RegistryError>>,
}

/// The result of the end of an entry.
type Ended<E> = Result<<E as Entry>::Ended, RegistryError>;

/// The longest time that taking an entry down may take.
const END: Duration = Duration::from_secs(5);

// === impl Owned ===

impl<E: Entry> Owned<E> {
    /// Puts the entry up, in a task of its own among `tasks` that goes on after that. `name` is for messages.
    ///
    /// If the future is dropped, what is half put up is taken down.
    ///
    /// # Errors
    /// The one of [`Entry::put_up`].
    pub async fn begin(tasks: &Tasks, name: String, entry: E) -> Result<Self, RegistryError> {
        let (end, asked) = oneshot::channel();
        let (ready, is_up) = oneshot::channel();
        let (updates, updated) = mpsc::channel(1);
        let owned = Owned { end: Some(end), updates, name: name.clone() };
        tasks.spawn(own(entry, name, Updates(updated), ready, asked));
        is_up.await.unwrap_or_else(|_| Err(RegistryError::new("the process ends"))).map(|()| owned)
    }

    /// Replaces the entry. While it is not there, this waits until it is put up again.
    ///
    /// # Errors
    /// The entry is as it was, or the registration has ended.
    pub async fn update(&mut self, value: E::Value) -> Result<(), RegistryError> {
        let (done, updated) = oneshot::channel();
        let ended = || RegistryError::new("the registration has ended");
        self.updates.send(Update { value, done }).await.map_err(|_| ended())?;
        updated.await.unwrap_or_else(|_| Err(ended()))
    }

    /// Takes the entry down, within 5 s. `None`: its task is gone, and with it the entry.
    ///
    /// # Errors
    /// The one of [`Entry::take_down`], or it took too long.
    pub async fn end(mut self) -> Result<Option<E::Ended>, RegistryError> {
        let (done, ended) = oneshot::channel();
        if let Some(end) = self.end.take() {
            // A task that is gone has nothing to take down.
            let _ = end.send(done);
        }
        match timeout(END, ended).await {
            Ok(Ok(ended)) => ended.map(Some),
            Ok(Err(_)) => Ok(None),
            Err(_) => Err(RegistryError::new(format!("`{}` was not taken down within {END:?}", self.name))),
        }
    }
}

async fn own<E: Entry>(
    mut entry: E,
    name: String,
    mut updates: Updates<E::Value>,
    ready: oneshot::Sender<Result<(), RegistryError>>,
    mut asked: oneshot::Receiver<oneshot::Sender<Ended<E>>>,
) {
    // To the end also where its asker has gone: what is half up is taken down below.
    let up = entry.put_up().await;
    let is_up = up.is_ok();
    let is_heard = ready.send(up).is_ok();
    if is_up && is_heard {
        let done = tokio::select! {
            done = &mut asked => done.ok(),
            () = entry.keep(&mut updates) => None,
        };
        let ended = entry.take_down().await;
        match done {
            Some(done) => drop(done.send(ended)),
            None => report(&name, ended),
        }
    } else {
        let ended = entry.take_down().await;
        report(&name, ended);
    }
}

fn report<T>(name: &str, ended: Result<T, RegistryError>) {
    if let Err(error) = ended {
        tracing::debug!(target: "chassis", name, %error, "an entry was not taken down");
    }
}

// === impl Updates ===

impl<V> Updates<V> {
    /// The next update, and a function that says how it ended. Pending once there can't be one any more. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self) -> (V, impl FnOnce(Result<(), RegistryError>) + Send + use<V>) {
        match self.0.recv().await {
            Some(Update { value, done }) => (value, move |ended| drop(done.send(ended))),
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Writes down what is done with it.
    struct Log(Arc<Mutex<Vec<String>>>, Duration);

    #[async_trait]
    impl Entry for Log {
        type Value = &'static str;
        type Ended = ();

        async fn put_up(&mut self) -> Result<(), RegistryError> {
            self.0.lock().unwrap().push("up".into());
            tokio::time::sleep(self.1).await;
            Ok(())
        }

        async fn keep(&mut self, updates: &mut Updates<&'static str>) {
            loop {
                let (value, done) = updates.next().await;
                self.0.lock().unwrap().push(value.into());
                done(Ok(()));
            }
        }

        async fn take_down(&mut self) -> Result<(), RegistryError> {
            self.0.lock().unwrap().push("down".into());
            Ok(())
        }
    }

    fn log(takes: u64) -> (Log, impl Fn() -> Vec<String>) {
        let log = Arc::new(Mutex::new(Vec::new()));
        (Log(log.clone(), Duration::from_secs(takes)), move || log.lock().unwrap().clone())
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_is_put_up_updated_and_taken_down() {
        let (tasks, (entry, said)) = (Tasks::new(), log(1));
        let mut owned = Owned::begin(&tasks, "a".into(), entry).await.unwrap();
        owned.update("new").await.unwrap();
        assert_eq!(owned.end().await.unwrap(), Some(()));
        assert_eq!(said(), ["up", "new", "down"]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_is_let_go_is_taken_down() {
        let (tasks, (entry, said)) = (Tasks::new(), log(0));
        drop(Owned::begin(&tasks, "a".into(), entry).await.unwrap());
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(said(), ["up", "down"]);
        let (tasks, (entry, said)) = (Tasks::new(), log(2));
        // Given up half way.
        assert!(timeout(Duration::from_secs(1), Owned::begin(&tasks, "a".into(), entry)).await.is_err());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(said(), ["up", "down"]);
    }
}
