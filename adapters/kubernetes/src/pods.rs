//! The labels of the pods of a namespace.
//!
//! Slices have no labels. A process follows the pods of each namespace once, for all services that it calls there, and
//! asks for their metadata only.
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use chassis_core::TextMap;
use http::StatusCode;
use serde::Deserialize;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    client::{Client, Collection, Failure},
    follow::{LARGE, Object, View, aside, follow},
    settings::PodLabels,
    slices::PodRef,
};

/// The followed namespaces; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Namespaces(Arc<Table>);

/// The pods of a namespace, as far as they are known; clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pods {
    by_name: Arc<ByName>,
    /// They are listed, or can't be.
    is_settled: bool,
}

/// Cheap to copy, because a change makes a copy.
type ByName = HashMap<Arc<str>, Arc<Pod>>;

/// The followed namespaces by name.
#[derive(Default)]
struct Table(Mutex<HashMap<String, watch::Sender<Pods>>>);

#[derive(Debug, PartialEq, Eq)]
struct Pod {
    uid: String,
    labels: TextMap,
}

/// Makes the pods of the objects.
struct PodView {
    client: Client,
    namespace: String,
    labels: Arc<PodLabels>,
    pods: watch::Sender<Pods>,
    /// The changes that are not read yet, in their order.
    news: Vec<News>,
    has_failed: bool,
}

/// A change of the pods.
enum News {
    /// These are there, and no others.
    All(Vec<Object>),
    Put(Object),
    Delete(String),
}

/// A follower in the table, which it leaves when it is dropped.
struct Followed {
    namespace: String,
    pods: watch::Sender<Pods>,
    table: Weak<Table>,
}

/// The part of a pod that is read.
#[derive(Deserialize)]
struct Written {
    metadata: Metadata,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    uid: String,
    labels: Option<HashMap<String, String>>,
}

const PODS: &str = "/api/v1/namespaces/{namespace}/pods";
/// Changes of a namespace with more pods are read on a thread of their own.
const MANY: usize = 500;
/// A process without the right to read pods asks again after this time, or half of it at least.
const DENIED: Duration = Duration::from_secs(30);

// === impl Namespaces ===

impl Namespaces {
    /// The pods of `namespace`. They are followed until the last receiver is dropped.
    pub(crate) fn pods(
        &self,
        client: &Client,
        namespace: &str,
        labels: &PodLabels,
        jitter: Duration,
    ) -> watch::Receiver<Pods> {
        let pods = watch::Sender::new(Pods::default());
        let known = {
            let mut all = self.0.lock();
            if let Some(followed) = all.get(namespace) {
                return followed.subscribe();
            }
            all.insert(namespace.to_owned(), pods.clone());
            pods.subscribe()
        };
        let table = Arc::downgrade(&self.0);
        let followed = Followed { namespace: namespace.to_owned(), pods: pods.clone(), table };
        let (client, namespace) = (client.clone(), namespace.to_owned());
        let (of, labels) = (
            Collection { template: PODS, namespace: namespace.clone(), selector: None, is_metadata: true },
            Arc::new(labels.clone()),
        );
        client.clone().tasks().spawn(async move {
            let server = client.clone();
            let mut view = PodView { client, namespace, labels, pods, news: Vec::new(), has_failed: false };
            tokio::select! {
                () = followed.unused() => {}
                () = follow(&server, &of, jitter, &mut view) => {}
            }
        });
        known
    }
}

// === impl Table ===

impl Table {
    /// No code panics while the lock is held, so a poisoned lock is still valid.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, watch::Sender<Pods>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Followed ===

impl Followed {
    /// Completes when the pods have no receiver. They are no longer in the table then.
    async fn unused(&self) {
        loop {
            self.pods.closed().await;
            let Some(table) = self.table.upgrade() else { return };
            let mut all = table.lock();
            if self.pods.receiver_count() == 0 {
                all.remove(&self.namespace);
                return;
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut all = table.lock();
        // Another follower may have begun.
        if all.get(&self.namespace).is_some_and(|kept| kept.same_channel(&self.pods)) {
            all.remove(&self.namespace);
        }
    }
}

// === impl Pods ===

impl Pods {
    /// The labels of a pod; `None`: it is not known. A pod of the same name that came later is another one.
    pub(crate) fn labels(&self, of: &PodRef) -> Option<&TextMap> {
        let pod = self.by_name.get(&*of.name)?;
        (of.uid.is_empty() || pod.uid.is_empty() || of.uid == pod.uid).then_some(&pod.labels)
    }

    /// Whether there is no use in waiting for them.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// The pods after `news`; `None` if that is no change.
    fn after(&self, news: Vec<Read>) -> Option<Pods> {
        let (mut by_name, mut has_changed) = (self.by_name.clone(), !self.is_settled);
        for change in news {
            match change {
                Read::All(all) if *by_name == all => continue,
                Read::All(all) => by_name = Arc::new(all),
                Read::Put(name, pod) if by_name.get(&name) == Some(&pod) => continue,
                Read::Put(name, pod) => drop(Arc::make_mut(&mut by_name).insert(name, pod)),
                Read::Delete(name) if !by_name.contains_key(&name) => continue,
                Read::Delete(name) => drop(Arc::make_mut(&mut by_name).remove(&name)),
            }
            has_changed = true;
        }
        has_changed.then_some(Pods { by_name, is_settled: true })
    }

    /// Drops them; many that nothing else uses, on a thread of its own.
    pub(crate) fn discard(self) {
        let Some(last) = Arc::into_inner(self.by_name).filter(|last| last.len() > MANY) else { return };
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn_blocking(move || drop(last));
        }
    }
}

/// Publishes the pods after `news`. Only the swap is done under the lock, for which threads that serve calls wait.
fn publish(pods: &watch::Sender<Pods>, news: Vec<Read>) {
    let before = pods.borrow().clone();
    if let Some(after) = before.after(news) {
        drop(pods.send_replace(after));
    }
}

/// A change, as it is read.
enum Read {
    All(ByName),
    Put(Arc<str>, Arc<Pod>),
    Delete(Arc<str>),
}

// === impl Read ===

impl Read {
    fn of(news: News, labels: &PodLabels) -> Self {
        let read = |object: Object| {
            let pod = Pod::of(object.text.get(), labels).map(Arc::new);
            (Arc::from(object.name), pod)
        };
        match news {
            News::All(all) => {
                Read::All(all.into_iter().map(read).filter_map(|(name, pod)| Some((name, pod?))).collect())
            }
            News::Put(object) => match read(object) {
                (name, Some(pod)) => Read::Put(name, pod),
                (name, None) => Read::Delete(name),
            },
            News::Delete(name) => Read::Delete(name.into()),
        }
    }
}

// === impl Pod ===

impl Pod {
    /// `None`: it is malformed, and its instance has no labels.
    fn of(text: &str, labels: &PodLabels) -> Option<Self> {
        let Written { metadata: Metadata { uid, labels: written } } = serde_json::from_str(text).ok()?;
        let written = written.unwrap_or_default();
        Some(Pod { uid, labels: written.into_iter().filter(|(name, _)| labels.includes(name)).collect() })
    }
}

// === impl PodView ===

impl View for PodView {
    fn list(&mut self, all: Vec<Object>) {
        // Changes from before the list are in it.
        self.news = vec![News::All(all)];
    }

    fn put(&mut self, object: Object) {
        self.news.push(News::Put(object));
    }

    fn delete(&mut self, name: &str) {
        self.news.push(News::Delete(name.to_owned()));
    }

    async fn show(&mut self, _: &str) {
        if std::mem::take(&mut self.has_failed) {
            tracing::info!(target: "chassis", namespace = self.namespace, "the labels of pods are read again");
        }
        let (news, pods, labels) = (std::mem::take(&mut self.news), self.pods.clone(), self.labels.clone());
        let bytes: usize = news.iter().map(News::bytes).sum();
        let is_large = bytes > LARGE || pods.borrow().by_name.len() > MANY;
        let taking = aside(is_large, move || {
            let news = news.into_iter().map(|news| Read::of(news, &labels)).collect();
            publish(&pods, news);
        });
        taking.await;
    }

    async fn fail(&mut self, why: &Failure) {
        self.has_failed = true;
        tracing::warn!(
            target: "chassis",
            namespace = self.namespace,
            %why,
            "the labels of pods can't be read: instances keep those that are known"
        );
        self.pods.send_if_modified(|pods| !std::mem::replace(&mut pods.is_settled, true));
    }

    fn pause_after(&self, why: &Failure) -> Duration {
        match why.status {
            Some(StatusCode::FORBIDDEN) => self.client.random().between(DENIED / 2, DENIED),
            _ => Duration::ZERO,
        }
    }
}

// === impl News ===

impl News {
    fn bytes(&self) -> usize {
        let of = |object: &Object| object.text.get().len();
        match self {
            News::All(all) => all.iter().map(of).sum(),
            News::Put(object) => of(object),
            News::Delete(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, value::RawValue};

    use super::*;

    fn object(name: &str, uid: &str, version: &str) -> Object {
        let text =
            json!({ "metadata": { "name": name, "uid": uid, "labels": { "version": version, "x": "y" } } });
        Object {
            name: name.to_owned(),
            version: String::new(),
            text: RawValue::from_string(text.to_string()).unwrap(),
        }
    }

    /// Takes in `news`, of the label `version`; whether that is a change.
    fn take_in(pods: &mut Pods, news: Vec<News>) -> bool {
        let labels = PodLabels::named(["version"]);
        let after = pods.after(news.into_iter().map(|news| Read::of(news, &labels)).collect());
        let has_changed = after.is_some();
        *pods = after.unwrap_or_else(|| pods.clone());
        has_changed
    }

    #[track_caller]
    fn check(pods: &Pods, name: &str, uid: &str, expected: Option<&str>) {
        let of = PodRef { name: name.to_owned(), uid: uid.to_owned() };
        let found = pods.labels(&of).map(|labels| {
            assert_eq!(labels.get("x"), None);
            labels.get("version").unwrap_or_default()
        });
        assert_eq!(found, expected);
    }

    #[test]
    fn only_a_change_of_the_chosen_labels_is_one() {
        let mut pods = Pods::default();
        assert!(take_in(&mut pods, vec![News::All(vec![object("a", "1", "v1"), object("b", "2", "v1")])]));
        assert!(pods.is_settled());
        assert!(!take_in(&mut pods, vec![News::Put(object("a", "1", "v1"))]));
        assert!(!take_in(&mut pods, vec![News::All(vec![object("b", "2", "v1"), object("a", "1", "v1")])]));
        assert!(take_in(&mut pods, vec![News::Put(object("a", "1", "v2"))]));
        check(&pods, "a", "1", Some("v2"));
        assert!(take_in(&mut pods, vec![News::Delete("a".to_owned())]));
        assert!(!take_in(&mut pods, vec![News::Delete("a".to_owned())]));
        check(&pods, "a", "1", None);
        // A pod that is in a new list no longer has gone.
        assert!(take_in(&mut pods, vec![News::All(Vec::new())]));
        check(&pods, "b", "2", None);
    }

    /// A list is compared with the one before without the lock: while a reader holds it, too.
    #[test]
    fn a_list_is_compared_without_the_lock() {
        let labels = PodLabels::named(["version"]);
        let list = || vec![Read::of(News::All(vec![object("a", "1", "v1")]), &labels)];
        let pods = watch::Sender::new(Pods::default());
        publish(&pods, list());
        let (known, same, (done, is_done)) = (pods.subscribe(), list(), std::sync::mpsc::channel());
        let held = known.borrow();
        let publishing = std::thread::spawn(move || {
            publish(&pods, same);
            done.send(()).unwrap();
        });
        let compared = is_done.recv_timeout(Duration::from_secs(10));
        check(&held, "a", "1", Some("v1"));
        drop(held);
        publishing.join().unwrap();
        compared.expect("it needs no lock of writers");
    }

    #[test]
    fn a_pod_of_the_same_name_is_another_one() {
        let mut pods = Pods::default();
        take_in(&mut pods, vec![News::All(vec![object("stock-0", "1", "v1")])]);
        check(&pods, "stock-0", "1", Some("v1"));
        check(&pods, "stock-0", "", Some("v1"));
        check(&pods, "stock-0", "2", None);
        check(&pods, "stock-1", "1", None);
    }

    #[test]
    fn a_malformed_pod_has_no_labels() {
        let mut pods = Pods::default();
        let bad = |text: &str| Object {
            name: "a".to_owned(),
            version: String::new(),
            text: RawValue::from_string(text.to_owned()).unwrap(),
        };
        take_in(&mut pods, vec![News::All(vec![object("a", "1", "v1")])]);
        for text in ["7", "{}", r#"{"metadata":{"labels":7}}"#, r#"{"metadata":{"labels":{"version":7}}}"#] {
            take_in(&mut pods, vec![News::Put(object("a", "1", "v1"))]);
            assert!(take_in(&mut pods, vec![News::Put(bad(text))]), "{text}");
            check(&pods, "a", "1", None);
        }
        take_in(&mut pods, vec![News::Put(bad(r#"{"metadata":{"labels":null}}"#))]);
        check(&pods, "a", "", Some(""));
    }
}
