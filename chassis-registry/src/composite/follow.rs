//! Follows one service at all members that are read, and shows their union.
use std::{sync::Arc, time::Duration};

use chassis_core::{
    adapter::Feed,
    registry::{Membership, RegistryError},
    tasks::{backoff, catch, caught},
};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{Member, merge::Merged};

/// The lists of the members for one service.
#[derive(Clone, Default)]
pub(super) struct Shown {
    /// The last answer of each member; `None` before the first one, and of members that are not read.
    pub(super) answers: Vec<Option<Arc<Membership>>>,
    /// The published list.
    merged: Option<Arc<Merged>>,
}

/// The news of one member.
enum News {
    Said(Membership),
    Failed(String),
}

/// The state of one member.
#[derive(Default)]
struct Reading {
    answer: Option<Arc<Membership>>,
    /// Why it has no news; `None` while it is followed.
    failed: Option<String>,
    /// When its failure was reported.
    reported: Option<Instant>,
}

/// The time for which the first answer waits for members that have neither answered nor failed.
const FIRST: Duration = Duration::from_secs(1);
/// A member that has neither begun to watch nor answered after this time is called again.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest pause before a member that fails is called again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A member that fails for an unchanged reason is reported again after this time.
const REMINDER: Duration = Duration::from_secs(60);
/// Changes that come within this time are shown together.
const PACE: Duration = Duration::from_millis(5);
/// Larger sets are merged by another thread, because calls wait for this one.
const FEW: usize = 2_000;
/// So many answers of the members wait to be merged.
const WAITING: usize = 16;

/// Follows `service` until it is dropped.
pub(super) async fn follow(members: Arc<[Member]>, service: String, feed: &mut Feed<Shown>) {
    let (to, mut news) = mpsc::channel(WAITING);
    let mut readers = JoinSet::new(); // end with this
    let mut readings: Vec<(usize, Reading)> = Vec::new();
    for (at, member) in members.iter().enumerate().filter(|(_, member)| member.mode.reads()) {
        readings.push((at, Reading::default()));
        let (member, service, to) = (member.clone(), service.clone(), to.clone());
        readers.spawn(async move { read(&member, &service, at, &to).await });
    }
    let begun = Instant::now();
    let mut last: Option<Arc<Merged>> = None;
    loop {
        let is_asked = readings.iter().all(|(_, one)| one.answer.is_some() || one.failed.is_some());
        if is_asked || begun.elapsed() >= FIRST {
            let given: (Vec<_>, Vec<_>) = readings.iter().map(|(at, one)| (*at, one.answer.clone())).unzip();
            let from_many = count(&given.1) > FEW;
            let merged = merge(given, last.clone()).await;
            let mut answers = vec![None; members.len()];
            for (at, reading) in &readings {
                answers[*at].clone_from(&reading.answer);
            }
            match merged {
                Some(merged) => {
                    let known = merged.known.clone();
                    feed.publish_shared(known, Shown { answers, merged: Some(merged.clone()) });
                    let before = last.replace(merged);
                    if from_many {
                        drop(spawn_blocking(move || drop(before))); // calls wait for this thread
                    }
                }
                None => feed.at(Shown { answers, merged: last.clone() }),
            }
            report(&mut readings, &members, last.is_some(), feed);
        }
        let first = (begun + FIRST > Instant::now()).then_some(begun + FIRST);
        let wait = async {
            match first {
                Some(first) => sleep_until(first).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            some = news.recv() => {
                let Some(some) = some else { return };
                take_in(&mut readings, some);
                if last.is_some() {
                    sleep(PACE).await;
                }
                while let Ok(more) = news.try_recv() {
                    take_in(&mut readings, more);
                }
            }
            () = wait => {}
        }
    }
}

// === impl Shown ===

impl Shown {
    /// The member that the instance comes from.
    pub(super) fn member_of(&self, id: &str) -> Option<usize> {
        self.merged.as_ref()?.member_of(id)
    }
}

/// Merges the answers of these members, unless the result is the `last` one. Compared there too, as there may be many
/// instances.
async fn merge(
    (members, answers): (Vec<usize>, Vec<Option<Arc<Membership>>>),
    last: Option<Arc<Merged>>,
) -> Option<Arc<Merged>> {
    let is_small = count(&answers) <= FEW;
    let merge = move || {
        let mut merged = Merged::of(&answers)?;
        merged.number(|at| members[at]);
        Some(merged).filter(|merged| last.as_deref() != Some(merged)).map(Arc::new)
    };
    match is_small {
        true => merge(),
        // An error means that the process ends.
        false => spawn_blocking(merge).await.ok().flatten(),
    }
}

/// The number of instances of all answers.
fn count(answers: &[Option<Arc<Membership>>]) -> usize {
    let count = |answer: &Option<Arc<Membership>>| match answer.as_deref() {
        Some(Membership::Known(all)) => all.len(),
        _ => 0,
    };
    answers.iter().map(count).sum()
}

fn take_in(readings: &mut [(usize, Reading)], (from, news): (usize, News)) {
    let Some((_, reading)) = readings.iter_mut().find(|(at, _)| *at == from) else { return };
    match news {
        News::Said(answer) => *reading = Reading { answer: Some(Arc::new(answer)), ..Reading::default() },
        News::Failed(why) => reading.failed = Some(why),
    }
}

/// Reports members that began to fail, or still do, to one watcher. While nothing is known, every failure is
/// reported: the watcher then uses what it has on disk.
fn report(readings: &mut [(usize, Reading)], members: &[Member], is_known: bool, feed: &Feed<Shown>) {
    let now = Instant::now();
    let mut failing = Vec::new();
    for (at, reading) in readings {
        let Some(why) = &reading.failed else { continue };
        let is_reported = reading.reported.is_some_and(|at| now < at + REMINDER);
        if !is_reported || !is_known {
            failing.push(format!("`{}`: {why}", members[*at].name));
            reading.reported = Some(now);
        }
    }
    if !failing.is_empty() {
        feed.fail(failing.join("; "));
    }
}

/// Follows the service at one member for ever, whatever the member does.
async fn read(member: &Member, service: &str, at: usize, to: &mpsc::Sender<(usize, News)>) {
    let mut failures = 0;
    loop {
        let error = match caught(read_on(member, service, at, to, &mut failures)).await {
            Ok(error) => error,
            Err(panicked) => RegistryError::new(panicked.to_string()),
        };
        failures += 1;
        if to.send((at, News::Failed(super::chain(&error)))).await.is_err() {
            return;
        }
        sleep(backoff(failures, LONGEST_PAUSE, &member.random)).await;
    }
}

/// Follows one watcher until it fails.
async fn read_on(
    member: &Member,
    service: &str,
    at: usize,
    to: &mpsc::Sender<(usize, News)>,
    failures: &mut u32,
) -> RegistryError {
    let late = |what: &str| RegistryError::new(format!("it did not {what} within {ANSWER:?}"));
    let begun = timeout(ANSWER, member.registry.watch(service)).await;
    let mut watcher = match begun.unwrap_or_else(|_| Err(late("watch"))) {
        Ok(watcher) => watcher,
        Err(error) => return error,
    };
    let first = timeout(ANSWER, watcher.next()).await;
    let mut next = first.unwrap_or_else(|_| Err(late("return the instances")));
    loop {
        match next {
            Ok(said) => {
                *failures = 0;
                if to.send((at, News::Said(said))).await.is_err() {
                    return RegistryError::new("the process ends");
                }
            }
            Err(error) => {
                // Dropping it may panic, too.
                return match catch(|| drop(watcher)) {
                    Ok(()) => error,
                    Err(panicked) => RegistryError::new(panicked.to_string()),
                };
            }
        }
        // Other tasks get their turn, even if the member always has changes.
        tokio::task::yield_now().await;
        next = watcher.next().await;
    }
}
