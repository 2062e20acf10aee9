//! The services that the registry knows, for the errors of calls to unknown ones.
//!
//! A registry may know 100,000 services, and as many calls a second may fail. So it is asked in the background, for all
//! clusters together at most once a second, and the words of an error are made once for many calls. The names that calls
//! ask for may come from input, so the work that each new one makes is bounded.
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{
    Cluster,
    offload::{IN_PLACE, offload},
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
/// It lists up to 8 names and, in most cases, the one most similar to that of the call, so it is for readers within this
/// process: the messages of errors, which are sent to callers, do not contain it.
#[derive(Debug)]
pub struct KnownServices(Box<str>);

/// The last list of the registry.
#[derive(Default)]
pub(crate) struct Directory {
    last: Arc<Mutex<Option<(Instant, Listed)>>>,
    /// Calls to unknown services are reported once a second.
    reports: LogThrottle,
    /// Held while the registry is asked and its answer sorted, also if the one that asked has gone.
    asking: Arc<tokio::sync::Mutex<()>>,
    /// Held while a name is compared with many others, also if the one that asked has gone.
    comparing: Arc<tokio::sync::Mutex<()>>,
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
/// The number of characters of a name that an error shows, and of the longest for which a similar one is sought.
const LONGEST_NAME: usize = 64;
/// A similar name is sought among this many at most, which takes some 10 ms.
const MOST_COMPARED: usize = 10_000;
/// How long an error waits for a similar name.
const COMPARED: Duration = Duration::from_millis(100);

// === impl Directory ===

impl Directory {
    /// The services that `registry` knows, as of the last second.
    pub(super) async fn listed(&self, registry: &dyn Registry) -> Listed {
        let asking = self.asking.clone().lock_owned().await;
        let last = locked(&self.last).clone();
        if let Some((_, listed)) = last.filter(|(at, _)| Instant::now() < *at + FRESH) {
            return listed;
        }
        // Foreign code, also where it only names itself.
        let names = caught(tokio::time::timeout(LIST, registry.services())).await.ok().and_then(Result::ok);
        let (of, can_list) =
            catch(|| (registry.name().to_owned(), registry.lists_services())).unwrap_or_default();
        let (now, last) = (Instant::now(), self.last.clone());
        // All of it there: the next one that asks finds the list, even if this one has gone.
        offload(names.as_ref().map_or(0, Vec::len), move || {
            let listed = Listed::new(&of, names, can_list);
            let before = locked(&last).replace((now, listed.clone()));
            drop((before, asking));
            listed
        })
        .await
    }

    /// The error of calls to `service`, which is looked up in `registry` and is not among these services. It has the
    /// most similar name, unless they are too many, the name is too long, or another one is compared at this time.
    pub(super) async fn not_known(&self, listed: Listed, service: Arc<str>, registry: Arc<str>) -> NotKnown {
        let (message, known) = (not_known(&service, &registry).into(), listed.known.clone());
        let similar = self.similar(listed, service).await;
        let known = match similar {
            Some(name) => {
                Arc::new(KnownServices(format!("{known}; did you mean `{}`?", shown(&name)).into()))
            }
            None => known,
        };
        NotKnown { message, known }
    }

    /// The name of `listed` that is most similar to `service`. Compares it with all others.
    async fn similar(&self, listed: Listed, service: Arc<str>) -> Option<String> {
        let count = listed.names.len();
        if count > MOST_COMPARED || service.chars().nth(LONGEST_NAME).is_some() {
            return None;
        }
        // Work on another thread can't be stopped, so no other one begins before its end. A few names are compared here.
        let comparing = match count > IN_PLACE {
            true => Some(self.comparing.clone().try_lock_owned().ok()?),
            false => None,
        };
        let similar = offload(count, move || {
            let _comparing = comparing;
            let others = listed.names.iter().map(String::as_str).filter(|other| *other != &*service);
            nearest(&service, others).map(str::to_owned)
        });
        tokio::time::timeout(COMPARED, similar).await.ok().flatten()
    }
}

/// No code panics while the lock is held, so a poisoned lock is still valid.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
}

/// The message of the error. It may leave this process, so it has no name that the registry lists.
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

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    };

    use tokio::time::timeout;

    use super::*;
    use crate::plugin::registry::{Instance, Registration, RegistryError, Watcher};

    /// Lists this many services, and counts how often it is asked.
    struct Listing(usize, AtomicUsize);

    #[async_trait::async_trait]
    impl Registry for Listing {
        fn name(&self) -> &str {
            "listing"
        }
        async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
            Err(RegistryError::unsupported("register"))
        }
        async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
            Err(RegistryError::unsupported("watch"))
        }
        async fn services(&self) -> Vec<String> {
            self.1.fetch_add(1, SeqCst);
            names(self.0)
        }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("service-{n}")).collect()
    }

    fn listed(count: usize) -> Listed {
        Listed::new("listing", Some(names(count)), true)
    }

    async fn known(directory: &Directory, listed: Listed, service: &str) -> String {
        directory.not_known(listed, service.into(), "listing".into()).await.known.to_string()
    }

    /// Runs a test whose only thread for blocking work is busy until the sender is dropped.
    fn with_a_busy_thread<F: Future<Output = ()>>(test: impl FnOnce(mpsc::Sender<()>) -> F) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let (busy, until) = mpsc::channel();
            drop(tokio::task::spawn_blocking(move || until.recv()));
            timeout(Duration::from_secs(60), test(busy)).await.expect("it ends");
        });
    }

    /// Names may come from input, and work that has begun can't be stopped.
    #[test]
    fn one_name_at_a_time_is_compared_with_many() {
        with_a_busy_thread(async |busy| {
            let (directory, many) = (Directory::default(), listed(1_000));
            timeout(Duration::ZERO, known(&directory, many.clone(), "service-07")).await.unwrap_err();
            for n in 0..100 {
                let name = format!("servize-{n}");
                let next = timeout(Duration::ZERO, known(&directory, many.clone(), &name));
                let known = next.await.expect("it waits for no other");
                assert_eq!(known, many.known.to_string());
            }
            // A few are compared in place.
            let few = known(&directory, listed(2), "servize-1").await;
            assert_eq!(
                few,
                "the registry `listing` lists 2 services: service-0, service-1; did you mean `service-1`?"
            );
            drop(busy);
            drop(directory.comparing.lock().await);
            let known = known(&directory, many, "servize-7").await;
            assert!(known.ends_with("; did you mean `service-7`?"), "{known}");
        });
    }

    #[test]
    fn an_error_waits_for_a_similar_name_for_a_while() {
        with_a_busy_thread(async |_busy| {
            let (directory, many) = (Directory::default(), listed(1_000));
            let mut error = std::pin::pin!(known(&directory, many.clone(), "servize-7"));
            timeout(Duration::ZERO, &mut error).await.unwrap_err();
            tokio::time::advance(COMPARED).await; // the clock stands still while blocking work is under way
            assert_eq!(timeout(Duration::ZERO, error).await.expect("no longer"), many.known.to_string());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn neither_long_names_nor_very_many_are_compared() {
        let directory = Directory::default();
        let (most, more) = (listed(MOST_COMPARED), listed(MOST_COMPARED + 1));
        let found = known(&directory, most, "servize-7").await;
        assert!(found.ends_with("; did you mean `service-7`?"), "{found}");
        assert_eq!(known(&directory, more.clone(), "servize-7").await, more.known.to_string());
        let long = "é".repeat(LONGEST_NAME);
        let of = |name: &str| Listed::new("listing", Some(vec![format!("{name}x")]), true);
        assert!(known(&directory, of(&long), &long).await.contains("did you mean"));
        let longer = long + "é";
        assert!(!known(&directory, of(&longer), &longer).await.contains("did you mean"));
    }

    /// The one that asks may not wait for the end.
    #[test]
    fn a_long_list_is_asked_for_once() {
        with_a_busy_thread(async |busy| {
            let (directory, registry) = (Directory::default(), Listing(1_000, AtomicUsize::new(0)));
            for _ in 0..10 {
                assert!(timeout(Duration::ZERO, directory.listed(&registry)).await.is_err());
            }
            drop(busy);
            assert_eq!(directory.listed(&registry).await.names.len(), 1_000);
            assert_eq!(registry.1.load(SeqCst), 1);
        });
    }
}
