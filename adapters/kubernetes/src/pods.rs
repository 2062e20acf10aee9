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
use tokio::sync::watch;

use crate::{
    client::{Client, Collection, Failure},
    follow::{LARGE, Object, View, aside, follow},
    settings::PodLabels,
    slices::PodRef,
};

/// The followed namespaces; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Namespaces(Arc<Table>);

/// The pods of a namespace, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Pods {
    by_name: HashMap<String, Pod>,
    /// They are listed, or can't be.
    is_settled: bool,
}

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
        let pod = self.by_name.get(&of.name)?;
        (of.uid.is_empty() || pod.uid.is_empty() || of.uid == pod.uid).then_some(&pod.labels)
    }

    /// Whether there is no use in waiting for them.
    pub(crate) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Whether the pods have changed.
    fn take_in(&mut self, news: Vec<Read>) -> bool {
        let mut has_changed = !std::mem::replace(&mut self.is_settled, true);
        for change in news {
            has_changed |= match change {
                Read::All(all) => {
                    let is_same = self.by_name == all;
                    self.by_name = all;
                    !is_same
                }
                Read::Put(name, pod) if self.by_name.get(&name) == Some(&pod) => false,
                Read::Put(name, pod) => {
                    self.by_name.insert(name, pod);
                    true
                }
                Read::Delete(name) => self.by_name.remove(&name).is_some(),
            };
        }
        has_changed
    }
}

/// A change, as it is read.
enum Read {
    All(HashMap<String, Pod>),
    Put(String, Pod),
    Delete(String),
}

// === impl Read ===

impl Read {
    fn of(news: News, labels: &PodLabels) -> Self {
        let read = |object: Object| {
            let pod = Pod::of(object.text.get(), labels);
            (object.name, pod)
        };
        match news {
            News::All(all) => {
                Read::All(all.into_iter().map(read).filter_map(|(name, pod)| Some((name, pod?))).collect())
            }
            News::Put(object) => match read(object) {
                (name, Some(pod)) => Read::Put(name, pod),
                (name, None) => Read::Delete(name),
            },
            News::Delete(name) => Read::Delete(name),
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
        // Beside many pods a reader may hold the lock for a while.
        let is_large = bytes > LARGE || pods.borrow().by_name.len() > MANY;
        let taking = aside(is_large, move || {
            let news = news.into_iter().map(|news| Read::of(news, &labels)).collect();
            pods.send_if_modified(|pods| pods.take_in(news));
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
        pods.take_in(news.into_iter().map(|news| Read::of(news, &labels)).collect())
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
