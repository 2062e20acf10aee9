//! A roll-out, second by second.
use chassis_core::{
    CallTotals,
    units::{PositiveSpan, Ratio, Switch},
};

use super::{super::rank::ranked, *};

/// A process with its clock and its calls.
struct Process {
    state: State,
    begun: Instant,
    now: Instant,
    /// Incoming calls, and those that failed.
    calls: (u64, u64),
    number: u64,
}

fn config() -> RolloutConfig {
    RolloutConfig { share: Ratio::percent(25), ..RolloutConfig::default() }
}

fn instance(id: &str) -> Instance {
    Instance::new("stock", id).with_address("grpc", format!("memory:{id}"))
}

fn marked(id: &str, hash: &str, word: Word) -> Instance {
    instance(id).with_other(super::super::KEY, Mark { hash: hash.into(), word }.to_json())
}

/// Settings that other processes know by this hash.
fn id(shared: &str) -> Id {
    Id { hash: format!("own-{shared}"), shared: shared.into() }
}

/// A hash for which the process `a` of the four is first, or not.
fn hash_where(a_is_first: bool, number: usize) -> String {
    let fits = |hash: &String| (first_of(hash) == "a") == a_is_first;
    (0..).map(|n| format!("{n:x}")).filter(fits).nth(number).expect("there are many")
}

/// A hash for which the process `a` of the four is second.
fn hash_where_second() -> String {
    let fits = |hash: &String| ranked(hash, ["a", "b", "c", "d"]).nth(1) == Some("a");
    (0..).map(|n| format!("{n:x}")).find(fits).expect("there are many")
}

/// The one of the four that is first for this hash.
fn first_of(hash: &str) -> &'static str {
    ranked(hash, ["a", "b", "c", "d"]).next().expect("there are four")
}

/// The others, without the one that is first for this hash.
fn rest(hash: &str) -> Vec<Instance> {
    ["b", "c", "d"].into_iter().filter(|id| *id != first_of(hash)).map(instance).collect()
}

/// The others, the first one of which states this.
fn others(hash: &str, word: Word) -> Vec<Instance> {
    rest(hash).into_iter().chain([marked(first_of(hash), hash, word)]).collect()
}

impl Process {
    /// The process `a` of four, which began with settings that have this roll-out.
    fn with(config: Option<RolloutConfig>) -> Self {
        let begun = Instant::now();
        let mut process = Process { state: State::default(), begun, now: begun, calls: (0, 0), number: 0 };
        process.state.me.id = "a".into();
        process.apply("start", config);
        process.list(["b", "c", "d"].map(instance).to_vec());
        process
    }

    fn new() -> Self {
        Self::with(Some(config()))
    }

    fn list(&mut self, others: Vec<Instance>) {
        self.state.listed(others.into_iter().chain([instance("a")]).map(Arc::new).collect(), self.now);
    }

    fn totals(&self) -> Totals {
        let mut incoming = CallTotals::default();
        (incoming.calls, incoming.errors) = self.calls;
        [CallTotals::default(), incoming]
    }

    fn apply(&mut self, hash: &str, config: Option<RolloutConfig>) -> Option<(String, String)> {
        self.number += 1;
        self.state.applied(&id(hash), self.number, config, self.now, &self.totals())
    }

    fn admit(&mut self, hash: &str) -> Result<(), String> {
        self.state.admit(&id(hash), self.now)
    }

    /// Admits and applies settings that change nothing about the roll-out.
    fn push(&mut self, hash: &str) {
        assert_eq!(self.admit(hash), Ok(()), "{hash}");
        self.apply(hash, Some(config()));
    }

    /// The steps until `second`, with so many calls in every second, and failed ones; apart from waits.
    fn until(&mut self, second: u64, calls: u64, errors: u64) -> Vec<(u64, Step)> {
        let mut steps = Vec::new();
        let end = self.begun + Duration::from_secs(second);
        let mut counted = self.now;
        loop {
            let totals = self.totals();
            match self.state.step(self.now, || totals) {
                Step::Wait(due) => {
                    let next = due.map_or(end, |due| due.max(self.now + Duration::from_millis(1))).min(end);
                    if self.now >= end {
                        return steps;
                    }
                    self.now = next;
                    while counted + Duration::from_secs(1) <= self.now {
                        counted += Duration::from_secs(1);
                        self.calls.0 += calls;
                        self.calls.1 += errors;
                    }
                }
                step => {
                    steps.push(((self.now - self.begun).as_secs(), step));
                    assert!(steps.len() < 100, "{steps:?}");
                }
            }
        }
    }

    fn state(&self) -> &'static str {
        self.state.view().map_or("", |view| view.state)
    }

    fn mark(&self) -> Option<(&str, Word)> {
        self.state.mark().map(|mark| (mark.hash.as_str(), mark.word))
    }
}

fn roll_back(hash: &str, why: &str) -> Step {
    Step::RollBack { id: id(hash), why: why.into() }
}

#[test]
fn a_first_instance_applies_at_once_and_states_what_it_found() {
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    assert_eq!(process.until(100, 10, 0), []);
    process.push(&hash);
    assert_eq!((process.mark(), process.state()), (Some((&*hash, Word::Baking)), "baking"));
    assert_eq!(process.until(159, 10, 0), []);
    assert_eq!(process.until(170, 10, 0), [(160, Step::Proven { id: id(&hash), number: 2, calls: 600 })]);
    assert_eq!((process.mark(), process.state()), (Some((&*hash, Word::Proven)), "proven"));
}

#[test]
fn the_others_apply_after_the_bake_time() {
    let (mut process, hash) = (Process::new(), hash_where(false, 0));
    process.until(100, 10, 0);
    assert_eq!(process.admit(&hash).unwrap_err(), "1 of 4 instances have them first, for 1m");
    assert_eq!((process.until(159, 10, 0), process.state()), (vec![], "waiting"));
    // It was asked again meanwhile, which counts no time anew.
    assert!(process.admit(&hash).is_err());
    assert_eq!(process.until(170, 10, 0), [(160, Step::Reconsider)]);
    process.push(&hash);
    assert_eq!(process.mark(), None);
    // It watches its own calls too.
    assert_eq!(process.until(200, 10, 0), []);
    let why = "86.4% of 2200 incoming calls failed, 0.0% before";
    assert_eq!(process.until(210, 1_900, 1_900), [(201, roll_back(&hash, why))]);
    assert_eq!(process.mark(), None, "it is still in force");
    process.apply("start", Some(config()));
    assert_eq!(process.mark(), Some((&*hash, Word::Harmful)));
}

#[test]
fn harm_is_rolled_back_and_not_tried_again() {
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    process.until(100, 50, 0);
    process.push(&hash);
    let why = "100.0% of 100 incoming calls failed, 0.0% before";
    assert_eq!(process.until(110, 50, 50), [(102, roll_back(&hash, why))]);
    assert_eq!(process.mark(), Some((&*hash, Word::Baking)), "it is still in force");
    assert_eq!(process.apply("start", Some(config())), Some((id(&hash).hash, why.to_owned())));
    assert_eq!(process.mark(), Some((&*hash, Word::Harmful)));
    assert_eq!(process.admit(&hash), Err(why.to_owned()));
    assert_eq!(process.state(), "refused");
    // By hand it is tried again, and found harmful again: its own calls are not what others are compared with.
    assert_eq!((process.state.allow(&id(&hash).hash), process.state.allow("other")), (Some(id(&hash)), None));
    assert_eq!(process.mark(), None);
    process.push(&hash);
    let why = "100.0% of 100 incoming calls failed, 0.0% before";
    assert_eq!(process.until(120, 50, 50), [(112, roll_back(&hash, why))]);
}

#[test]
fn few_calls_prove_nothing_until_the_longest_bake_time() {
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    process.until(100, 1, 0);
    process.push(&hash);
    // One call a second: not judged, also if all fail.
    assert_eq!(process.until(199, 1, 1), []);
    let why = "100.0% of 100 incoming calls failed, 0.0% before";
    assert_eq!(process.until(210, 1, 1), [(200, roll_back(&hash, why))]);

    let mut process = Process::new();
    process.until(100, 0, 0);
    process.push(&hash);
    assert_eq!(process.until(800, 0, 0), [(700, Step::Proven { id: id(&hash), number: 2, calls: 0 })]);

    // The few calls that there are decide in the end.
    let mut process = Process::new();
    process.until(100, 50, 0);
    process.push(&hash);
    (process.calls.0, process.calls.1) = (process.calls.0 + 50, process.calls.1 + 50);
    let why = "100.0% of 50 incoming calls failed, 0.0% before";
    assert_eq!(process.until(800, 0, 0), [(700, roll_back(&hash, why))]);

    // Too few of them prove no harm.
    let mut process = Process::new();
    process.until(100, 50, 0);
    process.push(&hash);
    (process.calls.0, process.calls.1) = (process.calls.0 + 19, process.calls.1 + 19);
    assert_eq!(process.until(800, 0, 0), [(700, Step::Proven { id: id(&hash), number: 2, calls: 19 })]);

    let guard = RolloutConfig { guard: Switch::Off, ..config() };
    let mut process = Process::with(Some(guard));
    process.until(100, 0, 0);
    process.push(&hash);
    assert_eq!(process.until(200, 5, 5), [(160, Step::Proven { id: id(&hash), number: 2, calls: 300 })]);
}

#[test]
fn the_others_wait_for_the_first_ones_and_obey_them() {
    let hash = hash_where(false, 0);
    let others = |word| others(&hash, word);
    // The first one has few calls.
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(others(Word::Baking));
    assert_eq!(process.until(300, 10, 0), []);
    process.list(others(Word::Proven));
    assert_eq!(process.until(301, 10, 0), [(300, Step::Reconsider)]);
    process.push(&hash);

    // It never has enough of them.
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(others(Word::Baking));
    assert_eq!(process.until(800, 10, 0), [(700, Step::Reconsider)]);
    process.push(&hash);

    // They do harm there. That is remembered when it is gone.
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(others(Word::Harmful));
    assert_eq!(process.until(101, 10, 0), [(100, Step::Reconsider)]);
    let why = format!("they did harm in `{}`", first_of(&hash));
    assert_eq!(process.admit(&hash), Err(why.clone()));
    process.list(Vec::new());
    process.until(1_000, 10, 0);
    assert_eq!(process.admit(&hash), Err(why));
}

#[test]
fn harm_elsewhere_counts_while_settings_are_watched() {
    let hash = hash_where(true, 0);
    let mut process = Process::new();
    process.until(100, 10, 0);
    process.push(&hash);
    process.list(vec![marked("b", &hash, Word::Harmful)]);
    assert_eq!(process.until(101, 10, 0), [(100, roll_back(&hash, "they did harm in `b`"))]);
    let why = "they did harm in `b`".to_owned();
    assert_eq!(process.apply("start", Some(config())), Some((id(&hash).hash, why)));
    assert_eq!(process.mark(), None, "it found nothing by itself");

    // Those of a start too, but not those that are proven.
    let mut process = Process::new();
    process.list(vec![marked("b", "start", Word::Harmful)]);
    assert_eq!(process.until(10, 10, 0), [(0, roll_back("start", "they did harm in `b`"))]);
    let mut process = Process::new();
    process.until(100, 10, 0);
    process.list(vec![marked("b", "start", Word::Harmful)]);
    assert_eq!(process.until(200, 10, 0), []);
}

#[test]
fn a_push_while_settings_are_watched_is_compared_with_the_last_proven_ones() {
    let (one, two) = (hash_where(true, 0), hash_where(true, 1));
    let mut process = Process::new();
    assert_eq!(process.until(100, 100, 10), []);
    process.push(&one);
    // Worse, and not enough to be rolled back.
    assert_eq!(process.until(105, 100, 15), []);
    process.push(&two);
    let steps = process.until(110, 100, 22);
    let why = |step: &Step| match step {
        Step::RollBack { id: of, why } if *of == id(&two) => why.clone(),
        other => panic!("{other:?}"),
    };
    assert!(why(&steps[0].1).ends_with("incoming calls failed, 10.0% before"), "{steps:?}");
}

#[test]
fn settings_that_went_while_they_waited_are_not_applied() {
    let (mut process, hash) = (Process::new(), hash_where(false, 0));
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.until(150, 10, 0);
    process.state.settled();
    assert_eq!((process.until(300, 10, 0), process.state()), (vec![], ""));
    assert!(process.admit(&hash).is_err(), "the time begins anew");
    // Another push replaces those that wait.
    let other = hash_where(false, 1);
    process.until(310, 10, 0);
    assert!(process.admit(&other).is_err());
    assert_eq!(process.until(400, 10, 0), [(370, Step::Reconsider)]);
    process.push(&other);
}

#[test]
fn a_process_that_knows_no_others() {
    // Alone it is the first.
    let hash = hash_where(false, 0);
    let mut process = Process::new();
    process.list(Vec::new());
    process.until(100, 10, 0);
    process.push(&hash);
    assert_eq!(process.mark(), None, "nothing reads it");
    // A registry that has never answered: it may be one of many.
    let mut process = Process::new();
    process.state.members = None;
    process.until(100, 10, 0);
    assert!(process.admit(&hash).unwrap_err().starts_with("the registry has not listed"));
    assert_eq!(process.until(170, 10, 0), [(160, Step::Reconsider)]);
    process.push(&hash);
}

/// Settings that end a process are not tried by one process after the other: not if others waited, and not if they learn of the
/// settings later.
#[test]
fn no_other_takes_the_place_of_a_first_one_that_went_away() {
    use chassis_core::registry::Status;
    let hash = hash_where_second();
    let unready = marked(first_of(&hash), &hash, Word::Baking).with_status(Status::OutOfService);
    let again = instance("e"); // the same process after its restart
    let lists = [
        rest(&hash),
        rest(&hash).into_iter().chain([again]).collect(),
        rest(&hash).into_iter().chain([unready]).collect(),
        // Its proof is worth nothing: it took no calls.
        rest(&hash)
            .into_iter()
            .chain([marked(first_of(&hash), &hash, Word::Proven).with_status(Status::OutOfService)])
            .collect(),
    ];
    let why = format!("`{}` went away, or took no calls, while it had them first", first_of(&hash));
    for (list, is_waiting) in lists.iter().flat_map(|list| [(list, true), (list, false)]) {
        let mut process = Process::new();
        process.until(100, 10, 0);
        if is_waiting {
            assert!(process.admit(&hash).is_err());
        }
        process.list(others(&hash, Word::Baking));
        process.until(105, 10, 0);
        process.list(list.clone());
        assert_eq!(process.until(106, 10, 0), []);
        assert!(process.admit(&hash).unwrap_err().contains("have them first"), "{list:?}");
        let end = if is_waiting { 700 } else { 706 };
        assert_eq!(process.until(800, 10, 0), [(end, Step::Reconsider)], "{list:?}");
        assert_eq!((process.admit(&hash), process.mark()), (Err(why.clone()), None));
        assert_eq!(process.state(), "refused");
        // By hand they are tried again, as those that no other has had.
        assert_eq!(process.state.allow(&id(&hash).hash), Some(id(&hash)));
        let is_first = process.admit(&hash).is_ok();
        process.until(if is_first { 800 } else { 900 }, 10, 0);
        process.push(&hash);
    }
}

#[test]
fn a_first_one_that_comes_back_is_waited_for() {
    let hash = hash_where_second();
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(others(&hash, Word::Baking));
    process.list(rest(&hash));
    assert_eq!(process.until(300, 10, 0), []);
    process.list(others(&hash, Word::Baking));
    assert_eq!(process.until(400, 10, 0), []);
    process.list(others(&hash, Word::Proven));
    process.list(rest(&hash));
    assert_eq!(process.until(401, 10, 0), [(400, Step::Reconsider)]);
    process.push(&hash);

    // One that has other settings first now has withdrawn its statement in order.
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(others(&hash, Word::Baking));
    let withdrawn: Vec<_> =
        rest(&hash).into_iter().chain([marked(first_of(&hash), "x", Word::Baking)]).collect();
    process.list(withdrawn.clone());
    assert_eq!(process.until(170, 10, 0), [(160, Step::Reconsider)]);
    process.push(&hash);

    // But not by a restart.
    let at = |second| std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    let with = |first: Instance| rest(&hash).into_iter().chain([first]).collect::<Vec<_>>();
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(with(marked(first_of(&hash), &hash, Word::Baking).with_started_at(at(1))));
    process.list(with(instance(first_of(&hash)).with_started_at(at(2))));
    assert_eq!(process.until(800, 10, 0), [(700, Step::Reconsider)]);
    assert!(process.admit(&hash).unwrap_err().contains("went away"));
}

/// The first one left before it had the settings: after the bake time another is first.
#[test]
fn one_becomes_first_after_the_bake_time_if_none_ever_was() {
    let hash = hash_where_second();
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(rest(&hash));
    assert_eq!(process.until(170, 10, 0), [(160, Step::Reconsider)]);
    process.push(&hash);
    assert_eq!(process.mark(), Some((&*hash, Word::Baking)));

    // This one is not, and waits once more.
    let fits = |hash: &String| ranked(hash, ["a", "b", "c", "d"]).nth(3) == Some("a");
    let hash = (0..).map(|n| format!("{n:x}")).find(fits).unwrap();
    let mut process = Process::new();
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(rest(&hash));
    assert_eq!(process.until(230, 10, 0), [(220, Step::Reconsider)]);
    process.push(&hash);
    assert_eq!(process.mark(), None);
}

#[test]
fn settings_that_crashed_this_process_are_stated_to_the_others() {
    let start = |why: &str, config| {
        let mut state = State::default();
        state.me.id = "a".into();
        state.refused(&id("bad"), why);
        state.applied(&id("start"), 1, config, Instant::now(), &Totals::default());
        state.mark().map(|mark| (mark.hash.clone(), mark.word))
    };
    let crashed = "it crashed the process 2 times right after it was applied";
    assert_eq!(start(crashed, Some(config())), Some(("bad".to_owned(), Word::Harmful)));
    assert_eq!(start(crashed, None), None);
    assert_eq!(start("they did harm in `b`", Some(config())), None, "`b` states it");
}

#[test]
fn harmful_settings_that_stay_in_force_are_not_stated() {
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    process.until(100, 50, 0);
    process.push(&hash);
    assert_eq!(process.until(110, 50, 50).len(), 1);
    assert!(process.state.kept(&id(&hash).hash) && process.state.is_harmful(&id(&hash).hash));
    assert_eq!((process.mark(), process.state()), (Some((&*hash, Word::Baking)), ""));
    // Those of a start neither.
    let mut process = Process::new();
    process.list(vec![marked("b", "start", Word::Harmful)]);
    assert_eq!(process.until(10, 10, 0).len(), 1);
    assert!(process.state.kept("own-start"));
    assert_eq!((process.until(100, 10, 0), process.mark()), (vec![], None));
}

#[test]
fn only_a_process_that_is_listed_is_first() {
    for others in [vec!["b", "c", "d"], vec![]] {
        let (mut process, hash) = (Process::new(), hash_where(true, 0));
        process.state.members = None;
        let others: Vec<_> = others.into_iter().map(|id| Arc::new(instance(id))).collect();
        process.state.listed(others, process.now);
        process.until(100, 10, 0);
        assert!(process.admit(&hash).is_err());
        assert_eq!(process.until(170, 10, 0), [(160, Step::Reconsider)]);
        process.push(&hash);
        assert_eq!(process.mark(), None);
    }
    // It is once it is.
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    process.state.members = None;
    process.until(100, 10, 0);
    assert!(process.admit(&hash).is_err());
    process.list(["b", "c", "d"].map(instance).to_vec());
    assert_eq!(process.until(101, 10, 0), [(100, Step::Reconsider)]);
    process.push(&hash);
    assert_eq!(process.mark(), Some((&*hash, Word::Baking)));
}

#[test]
fn without_a_roll_out_all_is_applied_at_once() {
    let hash = hash_where(false, 0);
    let mut process = Process::with(None);
    assert!(!process.state.is_on());
    process.until(10, 10, 0);
    assert_eq!(process.admit(&hash), Ok(()));
    process.apply(&hash, Some(config()));
    assert_eq!((process.until(100, 10, 10), process.state.is_on()), (vec![], true));
    // The settings in force decide, also on those that switch it off.
    let off = hash_where(false, 1);
    assert!(process.admit(&off).is_err());
    process.until(200, 10, 0);
    assert_eq!(process.admit(&off), Ok(()));
    process.apply(&off, None);
    assert!(process.state.governing.is_some());
    process.until(400, 10, 0);
    assert!(!process.state.is_on());
}

#[test]
fn a_version_by_hand_is_not_watched() {
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    process.until(100, 10, 0);
    process.push(&hash);
    process.until(110, 10, 0);
    assert_eq!(process.apply("start", Some(config())), None);
    // The others do not apply those that it replaces.
    assert_eq!((process.until(400, 10, 10), process.mark()), (vec![], Some((&*hash, Word::Harmful))));
    // Other settings that come by a push say nothing about those before.
    let (one, two) = (hash_where(true, 1), hash_where(true, 2));
    process.push(&one);
    process.push(&two);
    assert_eq!(process.mark(), Some((&*two, Word::Baking)));
    let short = RolloutConfig { bake_time: PositiveSpan::from_millis(1_000), ..config() };
    assert!(short.check().is_ok());
    let odd = RolloutConfig { max_bake_time: Some(PositiveSpan::from_millis(10)), ..config() };
    assert_eq!(odd.check().unwrap_err().0, "max_bake_time");
}

#[test]
fn a_change_of_this_process_alone_is_no_roll_out() {
    let (mut process, hash) = (Process::new(), hash_where(true, 0));
    process.until(100, 10, 0);
    let own = |shared: &str| Id { hash: "of a rotated secret".into(), shared: shared.into() };
    assert_eq!(process.state.admit(&own("start"), process.now), Ok(()));
    process.number += 1;
    process.state.applied(&own("start"), process.number, Some(config()), process.now, &process.totals());
    assert_eq!((process.until(200, 10, 10), process.state()), (vec![], ""));
    // While settings are watched, the watch goes on.
    process.push(&hash);
    process.until(250, 10, 10);
    assert_eq!(process.state.admit(&own(&hash), process.now), Ok(()));
    process.number += 1;
    process.state.applied(&own(&hash), process.number, Some(config()), process.now, &process.totals());
    assert_eq!(process.until(300, 10, 10), [(260, Step::Proven { id: own(&hash), number: 4, calls: 600 })]);
}
