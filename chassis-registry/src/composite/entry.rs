//! The entries of one process: one at each member that is written.
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    adapter::{Entry, Owned, Updates},
    registry::{Instance, Registration, RegistryError},
    tasks::{backoff, caught},
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{CompositeRegistry, Member};

/// The registration with all members that are written.
pub(super) struct Registered {
    registry: CompositeRegistry,
    service: String,
    id: String,
    entries: Vec<(usize, Owned<MemberEntry>)>,
}

/// The entry at one member. Its task registers it again until it succeeds.
pub(super) struct MemberEntry {
    member: Member,
    wanted: Instance,
    registration: Option<Box<dyn Registration>>,
    failures: u32,
    first: Arc<FirstTry>,
}

/// The result of the first try to register.
#[derive(Default)]
struct FirstTry {
    is_up: AtomicBool,
    why: Mutex<String>,
}

/// The time limit of the first try at a member, and of an update: neither waits longer for one that does not answer.
const FIRST_TRY: Duration = Duration::from_secs(3);
/// The time limit of a later try to register.
const TRY: Duration = Duration::from_secs(10);
/// An update waits this long for all members. Then one that has accepted it is enough, and the others are tried again.
const UPDATE: Duration = Duration::from_secs(3);
/// The time limit of a deregistration at one member.
const DEREGISTER: Duration = Duration::from_secs(2);
/// The longest pause before a member is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

// === impl Registered ===

impl Registered {
    /// Registers with all members at once.
    ///
    /// # Errors
    /// None has accepted the instance.
    pub(super) async fn begin(
        registry: &CompositeRegistry,
        instance: Instance,
    ) -> Result<Self, RegistryError> {
        let (mut begun, mut firsts) = (JoinSet::new(), Vec::new());
        for (at, member) in registry.members.iter().enumerate().filter(|(_, member)| member.mode.writes()) {
            let first = Arc::<FirstTry>::default();
            firsts.push((member.name.clone(), first.clone()));
            let entry = MemberEntry {
                member: member.clone(),
                wanted: instance.clone(),
                registration: None,
                failures: 0,
                first,
            };
            let (tasks, name) = (registry.tasks().clone(), format!("{} at {}", instance.id, member.name));
            begun.spawn(async move { (at, Owned::begin(&tasks, name, entry).await) });
        }
        let mut entries = Vec::new();
        while let Some(entry) = begun.join_next().await {
            // An error means that the process ends.
            if let Ok((at, Ok(entry))) = entry {
                entries.push((at, entry));
            }
        }
        if !firsts.iter().any(|(_, first)| first.is_up.load(Ordering::Acquire)) {
            let why = |(name, first): &(Arc<str>, Arc<FirstTry>)| format!("`{name}`: {}", first.why());
            let why: Vec<_> = firsts.iter().map(why).collect();
            return Err(RegistryError::new(format!("no member accepted the instance: {}", why.join("; "))));
        }
        let Instance { service, id, .. } = instance;
        Ok(Registered { registry: registry.clone(), service, id, entries })
    }
}

#[async_trait]
impl Registration for Registered {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        crate::check_update(&instance, &self.service, &self.id)?;
        let (mut updating, mut accepted, mut why) = (JoinSet::new(), false, Vec::new());
        let count = self.entries.len();
        for (at, mut entry) in self.entries.drain(..) {
            let instance = instance.clone();
            updating.spawn(async move {
                let updated = timeout(UPDATE, entry.update(instance)).await;
                (at, entry, updated)
            });
        }
        while let Some(updated) = updating.join_next().await {
            let Ok((at, entry, updated)) = updated else { continue };
            let name = &self.registry.members[at].name;
            match updated {
                Ok(Ok(())) => accepted = true,
                Ok(Err(error)) => why.push(format!("`{name}`: {error}")),
                Err(_) => why.push(format!("`{name}` has not accepted it within {UPDATE:?}")),
            }
            self.entries.push((at, entry));
        }
        match accepted && self.entries.len() == count {
            true if why.is_empty() => Ok(()),
            true => {
                let why = why.join("; ");
                tracing::warn!(target: "chassis", instance = self.id, why, "a change of the instance is tried again");
                Ok(())
            }
            false => Err(RegistryError::new(format!("no member accepted the change: {}", why.join("; ")))),
        }
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        let Registered { registry, service, id, entries } = *self;
        let (mut ending, mut gone, mut why) = (JoinSet::new(), Vec::new(), Vec::new());
        for (at, entry) in entries {
            ending.spawn(async move { (at, entry.end().await) });
        }
        while let Some(ended) = ending.join_next().await {
            match ended {
                Ok((at, Ok(_))) => gone.push(at),
                Ok((at, Err(error))) => why.push(format!("`{}`: {error}", registry.members[at].name)),
                Err(_) => {} // the process ends
            }
        }
        registry.gone(&service, &id, &gone).await;
        match why.is_empty() {
            true => Ok(()),
            false => Err(RegistryError::new(why.join("; "))),
        }
    }
}

// === impl MemberEntry ===

impl MemberEntry {
    /// Registers once. A member is code of another crate: its panic is an error.
    async fn register(&mut self, limit: Duration) -> Result<(), String> {
        let registering = self.member.registry.register(self.wanted.clone());
        let why = match caught(timeout(limit, registering)).await {
            Ok(Ok(Ok(registration))) => {
                self.registration = Some(registration);
                self.failures = 0;
                return Ok(());
            }
            Ok(Ok(Err(error))) => super::chain(&error),
            Ok(Err(_)) => format!("it did not register within {limit:?}"),
            Err(panicked) => panicked.to_string(),
        };
        self.failures = self.failures.saturating_add(1);
        Err(why)
    }

    /// Registers again after a pause, until it succeeds.
    async fn register_again(&mut self) {
        while self.registration.is_none() {
            if self.failures > 0 {
                sleep(backoff(self.failures, LONGEST_PAUSE, &self.member.random)).await;
            }
            if let Err(why) = self.register(TRY).await {
                self.report(&why);
            }
        }
    }

    /// Changes the entry. If the member can't, the entry is to be registered anew.
    async fn update(&mut self) {
        let Some(registration) = &mut self.registration else { return };
        let updated = caught(timeout(FIRST_TRY, registration.update(self.wanted.clone()))).await;
        if !matches!(updated, Ok(Ok(Ok(())))) {
            // What can't be taken down is replaced, or its lease ends.
            let _ = self.end().await;
        }
    }

    async fn end(&mut self) -> Result<(), RegistryError> {
        let Some(registration) = self.registration.take() else { return Ok(()) };
        match caught(timeout(DEREGISTER, registration.deregister())).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(RegistryError::new(format!("it did not deregister within {DEREGISTER:?}"))),
            Err(panicked) => Err(RegistryError::new(panicked.to_string())),
        }
    }

    /// Reports the first failure and then fewer and fewer: each is twice as late as the one before.
    fn report(&self, why: &str) {
        let (member, instance) = (&*self.member.name, &self.wanted.id);
        match self.failures.is_power_of_two() {
            true => {
                tracing::warn!(target: "chassis", member, instance, why, "not registered; it is tried again")
            }
            false => {
                tracing::debug!(target: "chassis", member, instance, why, "not registered; it is tried again")
            }
        }
    }
}

#[async_trait]
impl Entry for MemberEntry {
    type Value = Instance;
    type Ended = ();

    /// Also succeeds if the member does not accept the entry: [`keep`](Entry::keep) tries again.
    async fn put_up(&mut self) -> Result<(), RegistryError> {
        match self.register(FIRST_TRY).await {
            Ok(()) => self.first.is_up.store(true, Ordering::Release),
            Err(why) => {
                self.report(&why);
                *self.first.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
            }
        }
        Ok(())
    }

    async fn keep(&mut self, updates: &mut Updates<Instance>) {
        let mut unanswered = Vec::new();
        loop {
            let next = tokio::select! {
                next = updates.next() => Some(next),
                () = self.register_again(), if self.registration.is_none() => None,
            };
            if let Some((wanted, done)) = next {
                self.wanted = wanted;
                self.update().await;
                unanswered.push(done);
            }
            if self.registration.is_some() {
                unanswered.drain(..).for_each(|done| done(Ok(())));
            }
        }
    }

    async fn take_down(&mut self) -> Result<(), RegistryError> {
        self.end().await
    }
}

// === impl FirstTry ===

impl FirstTry {
    fn why(&self) -> String {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
