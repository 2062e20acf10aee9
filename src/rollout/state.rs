//! The state of a roll-out in one process: a plain value, to which time, lists and sums are passed.
use std::{collections::VecDeque, sync::Arc, time::Duration};

use chassis_core::{inspect::RolloutView, registry::Instance};
use tokio::time::Instant;

use super::{
    baseline::{Baseline, since},
    guard::{Totals, judge},
    members::{Mark, Me, Members, Word},
};
use crate::document::RolloutConfig;

/// Settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Id {
    /// The hash of all of them, by which the loader knows them.
    pub(super) hash: String,
    /// The hash of those that other processes have too, by which those know them.
    pub(super) shared: String,
}

/// The state of the roll-out.
#[derive(Default)]
pub(super) struct State {
    pub(super) me: Me,
    /// `None` until the registry has listed them.
    members: Option<Members>,
    /// The settings of the roll-out, of the last version that is known to be good; `None`: off.
    governing: Option<RolloutConfig>,
    waiting: Option<Waiting>,
    admitted: Option<Admitted>,
    trial: Option<Trial>,
    /// Settings that did harm, here or elsewhere, with the reasons.
    harmful: VecDeque<(Id, String)>,
    /// Those that are tried again although they did harm, by their shared hash.
    allowed: VecDeque<String>,
    /// The shared hash of the settings in force.
    in_force: String,
    baseline: Baseline,
    /// The statement for the registry.
    mark: Option<Mark>,
    view: Option<RolloutView>,
}

/// Settings that other instances have first.
struct Waiting {
    id: Id,
    since: Instant,
    /// The ids of those that have them first, as they were when the wait began; empty until they are known.
    first: Vec<String>,
    why: String,
    /// The loader was asked to reconsider them.
    is_asked: bool,
}

/// Settings that may be applied, and will be.
struct Admitted {
    hash: String,
    /// `None`: they are not watched.
    role: Option<Role>,
}

/// The part of this process in a roll-out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Role {
    is_first: bool,
    first: usize,
    members: usize,
}

/// Settings that are in force and are watched.
struct Trial {
    id: Id,
    number: u64,
    since: Instant,
    /// The settings of the roll-out that decide on it.
    config: RolloutConfig,
    /// Those that it brings.
    next: Option<RolloutConfig>,
    role: Role,
    /// A start has applied them: there is nothing to compare with, but others may state that they do harm.
    is_start: bool,
    /// The sums when they were applied.
    from: Totals,
    /// The calls before.
    before: Totals,
    /// They did harm, and are being rolled back.
    harm: Option<String>,
}

/// Whether settings may be applied.
#[derive(Debug, PartialEq)]
pub(super) enum Decision {
    /// Without a part in a roll-out they are not watched.
    Admit(Option<Role>),
    Wait {
        role: Role,
        until: Instant,
    },
    Refuse(String),
}

/// An action.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Nothing, until this time or a change.
    Wait(Option<Instant>),
    /// The loader has to ask again about the settings that wait.
    Reconsider,
    /// They did no harm.
    Proven { id: Id, number: u64, calls: u64 },
    /// They have to be rolled back.
    RollBack { id: Id, why: String },
}

/// The time between two looks at the calls of settings that are watched.
const LOOK: Duration = Duration::from_millis(500);
/// So many calls are enough at the end of the longest bake time: fewer fail by chance, all of them too.
const FEWEST_CALLS: u64 = 20;
/// The number of hashes that are remembered.
const MOST_REMEMBERED: usize = 20;

/// The begin of a reason that another instance has stated.
const OF_OTHERS: &str = "they did harm in ";

/// Whether this reason is the statement of another instance, which states it by itself.
fn is_of_others(why: &str) -> bool {
    why.starts_with(OF_OTHERS)
}

// === impl State ===

impl State {
    /// Whether the registry's list is needed.
    pub(super) fn is_on(&self) -> bool {
        self.governing.is_some() || self.trial.as_ref().is_some_and(|trial| trial.next.is_some())
    }

    /// Whether settings with this hash are in force and not decided on.
    pub(super) fn is_baking(&self, hash: &str) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.id.hash == hash && !trial.is_start)
    }

    pub(super) fn mark(&self) -> Option<&Mark> {
        self.mark.as_ref().filter(|_| self.is_on())
    }

    pub(super) fn view(&self) -> Option<&RolloutView> {
        self.view.as_ref()
    }

    /// The registry's list.
    pub(super) fn listed(&mut self, list: Vec<Arc<Instance>>, now: Instant) {
        self.members.get_or_insert_default().accept(list, &self.me, now);
    }

    /// Asks whether settings may be applied; an error is the reason why not.
    pub(super) fn admit(&mut self, id: &Id, now: Instant) -> Result<(), String> {
        let same = self.waiting.as_ref().filter(|waiting| waiting.id.shared == id.shared);
        let (begun, first) = same.map_or((now, Vec::new()), |same| (same.since, same.first.clone()));
        let first = if first.is_empty() { self.first(&id.shared) } else { first };
        match self.decide(&id.shared, begun, &first, now) {
            Decision::Admit(role) => {
                self.waiting = None;
                self.admitted = Some(Admitted { hash: id.hash.clone(), role });
                Ok(())
            }
            Decision::Refuse(why) => {
                self.waiting = None;
                self.remember(id, &why);
                self.show(id, "refused", Role::default(), Some(&why));
                Err(why)
            }
            Decision::Wait { role, .. } => {
                let why = same.map(|waiting| waiting.why.clone());
                let why = why.unwrap_or_else(|| role.why(self.governing.as_ref()));
                self.show(id, "waiting", role, Some(&why));
                let (id, since) = (id.clone(), begun);
                self.waiting = Some(Waiting { id, since, first, why: why.clone(), is_asked: false });
                Err(why)
            }
        }
    }

    /// The sources have the settings that are in force.
    pub(super) fn settled(&mut self) {
        if self.waiting.take().is_some() {
            self.view = None;
        }
    }

    /// Settings that did harm before this process began, or that crashed it: other instances should not try them.
    pub(super) fn refused(&mut self, id: &Id, why: &str) {
        self.waiting = None;
        self.remember(id, why);
        // At a start it is not known yet whether the roll-out is on.
        if !is_of_others(why) {
            self.mark = Some(Mark { hash: id.shared.clone(), word: Word::Harmful });
        }
        if self.governing.is_some() {
            self.show(id, "refused", Role::default(), Some(why));
        }
    }

    /// Settings are in force now. Returns the reason why those before were rolled back, with their hash, if they were.
    pub(super) fn applied(
        &mut self,
        id: &Id,
        number: u64,
        next: Option<RolloutConfig>,
        now: Instant,
        totals: &Totals,
    ) -> Option<(String, String)> {
        let admitted = self.admitted.take().filter(|admitted| admitted.hash == id.hash);
        id.shared.clone_into(&mut self.in_force);
        if let Some(trial) = self.trial.as_mut().filter(|trial| trial.id.shared == id.shared) {
            // Only settings of this process alone have changed.
            (trial.id, trial.number, trial.next) = (id.clone(), number, next);
            return None;
        }
        let last = self.trial.take();
        let was_baking = self.mark.take_if(|mark| mark.word == Word::Baking).is_some();
        let is_by_hand = admitted.is_none();
        if let Some(last) = last.as_ref().filter(|last| !last.is_start)
            && match &last.harm {
                Some(why) => !is_of_others(why),
                // A version by hand takes the place of one that others wait for.
                None => was_baking && is_by_hand,
            }
        {
            self.mark = Some(Mark { hash: last.id.shared.clone(), word: Word::Harmful });
        }
        let is_start = number <= 1;
        // Calls are compared with those under the last good settings, however many followed those.
        let before = match (&last, &self.governing) {
            (Some(last), _) if !last.is_start => last.before.clone(),
            (_, Some(config)) => self.baseline.calls(totals, u64::from(config.min_calls.get())),
            (_, None) => Totals::default(),
        };
        let config = if is_start { next.as_ref() } else { self.governing.as_ref() }.cloned();
        let role = admitted.and_then(|admitted| admitted.role);
        let role = if is_start { Some(Role::default()) } else { role };
        let rolled_back = last.and_then(|last| Some((last.id.hash, last.harm?)));
        match (config, role) {
            (Some(config), Some(role)) => {
                if role.is_first && role.members > 1 {
                    self.mark = Some(Mark { hash: id.shared.clone(), word: Word::Baking });
                }
                if is_start {
                    self.governing = next.clone();
                    self.baseline.restart(now, totals.clone(), Totals::default());
                } else {
                    self.show(id, "baking", role, None);
                }
                let (id, from, since) = (id.clone(), totals.clone(), now);
                let harm = None;
                self.trial =
                    Some(Trial { id, number, since, config, next, role, is_start, from, before, harm });
            }
            _ => {
                self.governing = next;
                self.baseline.restart(now, totals.clone(), before);
                if rolled_back.is_none() {
                    self.view = None;
                }
            }
        }
        rolled_back
    }

    /// Settings were not rolled back, because others are in force, or none were before.
    pub(super) fn kept(&mut self, hash: &str) -> bool {
        let is_kept = self.trial.take_if(|trial| trial.id.hash == hash).is_some();
        if is_kept {
            self.view = None; // it says that they were rolled back
        }
        is_kept
    }

    /// Whether settings with this hash did harm.
    pub(super) fn is_harmful(&self, hash: &str) -> bool {
        self.harmful.iter().any(|(id, _)| id.hash == hash)
    }

    /// Forgets that settings with this hash did harm, here and elsewhere. Returns the settings, if they are known.
    pub(super) fn allow(&mut self, hash: &str) -> Option<Id> {
        let at = self.harmful.iter().position(|(id, _)| id.hash == hash || id.shared == hash)?;
        let (id, _) = self.harmful.remove(at)?;
        self.mark.take_if(|mark| mark.hash == id.shared);
        self.members.iter_mut().for_each(|members| members.forget(&id.shared));
        self.allowed.truncate(MOST_REMEMBERED - 1);
        self.allowed.push_front(id.shared.clone());
        Some(id)
    }

    /// The next thing to do.
    pub(super) fn step(&mut self, now: Instant, totals: impl FnOnce() -> Totals) -> Step {
        if let Some(members) = &mut self.members {
            members.expire(&self.me, now);
        }
        self.freeze(now);
        let mut due = self.members.as_ref().and_then(Members::due);
        let mut wake = |at: Option<Instant>| due = due.into_iter().chain(at).min();
        if let Some(waiting) = self.waiting.as_ref().filter(|waiting| !waiting.is_asked) {
            match self.decide(&waiting.id.shared, waiting.since, &waiting.first, now) {
                Decision::Wait { until, .. } => wake(Some(until)),
                Decision::Admit(_) | Decision::Refuse(_) => {
                    self.waiting.iter_mut().for_each(|waiting| waiting.is_asked = true);
                    return Step::Reconsider;
                }
            }
        }
        let elsewhere = self.trial.as_ref().and_then(|trial| self.harmed_elsewhere(&trial.id.shared));
        match (&mut self.trial, &self.governing) {
            (Some(trial), _) if trial.harm.is_none() => {
                let totals = totals();
                match trial.look(elsewhere, now, &totals) {
                    Look::Bakes(next) => wake(Some(next)),
                    Look::Harmful(why) => {
                        trial.harm = Some(why.clone());
                        let (id, role) = (trial.id.clone(), trial.role);
                        self.remember(&id, &why);
                        self.show(&id, "rolled_back", role, Some(&why));
                        return Step::RollBack { id, why };
                    }
                    Look::Proven(calls) => return self.proven(now, &totals, calls),
                }
            }
            (None, Some(config)) => {
                let window = config.bake_time.get();
                if self.baseline.due(window).is_none_or(|due| due <= now) {
                    self.baseline.sample(now, window, totals());
                }
                wake(self.baseline.due(window));
            }
            _ => {}
        }
        Step::Wait(due)
    }

    fn proven(&mut self, now: Instant, totals: &Totals, calls: u64) -> Step {
        let Some(trial) = self.trial.take() else { return Step::Wait(None) };
        let Trial { id, number, role, from, next, is_start, .. } = trial;
        self.governing = next;
        if is_start {
            return Step::Wait(Some(now)); // its calls are compared with those of the next settings
        }
        self.baseline.restart(now, totals.clone(), since(totals, &from));
        if self.mark.as_ref().is_some_and(|mark| mark.hash == id.shared && mark.word == Word::Baking) {
            self.mark = Some(Mark { hash: id.shared.clone(), word: Word::Proven });
        }
        self.show(&id, "proven", role, None);
        Step::Proven { id, number, calls }
    }

    /// Those that have the settings with this shared hash first, by the list of now; empty if that is not known.
    fn first(&self, hash: &str) -> Vec<String> {
        let known = self.members.as_ref().zip(self.governing.as_ref());
        known.map(|(members, config)| members.first(hash, config.share)).unwrap_or_default()
    }

    /// Sets the first ones of settings that wait, if they were not known. If all of them went before any was seen with the
    /// settings, others are first after the bake time, and a wait begins anew.
    fn freeze(&mut self, now: Instant) {
        let Some((waiting, config)) = self.waiting.as_ref().zip(self.governing.as_ref()) else { return };
        let Some(members) = &self.members else { return };
        let hash = &waiting.id.shared;
        let are_gone = now >= waiting.since + config.bake_time.get()
            && !members.have_baked(hash)
            && !members.are_up(&waiting.first);
        let is_anew = are_gone && !waiting.first.is_empty();
        if waiting.first.is_empty() || is_anew {
            let first = self.first(hash);
            if let Some(waiting) = self.waiting.as_mut().filter(|_| !first.is_empty()) {
                waiting.first = first;
                waiting.since = if is_anew { now } else { waiting.since };
            }
        }
    }

    /// Whether settings with this shared hash may be applied at `now`: they were first seen at `begun`, and `first` have them
    /// before the others.
    fn decide(&self, hash: &str, begun: Instant, first: &[String], now: Instant) -> Decision {
        // A process that has switched the roll-out off remembers what did harm all the same.
        if let Some((_, why)) = self.harmful.iter().find(|(harmful, _)| harmful.shared == hash) {
            return Decision::Refuse(why.clone());
        }
        // Changes of the environment, or of a file that a setting refers to, concern this process alone.
        let Some(config) = self.governing.as_ref().filter(|_| self.in_force != hash) else {
            return Decision::Admit(None);
        };
        if let Some(why) = self.harmed_elsewhere(hash) {
            return Decision::Refuse(why);
        }
        let (bake, most) = (begun + config.bake_time.get(), begun + config.max_bake_time().get());
        let (role, are_baking) = match &self.members {
            // A process that does not know the others is none of the first.
            None => (Role::default(), false),
            Some(members) => {
                let (ids, own) = (members.ids(), members.own_id(&self.me));
                // Others know only those in the list, and may be first themselves.
                let is_first = ids.contains(&own) && first.iter().any(|id| id == own);
                (Role { is_first, first: first.len(), members: ids.len() }, members.are_baking(hash))
            }
        };
        let gone = self.gone(hash);
        match () {
            () if role.is_first && gone.is_none() => Decision::Admit(Some(role)),
            () if now < bake => Decision::Wait { role, until: bake },
            () if are_baking && now < most => Decision::Wait { role, until: most },
            () => gone.map_or(Decision::Admit(Some(role)), Decision::Refuse),
        }
    }

    /// The reason to avoid these settings that an instance gives that had them first and went away meanwhile.
    fn gone(&self, hash: &str) -> Option<String> {
        if self.is_allowed(hash) {
            return None;
        }
        let id = self.members.as_ref()?.gone(hash)?;
        Some(format!("`{}` went away, or took no calls, while it had them first", id.escape_debug()))
    }

    fn is_allowed(&self, hash: &str) -> bool {
        self.allowed.iter().any(|allowed| allowed == hash)
    }

    /// The reason to avoid these settings that another instance gives.
    fn harmed_elsewhere(&self, hash: &str) -> Option<String> {
        if self.is_allowed(hash) {
            return None;
        }
        let id = self.members.as_ref()?.harmed(hash, &self.me)?;
        Some(format!("{OF_OTHERS}`{}`", id.escape_debug()))
    }

    fn remember(&mut self, id: &Id, why: &str) {
        self.allowed.retain(|allowed| *allowed != id.shared);
        if !self.harmful.iter().any(|(harmful, _)| harmful.shared == id.shared) {
            self.harmful.truncate(MOST_REMEMBERED - 1);
            self.harmful.push_front((id.clone(), why.to_owned()));
        }
    }

    fn show(&mut self, id: &Id, state: &'static str, role: Role, why: Option<&str>) {
        let Role { is_first, first, members } = role;
        let (hash, why) = (id.hash.clone(), why.map(str::to_owned));
        self.view = Some(RolloutView { hash, state, is_first, first, members, why });
    }
}

// === impl Role ===

impl Role {
    /// Why settings wait.
    fn why(self, config: Option<&RolloutConfig>) -> String {
        let time = config.map(|config| config.bake_time.to_string()).unwrap_or_default();
        match self.members {
            0 => format!("the registry has not listed the other instances; they are applied in {time}"),
            members => format!("{} of {members} instances have them first, for {time}", self.first),
        }
    }
}

/// The result of a look at settings that are watched.
enum Look {
    /// The next look is at this time.
    Bakes(Instant),
    Harmful(String),
    /// By so many calls.
    Proven(u64),
}

// === impl Trial ===

impl Trial {
    fn look(&self, elsewhere: Option<String>, now: Instant, totals: &Totals) -> Look {
        if let Some(why) = elsewhere {
            return Look::Harmful(why);
        }
        let (config, min_calls) = (&self.config, u64::from(self.config.min_calls.get()));
        let after = since(totals, &self.from);
        let guard = config.guard.on().filter(|_| !self.is_start);
        // In the end fewer calls decide too: other instances avoid one that fails, and will apply the settings now.
        let is_last = now >= self.since + config.max_bake_time().get();
        let enough = if is_last { min_calls.min(FEWEST_CALLS) } else { min_calls };
        let judged = guard.and_then(|guard| judge(guard, enough, min_calls, &self.before, &after));
        if let Some(why) = judged {
            return Look::Harmful(why);
        }
        let has_enough = guard.is_none() || after.iter().any(|calls| calls.calls >= min_calls);
        let over = self.since + if has_enough { config.bake_time } else { config.max_bake_time() }.get();
        match now >= over {
            true => Look::Proven(after[0].calls + after[1].calls),
            false => Look::Bakes(over.min(now + LOOK)),
        }
    }
}

#[cfg(test)]
mod tests;
