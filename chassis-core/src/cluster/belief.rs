//! Decides which answers of a registry are accepted, and when: a plain value that `follow` uses.
//!
//! A registry may have lost its data. So if a set suddenly becomes empty, the last one is kept for a while, by default a
//! minute; if more than half of a set is removed at once, the removed instances are kept for the same time, each on its
//! own, unless they cannot be reached or the registry reports that the service was deleted. Both times count
//! only while the registry answers. Share and time are those of [`HoldConfig`], which may change at any time.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{HoldConfig, Known};
use crate::{
    clock::Instant,
    plugin::registry::{Instance, Membership},
};

/// The accepted instances of one service.
#[derive(Default)]
pub(super) struct Belief {
    known: Option<Known>,
    /// The accepted instances, including the kept ones.
    set: Arc<Vec<Arc<Instance>>>,
    /// The time since which the registry lists no instance, after it had listed some.
    empty_since: Option<Instant>,
    /// Instances that were removed together with most others, and the time of their removal.
    held: HashMap<String, Instant>,
}

/// The change caused by an answer of the registry, or by time.
#[derive(Debug, PartialEq)]
pub(super) enum News {
    /// No change.
    None,
    /// The set of nodes.
    Set {
        known: Known,
        /// The registry lists them again after an empty set, in which the last one was kept.
        returned: bool,
        /// The number of instances that were removed at once and are kept.
        held: usize,
    },
    /// The set is empty, and this many instances are kept.
    EmptyHeld(usize),
}

// === impl Belief ===

impl Belief {
    /// Processes the registry's answer at `now`; invalid instances were removed before. Without `hold` it is accepted as
    /// it is.
    pub(super) fn accept(&mut self, said: Membership, now: Instant, hold: Option<&HoldConfig>) -> News {
        let (known, said) = match said {
            Membership::Known(instances) => (Known::Service, instances),
            Membership::Unknown => (Known::Unknown, Vec::new()),
            Membership::Deleted => (Known::Deleted, Vec::new()),
        };
        // A registry that lists no instance any more, or does not know the service any more, may have lost its
        // data.
        if let Some(hold) = hold
            && said.is_empty()
            && !self.set.is_empty()
            && known != Known::Deleted
        {
            let since = *self.empty_since.get_or_insert(now);
            return match now >= since + hold.time() {
                true => self.believe_empty(known),
                false if since == now => News::EmptyHeld(self.set.len()),
                false => News::None,
            };
        }
        let returned = self.empty_since.take().is_some();
        let (before, were_held) = (std::mem::take(&mut self.set), self.held.len());
        let (set, held) = self.with_held(&before, said, now, hold);
        let is_same = self.known == Some(known)
            && known == Known::Service
            && !returned
            && (held, self.held.len()) == (0, were_held)
            && same(&before, &set);
        (self.known, self.set) = (Some(known), set.into());
        if is_same { News::None } else { News::Set { known, returned, held } }
    }

    /// Advances the time while the registry reports no change.
    pub(super) fn pass(&mut self, now: Instant, hold: Option<&HoldConfig>) -> News {
        let is_over = |since: Instant| hold.is_none_or(|hold| now >= since + hold.time());
        if self.empty_since.is_some_and(is_over) {
            return self.believe_empty(Known::Service);
        }
        let over: Vec<String> =
            self.held.iter().filter(|(_, since)| is_over(**since)).map(|(id, _)| id.clone()).collect();
        self.give_up(&over)
    }

    /// Removes those of the given kept instances: they cannot be reached.
    pub(super) fn give_up(&mut self, ids: &[String]) -> News {
        let before = self.held.len();
        for id in ids {
            self.held.remove(id);
        }
        if self.held.len() == before {
            return News::None;
        }
        let gone: HashSet<&str> = ids.iter().map(String::as_str).collect();
        Arc::make_mut(&mut self.set).retain(|instance| !gone.contains(instance.id.as_str()));
        News::Set { known: self.known.unwrap_or(Known::Service), returned: false, held: 0 }
    }

    /// The accepted set.
    pub(super) fn set(&self) -> &[Arc<Instance>] {
        &self.set
    }

    /// The same, shared.
    pub(super) fn shared(&self) -> Arc<Vec<Arc<Instance>>> {
        self.set.clone()
    }

    /// Whether there was no answer yet.
    pub(super) fn is_unset(&self) -> bool {
        self.known.is_none()
    }

    /// Whether the registry does not know the service.
    pub(super) fn is_unknown(&self) -> bool {
        self.known == Some(Known::Unknown)
    }

    /// Whether the instance is kept although the registry removed it.
    pub(super) fn holds(&self, id: &str) -> bool {
        self.held.contains_key(id)
    }

    /// The number of instances that are kept although the registry removed them.
    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// The next time at which something changes without an answer of the registry.
    pub(super) fn due(&self, hold: Option<&HoldConfig>) -> Option<Instant> {
        let first = self.held.values().chain(&self.empty_since).min();
        first.map(|since| hold.map_or(*since, |hold| *since + hold.time()))
    }

    fn believe_empty(&mut self, known: Known) -> News {
        *self = Belief { known: Some(known), ..Belief::default() };
        News::Set { known, returned: false, held: 0 }
    }

    /// Combines `said` with the lost instances that are still kept; also returns how many of them are new.
    fn with_held(
        &mut self,
        before: &[Arc<Instance>],
        said: Vec<Arc<Instance>>,
        now: Instant,
        hold: Option<&HoldConfig>,
    ) -> (Vec<Arc<Instance>>, usize) {
        let was_held = std::mem::take(&mut self.held);
        let Some(hold) = hold.filter(|_| !said.is_empty()) else { return (said, 0) };
        // A set that is replaced by another one is accepted; the service may have moved.
        let shrinks = hold.is_loss(before.len(), said.len());
        let (mut set, mut new) = (said, 0);
        if !shrinks && was_held.is_empty() {
            return (set, new);
        }
        let there: HashSet<&str> = set.iter().map(|instance| instance.id.as_str()).collect();
        let mut kept = Vec::new();
        for instance in before.iter().filter(|instance| !there.contains(instance.id.as_str())) {
            let since = match was_held.get(&instance.id) {
                Some(since) if now < *since + hold.time() => *since,
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
    use std::time::Duration;

    use super::*;
    use crate::units::{PositiveSpan, Ratio};

    /// The answers, second by second, and the set after each: `+` marks kept instances.
    struct Script {
        belief: Belief,
        start: Instant,
        hold: Option<HoldConfig>,
    }

    fn instance(id: char) -> Instance {
        Instance::new("stock", id.to_string()).with_address("test", format!("memory:{id}"))
    }

    impl Script {
        fn new() -> Self {
            Script { belief: Belief::default(), start: Instant::now(), hold: Some(HoldConfig::default()) }
        }

        /// At `second` the registry answers `ids` (`-`: none, `?`: unknown, `!`: deleted; empty: no answer).
        #[track_caller]
        fn at(&mut self, second: u64, said: &str, expected: &str) -> News {
            let now = self.start + Duration::from_secs(second);
            let (belief, hold) = (&mut self.belief, self.hold.as_ref());
            let news = match said {
                "" => belief.pass(now, hold),
                "-" => belief.accept(Membership::Known(Vec::new()), now, hold),
                "?" => belief.accept(Membership::Unknown, now, hold),
                "!" => belief.accept(Membership::Deleted, now, hold),
                ids => belief.accept(Membership::known(ids.chars().map(instance)), now, hold),
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

    /// A registry that is unreachable in between starts no new grace period; otherwise the set would be kept
    /// for ever.
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
        assert_eq!(script.belief.due(script.hold.as_ref()), None);
    }

    #[test]
    fn most_of_a_set_is_held_when_it_goes_at_once() {
        let mut script = Script::new();
        script.at(0, "abcde", "abcde");
        let held = |held| News::Set { known: Known::Service, returned: false, held };
        assert_eq!(script.at(1, "a", "ab+c+d+e+"), held(4));
        assert_eq!(script.at(2, "a", "ab+c+d+e+"), News::None, "said again, it begins no new grace");
        // Some are listed again, and the others are kept until their own time is over.
        assert_eq!(script.at(10, "abc", "abcd+e+"), held(0));
        assert_eq!(script.at(60, "", "abcd+e+"), News::None);
        assert_eq!(script.at(61, "", "abc"), held(0));
        assert_eq!(script.belief.due(script.hold.as_ref()), None);
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

    fn hold(share: u8, seconds: u64) -> Option<HoldConfig> {
        let time = PositiveSpan::from_millis(seconds * 1_000);
        Some(HoldConfig { share: Ratio::percent(share), time })
    }

    #[test]
    fn the_share_that_may_go_is_a_setting() {
        for (share, before, after, expected) in [
            (50, "abcd", "ab", "ab"),
            (49, "abcd", "ab", "abc+d+"),
            (0, "abcd", "abc", "abcd+"),
            (0, "abcd", "abcd", "abcd"),
            (20, "abcde", "abcd", "abcd"),
            (20, "abcde", "abc", "abcd+e+"),
            (99, "abcde", "a", "a"),
            (100, "abcde", "a", "a"),
            (100, "abcde", "-", "abcde"),
        ] {
            let mut script = Script::new();
            script.hold = hold(share, 60);
            script.at(0, before, before);
            script.at(1, after, expected);
        }
    }

    /// Times count from the removal, also if the setting changes meanwhile.
    #[test]
    fn the_time_is_a_setting_that_may_change() {
        for said in ["a", "-"] {
            let kept = if said == "-" { "abcde" } else { "ab+c+d+e+" };
            let after = if said == "-" { "" } else { "a" };
            let mut script = Script::new();
            script.hold = hold(50, 10);
            script.at(0, "abcde", "abcde");
            script.at(1, said, kept);
            script.at(10, "", kept);
            script.hold = hold(50, 300);
            script.at(60, said, kept);
            assert_eq!(
                script.belief.due(script.hold.as_ref()),
                Some(script.start + Duration::from_secs(301))
            );
            script.hold = hold(50, 30);
            assert_eq!(script.belief.due(script.hold.as_ref()), Some(script.start + Duration::from_secs(31)));
            script.at(61, "", after);
        }
    }

    #[test]
    fn nothing_is_held_if_that_is_off() {
        let mut script = Script::new();
        script.at(0, "abcde", "abcde");
        script.at(1, "a", "ab+c+d+e+");
        script.hold = None;
        script.at(2, "", "a");
        assert_eq!(script.belief.due(None), None);
        script.at(3, "abcde", "abcde");
        script.at(4, "a", "a");
        script.at(5, "-", "");
        // The same where the registry lists none.
        let mut script = Script::new();
        script.at(0, "ab", "ab");
        script.at(1, "-", "ab");
        script.hold = None;
        script.at(2, "-", "");
    }

    #[test]
    fn what_is_said_again_is_no_news() {
        let mut script = Script::new();
        script.at(0, "ab", "ab");
        assert_eq!(script.at(1, "ab", "ab"), News::None);
        let heavy = Membership::known([instance('a').with_weight(2), instance('b')]);
        assert!(matches!(script.belief.accept(heavy, script.start, None), News::Set { .. }));
    }
}
