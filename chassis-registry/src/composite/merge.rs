//! The union of what several registries list: a plain value.
use std::{collections::HashSet, sync::Arc};

use chassis_core::registry::{Instance, Membership};

/// The list of all members together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Merged {
    /// Instances are sorted by id.
    pub(super) known: Arc<Membership>,
    /// The member that each instance comes from, in the order of the instances.
    from: Vec<usize>,
}

// === impl Merged ===

impl Merged {
    /// Merges the last answers of the members, in the order of their precedence. `None`: a member has never answered,
    /// and the others list no instance, so the service may have some.
    ///
    /// A process that several members list counts once, as the first of them describes it. Two entries are of one
    /// process if they have the same id, or an address in common for the same listener.
    pub(super) fn of(answers: &[Option<Arc<Membership>>]) -> Option<Self> {
        let lists = || {
            answers.iter().enumerate().filter_map(|(member, answer)| match answer.as_deref() {
                Some(Membership::Known(all)) if !all.is_empty() => Some((member, all)),
                _ => None,
            })
        };
        let mut all: Vec<(Arc<Instance>, usize)> = Vec::new();
        let mut seen = Seen::default();
        let is_one = lists().count() <= 1;
        for (member, list) in lists() {
            // Entries of one member are not compared with each other: instances behind one proxy share its address.
            let first = all.len();
            let added = list.iter().filter(|instance| is_one || !seen.has(instance));
            all.extend(added.map(|instance| (instance.clone(), member)));
            if !is_one {
                all[first..].iter().for_each(|(instance, _)| seen.add(instance.clone()));
            }
        }
        if all.is_empty() {
            let known = Self::without_instances(answers)?;
            return Some(Merged { known: known.into(), from: Vec::new() });
        }
        all.sort_by(|(a, _), (b, _)| a.id.cmp(&b.id));
        let (instances, from) = all.into_iter().unzip();
        Some(Merged { known: Membership::Known(instances).into(), from })
    }

    /// The answer while no member lists an instance.
    fn without_instances(answers: &[Option<Arc<Membership>>]) -> Option<Membership> {
        let mut known = Membership::Unknown;
        for answer in answers {
            match answer.as_deref() {
                None => return None,
                Some(Membership::Known(_)) => known = Membership::Known(Vec::new()),
                Some(Membership::Deleted) if known == Membership::Unknown => known = Membership::Deleted,
                Some(_) => {}
            }
        }
        Some(known)
    }

    /// Replaces the position of an answer by the number of the member that gave it.
    pub(super) fn number(&mut self, member: impl Fn(usize) -> usize) {
        self.from.iter_mut().for_each(|from| *from = member(*from));
    }

    /// The member that the instance comes from.
    pub(super) fn member_of(&self, id: &str) -> Option<usize> {
        let Membership::Known(all) = &*self.known else { return None };
        let at = all.binary_search_by(|instance| instance.id.as_str().cmp(id)).ok()?;
        self.from.get(at).copied()
    }
}

/// The ids and addresses of members of higher precedence.
#[derive(Default)]
struct Seen {
    ids: HashSet<String>,
    /// Listener and address.
    addresses: HashSet<(String, String)>,
}

// === impl Seen ===

impl Seen {
    fn has(&self, instance: &Instance) -> bool {
        let is_seen = |(listener, address): (&str, &str)| {
            self.addresses.contains(&(listener.to_owned(), address.to_owned()))
        };
        self.ids.contains(&instance.id) || instance.addresses.iter().any(is_seen)
    }

    fn add(&mut self, instance: Arc<Instance>) {
        self.ids.insert(instance.id.clone());
        let addresses = instance.addresses.iter();
        self.addresses.extend(addresses.map(|(listener, address)| (listener.to_owned(), address.to_owned())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The answers of the members: `?` none yet, `-` unknown, `x` deleted, `.` no instance, else an instance for each
    /// letter. Expects the same notation, each instance followed by the number of its member.
    #[track_caller]
    fn check(answers: &str, expected: &str) {
        let answer = |text: &str| match text {
            "?" => None,
            "-" => Some(Membership::Unknown),
            "x" => Some(Membership::Deleted),
            "." => Some(Membership::Known(Vec::new())),
            ids => Some(Membership::known(ids.chars().map(|id| {
                Instance::new("stock", id).with_address("grpc", format!("{}:1", id.to_ascii_lowercase()))
            }))),
        };
        let answers: Vec<_> = answers.split(' ').map(|text| answer(text).map(Arc::new)).collect();
        let merged = Merged::of(&answers);
        let found = match merged.as_ref().map(|merged| (merged, &*merged.known)) {
            None => "?".to_owned(),
            Some((_, Membership::Unknown)) => "-".to_owned(),
            Some((_, Membership::Deleted)) => "x".to_owned(),
            Some((_, Membership::Known(all))) if all.is_empty() => ".".to_owned(),
            Some((merged, Membership::Known(all))) => {
                all.iter().map(|one| format!("{}{}", one.id, merged.member_of(&one.id).unwrap())).collect()
            }
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_first_member_that_lists_a_process_describes_it() {
        check("ab bc", "a0b0c1");
        check("bc ab", "a1b0c0");
        check(". ab", "a1b1");
        check("- ba", "a1b1");
        check("x a", "a1");
        check("? a", "a1");
        // `A` has the address of `a`.
        check("a Ab", "a0b1");
        check("a b A", "a0b1");
    }

    #[test]
    fn instances_of_one_member_may_share_an_address() {
        check("aA b", "A0a0b1");
        check(". aA", "A1a1");
    }

    #[test]
    fn nothing_is_said_while_a_member_that_never_answered_may_list_instances() {
        check("? .", "?");
        check("- ?", "?");
        check("- -", "-");
        check(". -", ".");
        check("x -", "x");
        check("x .", ".");
    }
}
