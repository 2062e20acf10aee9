//! Decides which answers of a registry are believed, and when: a plain value that `follow` asks.
//!
//! A registry may have lost its memory. So a set that is suddenly empty is held for [`GRACE`], and where more
//! than half of a set goes at once, those that went are held as long, one by one, unless they can't be reached
//! or the registry says that the service was deleted. Both are counted only while the registry answers.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::Known;
use crate::{
    clock::Instant,
    plugin::registry::{Instance, Membership},
};

/// What is believed of one service's instances.
#[derive(Default)]
pub(super) struct Belief {
    known: Option<Known>,
    /// What is believed, those that are held included.
    set: Vec<Arc<Instance>>,
    /// Since when the registry says that there is none, though there were some.
    empty_since: Option<Instant>,
    /// Instances that went with most of their siblings, and since when they are gone.
    held: HashMap<String, Instant>,
}

/// What a registry's word, or the time, has changed.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// Nothing.
    None,
    /// The set of nodes.
    Set {
        known: Known,
        /// They had been gone, and the last set was only held on to.
        returned: bool,
        /// How many went at once, and are held.
        held: usize,
    },
    /// The set is empty, and so many instances are held.
    EmptyHeld(usize),
}

/// How long an empty set, or the loss of more than half of one, is not believed.
///
/// Longer than a registry takes to restart and its instances to come back, which renew their leases every few
/// seconds; shorter than most people wait before they look.
pub(super) const GRACE: Duration = Duration::from_secs(60);

// === impl Belief ===

impl Belief {
    /// Takes in what the registry says at `now`; instances that make no sense are sorted out already.
    pub(super) fn hear(&mut self, said: Membership, now: Instant) -> News {
        let (known, said) = match said {
            Membership::Known(instances) => (Known::Service, instances),
            Membership::Unknown => (Known::Unknown, Vec::new()),
            Membership::Deleted => (Known::Deleted, Vec::new()),
        };
        // Who knows of nobody any more, or has forgotten the service, may have lost its memory.
        if said.is_empty() && !self.set.is_empty() && known != Known::Deleted {
            let since = *self.empty_since.get_or_insert(now);
            return match now >= since + GRACE {
                true => self.believe_empty(known),
                false if since == now => News::EmptyHeld(self.set.len()),
                false => News::None,
            };
        }
        let returned = self.empty_since.take().is_some();
        let (before, were_held) = (std::mem::take(&mut self.set), self.held.len());
        let (set, held) = self.with_held(&before, said, now);
        let is_same = self.known == Some(known)
            && known == Known::Service
            && !returned
            && (held, self.held.len()) == (0, were_held)
            && same(&before, &set);
        (self.known, self.set) = (Some(known), set);
        if is_same { News::None } else { News::Set { known, returned, held } }
    }

    /// Lets the time pass while the registry says nothing new.
    pub(super) fn pass(&mut self, now: Instant) -> News {
        if self.empty_since.is_some_and(|since| now >= since + GRACE) {
            return self.believe_empty(Known::Service);
        }
        let over: Vec<String> =
            self.held.iter().filter(|(_, since)| now >= **since + GRACE).map(|(id, _)| id.clone()).collect();
        self.give_up(&over)
    }

    /// Those of these that are held can't be reached: they are gone.
    pub(super) fn give_up(&mut self, ids: &[String]) -> News {
        let before = self.held.len();
        for id in ids {
            self.held.remove(id);
        }
        if self.held.len() == before {
            return News::None;
        }
        let gone: HashSet<&str> = ids.iter().map(String::as_str).collect();
        self.set.retain(|instance| !gone.contains(instance.id.as_str()));
        News::Set { known: self.known.unwrap_or(Known::Service), returned: false, held: 0 }
    }

    /// What is believed.
    pub(super) fn set(&self) -> &[Arc<Instance>] {
        &self.set
    }

    /// Is it held, though the registry says that it is gone?
    pub(super) fn holds(&self, id: &str) -> bool {
        self.held.contains_key(id)
    }

    /// How many are held that the registry says are gone.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// When something is due without any word of the registry.
    pub(super) fn due(&self) -> Option<Instant> {
        self.held.values().chain(&self.empty_since).min().map(|since| *since + GRACE)
    }

    fn believe_empty(&mut self, known: Known) -> News {
        *self = Belief { known: Some(known), ..Belief::default() };
        News::Set { known, returned: false, held: 0 }
    }

    /// `said`, and those it has lost that are not believed to be gone; and how many of them are new.
    fn with_held(
        &mut self,
        before: &[Arc<Instance>],
        said: Vec<Arc<Instance>>,
        now: Instant,
    ) -> (Vec<Arc<Instance>>, usize) {
        let was_held = std::mem::take(&mut self.held);
        if said.is_empty() {
            return (said, 0);
        }
        // A set that is replaced by another one is believed; a service may well have moved.
        let shrinks = said.len() * 2 < before.len();
        let (mut set, mut new) = (said, 0);
        if !shrinks && was_held.is_empty() {
            return (set, new);
        }
        let there: HashSet<&str> = set.iter().map(|instance| instance.id.as_str()).collect();
        let mut kept = Vec::new();
        for instance in before.iter().filter(|instance| !there.contains(instance.id.as_str())) {
            let since = match was_held.get(&instance.id) {
                Some(since) if now < *since + GRACE => *since,
                None if shrinks => {
                    new += 1;
                    now
                }
                _ => continue,
            };
            self.held.insert(instance.id.clone(), since);
            kept.push(instance.clone());
        }
        set.append(&mut kept);
        (set, new)
    }
}

fn same(a: &[Arc<Instance>], b: &[Arc<Instance>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens, second by second, and the set after it: `+` marks those that are held.
    struct Script {
        belief: Belief,
        start: Instant,
    }

    fn instance(id: char) -> Instance {
        Instance::new("stock", id.to_string()).with_address("test", format!("memory:{id}"))
    }

    impl Script {
        fn new() -> Self {
            Script { belief: Belief::default(), start: Instant::now() }
        }

        /// At `second` the registry says `ids` (`-`: nobody, `?`: unknown, `!`: deleted; empty: it is silent).
        #[track_caller]
        fn at(&mut self, second: u64, said: &str, expected: &str) -> News {
            let now = self.start + Duration::from_secs(second);
            let news = match said {
                "" => self.belief.pass(now),
                "-" => self.belief.hear(Membership::Known(Vec::new()), now),
                "?" => self.belief.hear(Membership::Unknown, now),
                "!" => self.belief.hear(Membership::Deleted, now),
                ids => self.belief.hear(Membership::known(ids.chars().map(instance)), now),
            };
            let show =
                |i: &Arc<Instance>| format!("{}{}", i.id, if self.belief.holds(&i.id) { "+" } else { "" });
            let set: String = self.belief.set().iter().map(show).collect();
            assert_eq!(set, expected, "at {second} s, after `{said}`");
            news
        }
    }

    #[test]
    fn an_empty_set_is_believed_after_the_grace_only() {
        for nothing in ["-", "?"] {
            let mut script = Script::new();
            script.at(0, "ab", "ab");
            assert_eq!(script.at(1, nothing, "ab"), News::EmptyHeld(2));
            assert_eq!(script.at(30, nothing, "ab"), News::None, "said again, it begins no new grace");
            script.at(60, "", "ab");
            script.at(61, "", "");
        }
    }

    #[test]
    fn an_empty_set_that_was_a_slip_is_forgotten() {
        let mut script = Script::new();
        script.at(0, "a", "a");
        script.at(1, "-", "a");
        assert_eq!(script.at(2, "a", "a"), News::Set { known: Known::Service, returned: true, held: 0 });
        assert_eq!(script.at(100, "-", "a"), News::EmptyHeld(1));
        script.at(159, "", "a");
    }

    /// A registry that is away in between begins no new grace: else the set would be held for ever.
    #[test]
    fn empty_and_away_by_turns_is_believed_when_it_is_said_again() {
        let mut script = Script::new();
        script.at(0, "ab", "ab");
        script.at(1, "-", "ab");
        script.at(59, "-", "ab");
        script.at(61, "-", "");
    }

    #[test]
    fn a_deletion_is_believed_at_once() {
        let mut script = Script::new();
        script.at(0, "abcde", "abcde");
        script.at(1, "a", "ab+c+d+e+");
        script.at(2, "!", "");
        assert_eq!(script.belief.due(), None);
    }

    #[test]
    fn most_of_a_set_is_held_when_it_goes_at_once() {
        let mut script = Script::new();
        script.at(0, "abcde", "abcde");
        let held = |held| News::Set { known: Known::Service, returned: false, held };
        assert_eq!(script.at(1, "a", "ab+c+d+e+"), held(4));
        assert_eq!(script.at(2, "a", "ab+c+d+e+"), News::None, "said again, it begins no new grace");
        // Some come back, and the others are held on to until their own time is over.
        assert_eq!(script.at(10, "abc", "abcd+e+"), held(0));
        assert_eq!(script.at(60, "", "abcd+e+"), News::None);
        assert_eq!(script.at(61, "", "abc"), held(0));
        assert_eq!(script.belief.due(), None);
    }

    #[test]
    fn who_can_not_be_reached_is_not_held() {
        let mut script = Script::new();
        script.at(0, "abcde", "abcde");
        script.at(1, "a", "ab+c+d+e+");
        script.belief.give_up(&["b".into(), "e".into()]);
        script.at(2, "a", "ac+d+");
        assert_eq!(script.belief.give_up(&["a".into()]), News::None, "the registry says that it is there");
        script.at(3, "a", "ac+d+");
    }

    #[test]
    fn half_of_a_set_may_go_and_all_of_it_may_be_replaced() {
        for (before, after) in
            [("ab", "a"), ("abc", "ab"), ("abcd", "ab"), ("abcde", "abc"), ("abc", "def"), ("a", "b")]
        {
            let mut script = Script::new();
            script.at(0, before, before);
            script.at(1, after, after);
            assert_eq!(script.belief.held(), 0);
        }
        let mut script = Script::new();
        script.at(0, "abc", "abc");
        script.at(1, "a", "ab+c+");
    }

    #[test]
    fn a_registry_that_comes_back_with_little_is_not_believed_either() {
        let mut script = Script::new();
        script.at(0, "abcde", "abcde");
        script.at(1, "-", "abcde");
        script.at(20, "c", "ca+b+d+e+");
        script.at(30, "-", "ca+b+d+e+");
        script.at(79, "", "ca+b+d+e+");
        script.at(90, "", "");
    }

    #[test]
    fn what_is_said_again_is_no_news() {
        let mut script = Script::new();
        script.at(0, "ab", "ab");
        assert_eq!(script.at(1, "ab", "ab"), News::None);
        let heavy = Membership::known([instance('a').with_weight(2), instance('b')]);
        assert!(matches!(script.belief.hear(heavy, script.start), News::Set { .. }));
    }
}
