//! The instances of this service, as its registry lists them, and what they state about new settings.
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use chassis_core::{
    Runtime,
    registry::{Instance, Membership, RegistryError},
    tasks::{backoff, caught},
    units::Ratio,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::rank::{count, ranked};

/// The instances that share a roll-out.
#[derive(Default)]
pub(super) struct Members {
    /// By id.
    listed: BTreeMap<String, Member>,
    /// The instances that had settings first, by the hash of those, the newest first.
    bakers: VecDeque<(String, BTreeMap<String, Baker>)>,
}

/// An instance that stated that it has settings first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Baker {
    /// It does so, and takes calls.
    Bakes {
        /// When its process began, if the registry keeps that.
        process: Option<SystemTime>,
    },
    /// It found no harm.
    Proved,
    /// It is gone, takes no calls, or began anew, before it stated a result.
    Gone,
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
/// The number of hashes whose first instances are remembered.
const MOST_HASHES: usize = 20;

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
        self.look(me);
    }

    /// Drops instances that were lost long ago.
    pub(super) fn expire(&mut self, me: &Me, now: Instant) {
        let before = self.listed.len();
        self.listed.retain(|_, member| member.lost.is_none_or(|since| now < since + HOLD));
        if self.listed.len() < before {
            self.look(me);
        }
    }

    /// Remembers the other instances that bake.
    fn look(&mut self, me: &Me) {
        let own = self.own_id(me).to_owned();
        for (id, member) in self.listed.iter().filter(|(id, _)| **id != own) {
            let Some(mark) = member.mark.as_ref().filter(|mark| mark.word != Word::Harmful) else { continue };
            let at = self.bakers.iter().position(|(hash, _)| *hash == mark.hash).unwrap_or_else(|| {
                self.bakers.truncate(MOST_HASHES - 1);
                self.bakers.push_front((mark.hash.clone(), BTreeMap::new()));
                0
            });
            let seen = match mark.word {
                Word::Proven => Baker::Proved,
                _ => Baker::Bakes { process: member.process() },
            };
            self.bakers[at].1.entry(id.clone()).or_insert(seen);
        }
        for (hash, bakers) in &mut self.bakers {
            bakers.retain(|id, baker| match baker.next(hash, self.listed.get(id)) {
                Some(next) => {
                    *baker = next;
                    true
                }
                None => false,
            });
        }
        self.bakers.retain(|(_, bakers)| !bakers.is_empty());
    }

    /// Forgets which instances had the settings with this hash first.
    pub(super) fn forget(&mut self, hash: &str) {
        self.bakers.retain(|(of, _)| of != hash);
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

    /// The ids of all instances that take calls.
    pub(super) fn ids(&self) -> Vec<&str> {
        self.listed.iter().filter(|(_, member)| member.is_up()).map(|(id, _)| &**id).collect()
    }

    /// Those that have the settings with this hash first: by their ranks. One that had them counts although it is gone, so
    /// that no other takes its place.
    pub(super) fn first(&self, hash: &str, share: Ratio) -> Vec<String> {
        let ids = self.ids();
        let count = count(ids.len(), share);
        let bakers = self.bakers(hash).map(|(id, _)| id);
        ranked(hash, ids.iter().copied().chain(bakers)).take(count).map(str::to_owned).collect()
    }

    /// Whether one of these instances takes calls.
    pub(super) fn are_up(&self, ids: &[String]) -> bool {
        ids.iter().any(|id| self.listed.get(id).is_some_and(Member::is_up))
    }

    /// Another instance that states that settings with this hash did harm.
    pub(super) fn harmed<'a>(&'a self, hash: &str, me: &Me) -> Option<&'a str> {
        let own = self.own_id(me);
        self.marks(hash).find(|(id, word)| *word == Word::Harmful && *id != own).map(|(id, _)| id)
    }

    /// Whether another instance watches the settings with this hash, or went away meanwhile.
    pub(super) fn are_baking(&self, hash: &str) -> bool {
        self.bakers(hash).any(|(_, baker)| baker != Baker::Proved)
    }

    /// Whether another instance ever had the settings with this hash first.
    pub(super) fn have_baked(&self, hash: &str) -> bool {
        self.bakers(hash).next().is_some()
    }

    /// Another instance that went away while it watched the settings with this hash. `None` too while nothing is listed.
    pub(super) fn gone(&self, hash: &str) -> Option<&str> {
        let is_known = !self.listed.is_empty();
        self.bakers(hash).find(|(_, baker)| is_known && *baker == Baker::Gone).map(|(id, _)| id)
    }

    fn bakers<'a>(&'a self, hash: &str) -> impl Iterator<Item = (&'a str, Baker)> {
        let of = self.bakers.iter().find(|(of, _)| of == hash);
        of.into_iter().flat_map(|(_, bakers)| bakers.iter().map(|(id, baker)| (&**id, *baker)))
    }

    fn marks<'a>(&'a self, hash: &str) -> impl Iterator<Item = (&'a str, Word)> {
        self.listed.values().filter_map(move |member| {
            let mark = member.mark.as_ref().filter(|mark| mark.hash == hash)?;
            Some((&*member.instance.id, mark.word))
        })
    }
}

// === impl Member ===

impl Member {
    fn is_up(&self) -> bool {
        self.instance.status().is_up()
    }

    /// When its process began.
    fn process(&self) -> Option<SystemTime> {
        self.instance.started_at()
    }
}

// === impl Baker ===

impl Baker {
    /// The next state, given the entry in the registry. `None`: it has withdrawn its statement, in order, for other settings.
    fn next(self, hash: &str, member: Option<&Member>) -> Option<Self> {
        let Some(member) = member.filter(|member| member.is_up()) else {
            return Some(if self == Baker::Proved { self } else { Baker::Gone });
        };
        let word = member.mark.as_ref().filter(|mark| mark.hash == hash).map(|mark| mark.word);
        match (word, self) {
            (Some(Word::Baking), _) => Some(Baker::Bakes { process: member.process() }),
            (Some(Word::Proven), _) | (_, Baker::Proved) => Some(Baker::Proved),
            (Some(Word::Harmful), _) => Some(Baker::Gone),
            (None, Baker::Bakes { process }) if process == member.process() => None,
            (None, _) => Some(Baker::Gone),
        }
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
            members.expire(&me, now);
            assert_eq!(members.ids().join(" "), *expected, "second {second}");
        }
    }

    #[test]
    fn instances_that_go_with_most_others_count_for_a_while() {
        check(&[(0, "a b c d", "a b c d"), (1, "a b c", "a b c"), (2, "b c d e", "b c d e")]);
        check(&[(0, "a b c d", "a b c d"), (1, "", "a b c d"), (60, "", "a b c d"), (61, "", "")]);
        check(&[(0, "a b c d", "a b c d"), (1, "a", "a b c d"), (30, "a b", "a b c d"), (61, "a b", "a b")]);
        check(&[(0, "", "")]);
    }

    #[test]
    fn this_process_is_recognised_by_its_address() {
        let mut members = Members::default();
        let slice = Instance::new("stock", "pod-7").with_address("http", "memory:a");
        members.accept(vec![slice.into(), instance("b").into()], &me("a"), Instant::now());
        assert_eq!((members.own_id(&me("a")), members.ids()), ("pod-7", vec!["b", "pod-7"]));
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
        assert_eq!(members.ids(), ["b", "e"]);
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
            assert_eq!(members.are_baking("h"), word == Word::Baking);
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
