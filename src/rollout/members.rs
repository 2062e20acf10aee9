//! The instances of this service, as its registry lists them, and what they state about new settings.
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chassis_core::{
    Runtime,
    registry::{Instance, Membership, RegistryError},
    tasks::{backoff, caught},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// The instances that share a roll-out.
#[derive(Default)]
pub(super) struct Members {
    /// By id.
    listed: BTreeMap<String, Member>,
}

/// Another instance, or this one.
#[derive(Clone, Debug, PartialEq)]
struct Member {
    instance: Arc<Instance>,
    mark: Option<Mark>,
    /// The time of its removal together with most others: it still counts for a while.
    lost: Option<Instant>,
}

/// The instance of this process.
#[derive(Default)]
pub(super) struct Me {
    pub(super) id: String,
    /// Where others reach it. A registry that is written by other means may list it by another id.
    pub(super) addresses: Vec<String>,
    /// Its environment; instances that state another one roll out on their own.
    pub(super) environment: String,
}

/// A statement about settings, which an instance publishes in its registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(super) hash: String,
    pub(super) word: Word,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// They are in force in an instance that has them first, and are watched.
    Baking,
    /// They did no harm there.
    Proven,
    /// They did harm there.
    Harmful,
}

/// The key of the statement among the fields of an instance.
pub(crate) const KEY: &str = "rollout";
/// How long instances count that were removed together with most others: the registry may have lost its data.
const HOLD: Duration = Duration::from_secs(60);
/// The shortest time between two lists.
const PACE: Duration = Duration::from_millis(50);
/// A registry that does not begin to watch within this time is asked again.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest pause before a registry that fails is asked again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

// === impl Mark ===

impl Mark {
    /// The value under [`KEY`].
    pub(crate) fn to_json(&self) -> Value {
        let word = match self.word {
            Word::Baking => "baking",
            Word::Proven => "proven",
            Word::Harmful => "harmful",
        };
        json!({ "hash": self.hash, "state": word })
    }

    /// Of an instance of any release: anything unknown is no statement.
    fn of(instance: &Instance) -> Option<Self> {
        let (_, value) = instance.others().find(|(key, _)| *key == KEY)?;
        let word = match value.get("state")?.as_str()? {
            "baking" => Word::Baking,
            "proven" => Word::Proven,
            "harmful" => Word::Harmful,
            _ => return None,
        };
        Some(Mark { hash: value.get("hash")?.as_str()?.to_owned(), word })
    }
}

// === impl Members ===

impl Members {
    /// Takes the registry's list.
    pub(super) fn accept(&mut self, list: Vec<Arc<Instance>>, me: &Me, now: Instant) {
        let is_ours = |instance: &Arc<Instance>| {
            let environment = instance.environment();
            environment.is_empty() || environment == me.environment
        };
        let member = |instance: Arc<Instance>| {
            let mark = Mark::of(&instance);
            (instance.id.clone(), Member { instance, mark, lost: None })
        };
        let listed: BTreeMap<_, _> = list.into_iter().filter(is_ours).map(member).collect();
        let before = std::mem::replace(&mut self.listed, listed);
        let lost: Vec<_> = before.iter().filter(|(id, _)| !self.listed.contains_key(*id)).collect();
        let is_loss = lost.iter().filter(|(_, member)| member.lost.is_none()).count() * 2 > before.len();
        let kept = lost.into_iter().filter_map(|(id, member)| {
            let since = member.lost.or_else(|| is_loss.then_some(now))?;
            Some((id.clone(), Member { lost: Some(since), ..member.clone() }))
        });
        self.listed.extend(kept.collect::<Vec<_>>());
    }

    /// Drops instances that were lost long ago.
    pub(super) fn expire(&mut self, now: Instant) {
        self.listed.retain(|_, member| member.lost.is_none_or(|since| now < since + HOLD));
    }

    /// When [`expire`](Self::expire) will drop one.
    pub(super) fn due(&self) -> Option<Instant> {
        self.listed.values().filter_map(|member| member.lost).min().map(|since| since + HOLD)
    }

    /// The id of this process, as the registry has it.
    pub(super) fn own_id<'a>(&'a self, me: &'a Me) -> &'a str {
        let is_here = |member: &&Member| {
            let mut addresses = member.instance.addresses.iter();
            addresses.any(|(_, address)| me.addresses.iter().any(|own| own == address))
        };
        if self.listed.contains_key(&me.id) {
            return &me.id;
        }
        self.listed.values().find(is_here).map_or(&me.id, |member| &member.instance.id)
    }

    /// The ids of all instances that take calls, and of this one.
    pub(super) fn ids<'a>(&'a self, me: &'a Me) -> Vec<&'a str> {
        let up = self.listed.values().filter(|member| member.instance.status().is_up());
        let mut ids: Vec<_> = up.map(|member| &*member.instance.id).chain([self.own_id(me)]).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Another instance that states that settings with this hash did harm.
    pub(super) fn harmed<'a>(&'a self, hash: &str, me: &Me) -> Option<&'a str> {
        let own = self.own_id(me);
        self.marks(hash).find(|(id, word)| *word == Word::Harmful && *id != own).map(|(id, _)| id)
    }

    /// Whether one of these instances watches the settings with this hash.
    pub(super) fn are_baking(&self, hash: &str, ids: &[&str]) -> bool {
        self.marks(hash).any(|(id, word)| word == Word::Baking && ids.contains(&id))
    }

    fn marks<'a>(&'a self, hash: &str) -> impl Iterator<Item = (&'a str, Word)> {
        self.listed.values().filter_map(move |member| {
            let mark = member.mark.as_ref().filter(|mark| mark.hash == hash)?;
            Some((&*member.instance.id, mark.word))
        })
    }
}

/// Calls `listed` with each list of the registry, for ever. An error, a panic and no answer are no news.
pub(super) async fn follow(runtime: &Runtime, listed: impl Fn(Vec<Arc<Instance>>)) {
    let (registry, service) = (runtime.registry(), runtime.service());
    let mut failures = 0;
    loop {
        let followed = async {
            let late = |_| RegistryError::new("it does not answer");
            let mut watcher = timeout(ANSWER, registry.watch(service)).await.map_err(late)??;
            loop {
                match watcher.next().await? {
                    Membership::Known(list) => listed(list),
                    Membership::Unknown | Membership::Deleted => listed(Vec::new()),
                }
                failures = 0;
                tokio::time::sleep(PACE).await;
            }
            #[allow(unreachable_code, reason = "names the type of the error")]
            Ok::<(), RegistryError>(())
        };
        let why = match caught(followed).await {
            Ok(Err(error)) => error.to_string(),
            Ok(Ok(())) => String::new(),
            Err(panicked) => panicked.to_string(),
        };
        tracing::debug!(target: "chassis", why, "the instances of this service are not known anew");
        failures += 1;
        tokio::time::sleep(backoff(failures, LONGEST_PAUSE, runtime.random())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str) -> Instance {
        Instance::new("stock", id).with_address("grpc", format!("memory:{id}"))
    }

    fn me(id: &str) -> Me {
        Me { id: id.into(), addresses: vec![format!("memory:{id}")], environment: "prod".into() }
    }

    fn list(ids: &str) -> Vec<Arc<Instance>> {
        ids.split_whitespace().map(|id| instance(id).into()).collect()
    }

    /// Feeds lists, second by second, and compares the ids after each.
    #[track_caller]
    fn check(lists: &[(u64, &str, &str)]) {
        let (mut members, me, start) = (Members::default(), me("a"), Instant::now());
        for (second, listed, expected) in lists {
            let now = start + Duration::from_secs(*second);
            members.accept(list(listed), &me, now);
            members.expire(now);
            assert_eq!(members.ids(&me).join(" "), *expected, "second {second}");
        }
    }

    #[test]
    fn instances_that_go_with_most_others_count_for_a_while() {
        check(&[(0, "a b c d", "a b c d"), (1, "a b c", "a b c"), (2, "b c d e", "a b c d e")]);
        check(&[(0, "a b c d", "a b c d"), (1, "", "a b c d"), (60, "", "a b c d"), (61, "", "a")]);
        check(&[(0, "a b c d", "a b c d"), (1, "a", "a b c d"), (30, "a b", "a b c d"), (61, "a b", "a b")]);
        check(&[(0, "", "a")]);
    }

    #[test]
    fn this_process_is_recognised_by_its_address() {
        let mut members = Members::default();
        let slice = Instance::new("stock", "pod-7").with_address("http", "memory:a");
        members.accept(vec![slice.into(), instance("b").into()], &me("a"), Instant::now());
        assert_eq!((members.own_id(&me("a")), members.ids(&me("a"))), ("pod-7", vec!["b", "pod-7"]));
    }

    #[test]
    fn others_are_of_the_same_environment_and_take_calls() {
        use chassis_core::registry::Status;
        let mut members = Members::default();
        let list = [
            instance("b").with_environment("prod"),
            instance("c").with_environment("test"),
            instance("d").with_status(Status::OutOfService),
            instance("e"),
        ];
        members.accept(list.map(Arc::new).to_vec(), &me("a"), Instant::now());
        assert_eq!(members.ids(&me("a")), ["a", "b", "e"]);
    }

    #[test]
    fn statements_are_read_as_they_are_written() {
        let mut members = Members::default();
        for word in [Word::Baking, Word::Proven, Word::Harmful] {
            let mark = Mark { hash: "h".into(), word };
            let marked = instance("b").with_other(KEY, mark.to_json());
            let again: Instance = serde_json::from_str(&serde_json::to_string(&marked).unwrap()).unwrap();
            assert_eq!(Mark::of(&again), Some(mark));
            members.accept(vec![marked.into()], &me("a"), Instant::now());
            assert_eq!(members.harmed("h", &me("a")).is_some(), word == Word::Harmful);
            assert_eq!(members.are_baking("h", &["b"]), word == Word::Baking);
            assert!(members.harmed("i", &me("a")).is_none() && members.harmed("h", &me("b")).is_none());
        }
        for odd in [
            json!(7),
            json!({ "hash": "h" }),
            json!({ "hash": 1, "state": "harmful" }),
            json!({ "hash": "h", "state": "x" }),
        ] {
            assert_eq!(Mark::of(&instance("b").with_other(KEY, odd)), None);
        }
    }
}
