//! Several registries at once, some of which fail.
#![allow(clippy::unwrap_used)]
use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::registry::{Instance, Membership, Registration, Registry, RegistryError, Status, Watcher};
use chassis_registry::{CompositeRegistry, MemberMode, MemoryRegistry};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};

/// How a registry behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    Work,
    Refuse,
    Hang,
    Panic,
    /// Works, but for updates.
    RefuseUpdates,
}

/// A registry that fails on demand; also its watchers and registrations.
#[derive(Clone)]
struct Flaky {
    registry: MemoryRegistry,
    does: watch::Sender<Does>,
}

struct FlakyWatcher(Flaky, Box<dyn Watcher>);
struct FlakyRegistration(Flaky, Option<Box<dyn Registration>>);

impl Does {
    fn works(self) -> bool {
        matches!(self, Does::Work | Does::RefuseUpdates)
    }
}

impl Flaky {
    fn new(does: Does) -> Self {
        Flaky { registry: MemoryRegistry::new(), does: watch::Sender::new(does) }
    }

    fn does(&self, does: Does) {
        self.does.send_replace(does);
    }

    /// Pending while it hangs.
    async fn act(&self) -> Result<(), RegistryError> {
        let mut does = self.does.subscribe();
        let does = *does.wait_for(|does| *does != Does::Hang).await.unwrap();
        match does {
            Does::Refuse => Err(RegistryError::new("connection refused")),
            Does::Panic => panic!("out of cheese"),
            Does::Work | Does::RefuseUpdates | Does::Hang => Ok(()),
        }
    }

    /// Resolves when it begins to fail.
    async fn fails(&self) -> RegistryError {
        let mut does = self.does.subscribe();
        does.wait_for(|does| !does.works()).await.unwrap();
        self.act().await.expect_err("it fails")
    }

    async fn listed(&self, service: &str) -> Vec<Instance> {
        listed(self.registry.watch(service).await.unwrap().next().await.unwrap())
    }
}

#[async_trait]
impl Registry for Flaky {
    fn name(&self) -> &str {
        "flaky"
    }
    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        self.act().await?;
        let registration = self.registry.register(instance).await?;
        Ok(Box::new(FlakyRegistration(self.clone(), Some(registration))))
    }
    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        self.act().await?;
        Ok(Box::new(FlakyWatcher(self.clone(), self.registry.watch(service).await?)))
    }
    async fn services(&self) -> Vec<String> {
        match self.act().await {
            Ok(()) => self.registry.services().await,
            Err(_) => Vec::new(),
        }
    }
    fn never_blocks(&self) -> bool {
        true
    }
}

#[async_trait]
impl Watcher for FlakyWatcher {
    async fn next(&mut self) -> Result<Membership, RegistryError> {
        self.0.act().await?;
        tokio::select! {
            error = self.0.fails() => Err(error),
            next = self.1.next() => next,
        }
    }
}

#[async_trait]
impl Registration for FlakyRegistration {
    async fn update(&mut self, instance: Instance) -> Result<(), RegistryError> {
        self.0.act().await?;
        if *self.0.does.borrow() == Does::RefuseUpdates {
            return Err(RegistryError::unsupported("no updates"));
        }
        self.1.as_mut().unwrap().update(instance).await
    }
    async fn deregister(mut self: Box<Self>) -> Result<(), RegistryError> {
        self.0.act().await?;
        self.1.take().unwrap().deregister().await
    }
}

/// A lease that can't be ended stays.
impl Drop for FlakyRegistration {
    fn drop(&mut self) {
        if !self.0.does.borrow().works() {
            std::mem::forget(self.1.take());
        }
    }
}

fn listed(known: Membership) -> Vec<Instance> {
    match known {
        Membership::Known(all) => all.iter().map(|one| (**one).clone()).collect(),
        _ => Vec::new(),
    }
}

fn stock(id: &str) -> Instance {
    Instance::new("stock", id).with_address("grpc", format!("{id}.local:1"))
}

fn ids(known: &Membership) -> String {
    listed(known.clone()).iter().map(|one| one.id.clone()).collect::<Vec<_>>().join(" ")
}

/// Two members that are read and written: `new` precedes `old`.
fn two(new: &Flaky, old: &Flaky) -> CompositeRegistry {
    CompositeRegistry::new().member("new", MemberMode::ReadWrite, new.clone()).member(
        "old",
        MemberMode::ReadWrite,
        old.clone(),
    )
}

#[tokio::test(start_paused = true)]
async fn a_member_that_fails_hides_no_other_and_keeps_its_last_answer() {
    for failure in [Does::Refuse, Does::Panic, Does::Hang] {
        let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Work));
        new.registry.put(stock("a"));
        old.registry.put(stock("b"));
        let registry = two(&new, &old);
        let mut watcher = registry.watch("stock").await.unwrap();
        assert_eq!(ids(&watcher.next().await.unwrap()), "a b");

        old.does(failure);
        if failure != Does::Hang {
            let error = watcher.next().await.unwrap_err().to_string();
            assert!(error.starts_with("`old`: "), "{error}");
        }
        old.registry.remove("stock", "b");
        new.registry.put(stock("c"));
        assert_eq!(ids(&watcher.next().await.unwrap()), "a b c", "while `old` does {failure:?}");
        // A watcher that begins now is answered at once.
        let begun = Instant::now();
        let mut late = registry.watch("stock").await.unwrap();
        assert_eq!(ids(&late.next().await.unwrap()), "a b c");
        assert_eq!(begun.elapsed(), Duration::ZERO);

        old.does(Does::Work);
        assert_eq!(ids(&watcher.next().await.unwrap()), "a c", "`old` is back after {failure:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_answer_waits_for_a_slow_member_for_a_second_at_most() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Hang));
    new.registry.put(stock("a"));
    old.registry.put(stock("b"));
    let registry = two(&new, &old);
    let (begun, mut watcher) = (Instant::now(), registry.watch("stock").await.unwrap());
    assert_eq!(ids(&watcher.next().await.unwrap()), "a");
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    old.does(Does::Work);
    assert_eq!(ids(&watcher.next().await.unwrap()), "a b");

    // It may list instances, so the service is not without any.
    old.does(Does::Hang);
    let mut orders = registry.watch("orders").await.unwrap();
    let day = Duration::from_secs(86_400);
    assert!(timeout(Duration::from_secs(29), orders.next()).await.is_err());
    let error = timeout(day, orders.next()).await.unwrap().unwrap_err().to_string();
    assert_eq!(error, "`old`: it did not watch within 30s");
    old.does(Does::Work);
    assert_eq!(timeout(day, orders.next()).await.unwrap().unwrap(), Membership::Unknown);
}

#[tokio::test(start_paused = true)]
async fn a_failure_that_lasts_is_reported_once_a_minute() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Refuse));
    new.registry.put(stock("a"));
    let registry = two(&new, &old);
    let mut watcher = registry.watch("stock").await.unwrap();
    let (mut known, mut errors, begun) = (0, 0, Instant::now());
    while let Ok(next) = timeout(Duration::from_secs(100), watcher.next()).await {
        match next {
            Ok(_) => known += 1,
            Err(_) => errors += 1,
        }
        if begun.elapsed() > Duration::from_secs(600) {
            break;
        }
    }
    assert_eq!(known, 1);
    assert!((8..=12).contains(&errors), "{errors} in ten minutes");
}

#[tokio::test(start_paused = true)]
async fn a_process_is_registered_with_every_member_as_soon_as_it_works() {
    for failure in [Does::Refuse, Does::Panic, Does::Hang] {
        let (new, old) = (Flaky::new(failure), Flaky::new(Does::Work));
        let registry = two(&new, &old);
        let mut up = registry.register(stock("a")).await.unwrap();
        assert_eq!(old.listed("stock").await, [stock("a")]);
        assert!(new.listed("stock").await.is_empty());

        // A change of the status reaches the member that works; the other one gets it later.
        let out = stock("a").with_status(Status::OutOfService);
        let begun = Instant::now();
        let updating = tokio::spawn(async move {
            up.update(stock("a").with_status(Status::OutOfService)).await.unwrap();
            up
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(
            old.listed("stock").await,
            std::slice::from_ref(&out),
            "at once, while `new` does {failure:?}"
        );
        let up = updating.await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(4), "{:?}", begun.elapsed());

        new.does(Does::Work);
        let mut watcher = new.registry.watch("stock").await.unwrap();
        let registered = async { while listed(watcher.next().await.unwrap()) != [out.clone()] {} };
        timeout(Duration::from_secs(60), registered).await.expect("it is registered with `new`, too");
        up.deregister().await.unwrap();
        assert!(new.listed("stock").await.is_empty() && old.listed("stock").await.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn without_any_member_a_registration_fails_and_leaves_nothing_behind() {
    let (new, old) = (Flaky::new(Does::Refuse), Flaky::new(Does::Refuse));
    let registry = two(&new, &old);
    let error = registry.register(stock("a")).await.err().unwrap().to_string();
    assert_eq!(
        error,
        "no member accepted the instance: `new`: connection refused; `old`: connection refused"
    );
    new.does(Does::Work);
    old.does(Does::Work);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(new.listed("stock").await.is_empty() && old.listed("stock").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_status_that_a_member_does_not_accept_reaches_it_by_a_new_registration() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Work));
    let registry = two(&new, &old);
    let mut up = registry.register(stock("a")).await.unwrap();
    old.does(Does::RefuseUpdates);
    let out = stock("a").with_status(Status::OutOfService);
    up.update(out.clone()).await.unwrap();
    assert_eq!((new.listed("stock").await, old.listed("stock").await), (vec![out.clone()], vec![out]));
}

#[tokio::test(start_paused = true)]
async fn a_deregistration_is_bounded_and_names_the_member_that_failed() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Work));
    let registry = two(&new, &old);
    let up = registry.register(stock("a")).await.unwrap();
    old.does(Does::Hang);
    let begun = Instant::now();
    let error = up.deregister().await.unwrap_err().to_string();
    assert_eq!(error, "`old`: it did not deregister within 2s");
    assert_eq!(begun.elapsed(), Duration::from_secs(2));
    assert!(new.listed("stock").await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_is_dropped_is_taken_out_everywhere() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Work));
    let registry = two(&new, &old);
    drop(registry.register(stock("a")).await.unwrap());
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert!(new.listed("stock").await.is_empty() && old.listed("stock").await.is_empty());
}

/// Each phase of a move from one registry to another, as the documentation describes it.
#[tokio::test(start_paused = true)]
async fn modes_decide_what_a_member_is_used_for() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Work));
    new.registry.put(stock("in-new"));
    old.registry.put(stock("in-old"));
    for (of_new, of_old, read, written) in [
        (MemberMode::Write, MemberMode::ReadWrite, "in-old x", (true, true)),
        (MemberMode::ReadWrite, MemberMode::ReadWrite, "in-new in-old x", (true, true)),
        (MemberMode::ReadWrite, MemberMode::Write, "in-new x", (true, true)),
        (MemberMode::ReadWrite, MemberMode::Read, "in-new in-old x", (true, false)),
        (MemberMode::Read, MemberMode::Read, "in-new in-old", (false, false)),
    ] {
        let registry =
            CompositeRegistry::new().member("new", of_new, new.clone()).member("old", of_old, old.clone());
        let up = registry.register(stock("x")).await.unwrap();
        let mut watcher = registry.watch("stock").await.unwrap();
        assert_eq!(ids(&watcher.next().await.unwrap()), read, "{of_new:?}, {of_old:?}");
        let is_in = async |member: &Flaky| member.listed("stock").await.contains(&stock("x"));
        assert_eq!((is_in(&new).await, is_in(&old).await), written, "{of_new:?}, {of_old:?}");
        up.deregister().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn services_are_listed_although_a_member_never_answers() {
    let (new, old) = (Flaky::new(Does::Work), Flaky::new(Does::Hang));
    new.registry.put(stock("a"));
    assert_eq!(two(&new, &old).services().await, ["stock"]);
}

/// A registry that blocks its thread until the test ends.
struct Blocking(Mutex<mpsc::Receiver<()>>);

#[async_trait]
impl Registry for Blocking {
    fn name(&self) -> &str {
        "blocking"
    }
    async fn register(&self, _: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        Err(RegistryError::unsupported("it only blocks"))
    }
    async fn watch(&self, _: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let _ = self.0.lock().unwrap().recv_timeout(Duration::from_secs(60));
        Err(RegistryError::new("unblocked"))
    }
}

/// On the real clock, because a paused one would advance while another thread is blocked.
#[tokio::test]
async fn a_member_that_blocks_its_thread_delays_no_other() {
    let (unblock, blocked) = mpsc::channel();
    let new = MemoryRegistry::new();
    new.put(stock("a"));
    let registry = CompositeRegistry::new()
        .member("blocking", MemberMode::Read, Blocking(Mutex::new(blocked)))
        .member("new", MemberMode::ReadWrite, new);
    let mut watcher = registry.watch("stock").await.unwrap();
    assert_eq!(ids(&watcher.next().await.unwrap()), "a");
    unblock.send(()).unwrap();
}

/// A large set is merged by another thread.
#[tokio::test]
async fn a_large_set_is_whole() {
    let (new, old) = (MemoryRegistry::new(), MemoryRegistry::new());
    let all = |from: usize, to: usize| (from..to).map(|n| Arc::new(stock(&format!("i{n:05}"))));
    new.set("stock", Membership::known(all(0, 3_000)));
    old.set("stock", Membership::known(all(2_000, 4_000)));
    let registry =
        CompositeRegistry::new().member("new", MemberMode::Read, new).member("old", MemberMode::Read, old);
    let known = registry.watch("stock").await.unwrap().next().await.unwrap();
    assert_eq!(listed(known).len(), 4_000);
    let from = ["i00000", "i02500", "i03999"].map(|id| registry.listed_by("stock", id).unwrap());
    assert_eq!(from, ["new", "new", "old"]);
    assert_eq!(registry.listed_by("stock", "nonesuch"), None);
}
