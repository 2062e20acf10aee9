//! The services that the registry knows, for the errors of calls to unknown ones.
//!
//! A registry may know 100,000 services, and as many calls a second may fail. So it is asked in the background, for all
//! clusters together at most once a second, and the words of an error are made once for many calls.
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Cluster,
    offload::{drop_list, offload},
};
use crate::{
    algorithm::nearest,
    clock::Instant,
    event::{Event, LogThrottle},
    plugin::registry::Registry,
    tasks::{catch, caught},
};

/// The services that a registry knows: the source of the error of a call to an unknown one.
///
/// It lists up to 8 names, so it is for readers within this process: the messages of errors, which are sent to callers,
/// do not contain it.
#[derive(Debug)]
pub struct KnownServices(Box<str>);

/// The last list of the registry.
#[derive(Default)]
pub(crate) struct Directory {
    last: Mutex<Option<(Instant, Listed)>>,
    /// Calls to unknown services are reported once a second.
    reports: LogThrottle,
    /// Held while the registry is asked.
    asking: tokio::sync::Mutex<()>,
}

/// The names at one moment, sorted, and the words for them.
#[derive(Clone)]
pub(super) struct Listed {
    names: Arc<[String]>,
    known: Arc<KnownServices>,
}

/// The error of a call to a service that the registry does not know.
#[derive(Clone, Debug)]
pub(crate) struct NotKnown {
    pub(crate) message: Arc<str>,
    pub(crate) known: Arc<KnownServices>,
}

/// The registry is asked again after this time at the earliest.
const FRESH: Duration = Duration::from_secs(1);
/// The time in which the registry must list its services.
const LIST: Duration = Duration::from_secs(3);
/// The number of services that an error lists.
const MOST_LISTED: usize = 8;
/// The number of characters of a name that an error shows.
const LONGEST_NAME: usize = 64;

// === impl Directory ===

impl Directory {
    /// The services that `registry` knows, as of the last second.
    pub(super) async fn listed(&self, registry: &dyn Registry) -> Listed {
        let _asking = self.asking.lock().await;
        let last = self.last().clone();
        if let Some((_, listed)) = last.filter(|(at, _)| Instant::now() < *at + FRESH) {
            return listed;
        }
        // Foreign code, also where it only names itself.
        let names = caught(tokio::time::timeout(LIST, registry.services())).await.ok().and_then(Result::ok);
        let (of, can_list) =
            catch(|| (registry.name().to_owned(), registry.lists_services())).unwrap_or_default();
        let listed =
            offload(names.as_ref().map_or(0, Vec::len), move || Listed::new(&of, names, can_list)).await;
        let before = self.last().replace((Instant::now(), listed.clone()));
        drop_list(before.as_ref().map_or(0, |(_, before)| before.names.len()), before);
        listed
    }

    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn last(&self) -> std::sync::MutexGuard<'_, Option<(Instant, Listed)>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Cluster ===

impl Cluster {
    /// A call fails with this error, because the registry does not know the service.
    pub(crate) fn report_not_known(&self, error: &NotKnown) {
        // Not one event for each name, because names may come from input.
        if self.lookup.directory.reports.allow(Instant::now(), self.lookup.start.begun()) {
            let (service, known) = (self.registered.clone(), error.known.to_string());
            let message = error.message.to_string();
            self.reporter().events.emit(Event::UnknownService { service, message, known });
        }
    }
}

// === impl Listed ===

impl Listed {
    /// `names`: `None` if the registry did not answer in time.
    fn new(registry: &str, names: Option<Vec<String>>, can_list: bool) -> Self {
        let is_answered = names.is_some();
        let mut names = names.unwrap_or_default();
        names.sort_unstable();
        names.dedup();
        let registry = shown(registry);
        let known = match (can_list, is_answered, names.len()) {
            (false, ..) => format!("the registry `{registry}` can't list its services"),
            (true, false, _) => {
                format!("the registry `{registry}` did not list its services within {LIST:?}")
            }
            (true, true, 0) => format!("the registry `{registry}` lists no services"),
            (true, true, count) => {
                let first: Vec<_> = names.iter().take(MOST_LISTED).map(|name| shown(name)).collect();
                let services = if count == 1 { "service" } else { "services" };
                let all = if count > MOST_LISTED { ", among them" } else { ":" };
                format!("the registry `{registry}` lists {count} {services}{all} {}", first.join(", "))
            }
        };
        Listed { names: names.into(), known: Arc::new(KnownServices(known.into())) }
    }

    /// The error of calls to `service`, which is looked up in `registry`. Compares the name with all others.
    pub(super) async fn not_known(self, service: Arc<str>, registry: Arc<str>) -> NotKnown {
        let count = self.names.len();
        offload(count, move || {
            let others = self.names.iter().map(String::as_str).filter(|other| *other != &*service);
            let near = nearest(&service, others).map(|near| format!("; did you mean `{}`?", shown(near)));
            let message = not_known(&service, &registry) + &near.unwrap_or_default();
            NotKnown { message: message.into(), known: self.known }
        })
        .await
    }
}

/// The message of the error, without a similar name.
pub(crate) fn not_known(service: &str, registry: &str) -> String {
    format!("no service `{service}` is registered with `{registry}`")
}

/// A name of a registry, which may contain anything.
fn shown(name: &str) -> String {
    let mut shown: String = name.chars().take(LONGEST_NAME).flat_map(char::escape_debug).collect();
    if name.chars().nth(LONGEST_NAME).is_some() {
        shown.push('…');
    }
    shown
}

// === impl KnownServices ===

impl fmt::Display for KnownServices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for KnownServices {}
