//! The registry: a follower of the EndpointSlices of each service that is called.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use chassis_core::{
    BoxError, Kind,
    adapter::{Feed, Followers},
    registry::{Instance, Registration, Registry, RegistryError, Watcher},
    settings::Problem,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{Mutex, watch},
    time::{sleep, timeout},
};

use crate::{
    client::{Client, Collection, Failure},
    follow::{LARGE, Object, View, aside, follow},
    place::Place,
    pods::{Namespaces, Pods},
    settings::{KubernetesConfig, is_name},
    slices::{Read, merge},
};

/// The instances that Kubernetes lists in the EndpointSlices of a Service.
///
/// `stock` is the Service of this name in the namespace of the process, and `stock.shop` that of the namespace `shop`.
/// Pods that are ready are called. A process follows each service that it calls once, however many clients it has. What
/// is known stays when the API server can't be reached; a watcher reports that once, as an error, and goes on by itself
/// when it is back.
///
/// A registration does nothing: Kubernetes writes the slices, by the selector of the Service and the readiness of its
/// pods.
///
/// ```no_run
/// use chassis_core::registry::Registry;
/// use chassis_kubernetes::{KubernetesConfig, KubernetesRegistry};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let registry = KubernetesRegistry::new(KubernetesConfig::default())?; // by the service account of the pod
/// let mut stock = registry.watch("stock").await?;
/// println!("{:?}", stock.next().await?);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct KubernetesRegistry(Arc<Inner>);

struct Inner {
    config: KubernetesConfig,
    client: Client,
    followers: Followers<String>,
    namespaces: Namespaces,
    /// The services could not be listed the last time.
    cannot_list: AtomicBool,
}

/// Collects the changes of the slices of a service.
struct Slices {
    /// The names of the slices that are there.
    names: HashSet<String>,
    /// The changes that are not read yet, in their order; `None`: the slice has gone.
    news: Vec<(String, Option<Box<RawValue>>)>,
    service: Arc<Mutex<Service>>,
}

/// Makes instances of the slices of a service and the labels of its pods.
struct Service {
    feed: Feed<String>,
    /// The version of the slices.
    version: String,
    /// `None` while it is being read.
    model: Option<Model>,
}

/// The slices of a service, and the last instances.
struct Model {
    service: String,
    config: KubernetesConfig,
    slices: BTreeMap<String, Read>,
    known: HashMap<String, Arc<Instance>>,
    /// The pods of the namespace, where their labels are wanted.
    pods: Option<watch::Receiver<Pods>>,
    /// The last refused entries, by their places: each is logged once.
    refused: HashMap<String, String>,
}

/// A page of slices, of which only the labels are read.
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    metadata: PageMetadata,
    items: Option<Vec<Labelled>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PageMetadata {
    #[serde(rename = "continue")]
    next: Option<String>,
}

/// The metadata of a slice.
#[derive(Deserialize)]
struct Labelled {
    #[serde(default)]
    metadata: Labels,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Labels {
    labels: Option<BTreeMap<String, String>>,
}

/// A registration that has nothing to remove.
struct NoopRegistration;

struct KubernetesKind;

/// A change of a service with more instances is read on a thread of its own.
const MANY: usize = 500;
/// The first answer waits so long for the labels of pods, so that routes that choose by them find their instances.
const LABELLED: Duration = Duration::from_secs(2);
/// Between two readings of labels that change.
const RELABEL: Duration = Duration::from_millis(50);
/// The services of a namespace with more pages of slices, of 500 each, are not listed.
const MAX_PAGES: usize = 200;
/// So many refused entries of a service are named in the log each time.
const MAX_WARNINGS: usize = 10;
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices";
/// The label of a slice that names its Service.
const SERVICE: &str = "kubernetes.io/service-name";

// === impl KubernetesRegistry ===

impl KubernetesRegistry {
    /// The kind that settings choose by `registry: { kind: kubernetes }`.
    pub fn kind() -> impl Kind<Config = KubernetesConfig, Made = Arc<dyn Registry>> {
        KubernetesKind
    }

    /// Reads the kubeconfig, or finds the service account; connects with its first use.
    ///
    /// # Errors
    /// The first problem in `config`, or in the kubeconfig.
    pub fn new(config: KubernetesConfig) -> Result<Self, BoxError> {
        if let [problem, ..] = &config.check()[..] {
            return Err(problem.to_string().into());
        }
        let client = Client::new(Place::of(&config.connection())?)?;
        Ok(KubernetesRegistry(Arc::new(Inner {
            config,
            client,
            followers: Followers::default(),
            namespaces: Namespaces::default(),
            cannot_list: AtomicBool::new(false),
        })))
    }

    /// The slices of a service; `None`: Kubernetes can have none of this name.
    fn slices(&self, service: &str) -> Option<Collection> {
        let (name, namespace) = service.split_once('.').unwrap_or((service, self.0.client.namespace()));
        let selector = Some(("labelSelector", format!("{SERVICE}={name}")));
        let namespace = namespace.to_owned();
        let is_valid = is_name(name) && is_name(&namespace);
        is_valid.then_some(Collection { template: SLICES, namespace, selector, is_metadata: false })
    }

    /// The names of the Services that have slices in the namespace of this process. An incomplete list is an error.
    async fn list(&self) -> Result<BTreeSet<String>, Failure> {
        let client = &self.0.client;
        let namespace = client.namespace().to_owned();
        let selector = Some(("labelSelector", SERVICE.to_owned()));
        let all = Collection { template: SLICES, namespace, selector, is_metadata: true };
        let (mut names, mut next) = (BTreeSet::new(), None);
        for _ in 0..MAX_PAGES {
            let body = client.list(&all, next.as_deref()).await?;
            let reading = aside(body.len() > LARGE, move || {
                let page: Page = serde_json::from_slice(&body)?;
                let slices = page.items.unwrap_or_default().into_iter();
                names.extend(slices.filter_map(|slice| slice.metadata.labels?.remove(SERVICE)));
                Ok::<_, serde_json::Error>((names, page.metadata.next.filter(|next| !next.is_empty())))
            });
            let malformed = |error| client.failure(None, format!("its list is malformed: {error}"));
            (names, next) = reading.await.map_err(malformed)?;
            if next.is_none() {
                return Ok(names);
            }
        }
        Err(client.failure(None, format!("its list has more than {MAX_PAGES} pages")))
    }
}

#[async_trait]
impl Registry for KubernetesRegistry {
    fn name(&self) -> &str {
        "kubernetes"
    }

    async fn register(&self, instance: Instance) -> Result<Box<dyn Registration>, RegistryError> {
        instance.check()?;
        let (service, id) = (&instance.service, &instance.id);
        tracing::info!(
            target: "chassis",
            service,
            id,
            "not registered: Kubernetes lists the pods of a Service by itself, while they are ready"
        );
        Ok(Box::new(NoopRegistration))
    }

    async fn watch(&self, service: &str) -> Result<Box<dyn Watcher>, RegistryError> {
        let Inner { config, client, followers, namespaces, .. } = &*self.0;
        let begin = |mut feed: Feed<String>| {
            let (client, of, jitter) = (client.clone(), self.slices(service), config.jitter.0);
            let labelled = of.as_ref().filter(|_| !config.pod_labels.is_off());
            let pods = labelled.map(|of| namespaces.pods(&client, &of.namespace, &config.pod_labels, jitter));
            let model = Model {
                service: service.to_owned(),
                config: config.clone(),
                slices: BTreeMap::new(),
                known: HashMap::new(),
                pods: pods.clone(),
                refused: HashMap::new(),
            };
            async move {
                let Some(of) = of else {
                    feed.show(Vec::new(), false, String::new());
                    return std::future::pending().await;
                };
                let service =
                    Arc::new(Mutex::new(Service { feed, version: String::new(), model: Some(model) }));
                let mut view = Slices { names: HashSet::new(), news: Vec::new(), service: service.clone() };
                let following = follow(&client, &of, jitter, &mut view);
                let Some(mut pods) = pods else { return following.await };
                // An error means that the pods are followed no longer: the labels stay.
                let _ = timeout(LABELLED, pods.wait_for(Pods::is_settled)).await;
                tokio::join!(following, relabel(pods, &service));
            }
        };
        Ok(followers.watch(service, client.tasks(), begin))
    }

    /// Those of the namespace of this process; none if they can't all be listed.
    async fn services(&self) -> Vec<String> {
        let listed = self.list().await;
        let could_not = self.0.cannot_list.swap(listed.is_err(), Relaxed);
        match listed {
            Ok(names) => names.into_iter().collect(),
            Err(why) => {
                if !could_not {
                    tracing::warn!(target: "chassis", %why, "the services can't be listed for errors of calls");
                }
                Vec::new()
            }
        }
    }

    /// `false` while the API server does not list them: that it has none would be untrue.
    fn lists_services(&self) -> bool {
        !self.0.cannot_list.load(Relaxed)
    }

    fn never_blocks(&self) -> bool {
        true
    }
}

// === impl NoopRegistration ===

#[async_trait]
impl Registration for NoopRegistration {
    async fn update(&mut self, _: Instance) -> Result<(), RegistryError> {
        Ok(())
    }

    async fn deregister(self: Box<Self>) -> Result<(), RegistryError> {
        Ok(())
    }
}

/// Reads the labels anew whenever the pods have changed.
async fn relabel(mut pods: watch::Receiver<Pods>, service: &Mutex<Service>) {
    while pods.changed().await.is_ok() {
        service.lock().await.relabel().await;
        sleep(RELABEL).await;
    }
}

// === impl Slices ===

impl View for Slices {
    fn list(&mut self, all: Vec<Object>) {
        // Changes from before the list are in it.
        self.news.clear();
        let there: HashSet<_> = all.iter().map(|object| object.name.as_str()).collect();
        let gone = self.names.extract_if(|name| !there.contains(name.as_str()));
        self.news.extend(gone.map(|name| (name, None)));
        for object in all {
            self.put(object);
        }
    }

    fn put(&mut self, object: Object) {
        self.names.insert(object.name.clone());
        self.news.push((object.name, Some(object.text)));
    }

    fn delete(&mut self, name: &str) {
        self.names.remove(name);
        self.news.push((name.to_owned(), None));
    }

    async fn show(&mut self, version: &str) {
        let news = std::mem::take(&mut self.news);
        self.service.lock().await.show(news, version).await;
    }

    async fn fail(&mut self, why: &Failure) {
        self.service.lock().await.feed.fail(why.to_string());
    }
}

// === impl Service ===

impl Service {
    async fn show(&mut self, news: Vec<(String, Option<Box<RawValue>>)>, version: &str) {
        version.clone_into(&mut self.version);
        let bytes = news.iter().filter_map(|(_, text)| text.as_ref()).map(|text| text.get().len()).sum();
        self.change(bytes, |model| Some(model.apply(news))).await;
    }

    async fn relabel(&mut self) {
        self.change(0, |model| model.label().then(|| model.instances())).await;
    }

    /// Changes the model by reading so many bytes, and publishes its instances if there are new ones.
    async fn change(
        &mut self,
        bytes: usize,
        change: impl FnOnce(&mut Model) -> Option<Vec<Arc<Instance>>> + Send + 'static,
    ) {
        let Some(mut model) = self.model.take() else { return };
        let is_large = bytes > LARGE || model.known.len() > MANY;
        let reading = aside(is_large, move || {
            let instances = change(&mut model);
            (model, instances)
        });
        let (model, instances) = reading.await;
        if let Some(instances) = instances {
            self.feed.show(instances, !model.slices.is_empty(), self.version.clone());
        }
        self.model = Some(model);
    }
}

// === impl Model ===

impl Model {
    /// Takes in the changes; the instances after them.
    fn apply(&mut self, news: Vec<(String, Option<Box<RawValue>>)>) -> Vec<Arc<Instance>> {
        let (mut refused, mut before) = (HashMap::new(), HashMap::new());
        for (name, text) in news {
            let is_of = |place: &String| place.split(' ').next() == Some(&name);
            before.extend(self.refused.extract_if(|place, _| is_of(place)));
            refused.retain(|place, _| !is_of(place));
            let Some(text) = text else {
                self.slices.remove(&name);
                continue;
            };
            let read = Read::of(text.get(), &self.service, &self.config).unwrap_or_else(|why| {
                refused.insert(format!("{name} "), why);
                Read::default()
            });
            refused.extend(read.refused.iter().map(|(place, why)| (format!("{name} {place}"), why.clone())));
            self.slices.insert(name, read);
        }
        self.warn(refused, &before);
        self.label();
        self.instances()
    }

    /// Gives the instances the labels of their pods; whether that has changed one. An instance whose pod is not known
    /// keeps its labels: a pod may go before its endpoint does.
    fn label(&mut self) -> bool {
        let Some(pods) = &self.pods else { return false };
        // A copy: a reader that holds the lock for long delays the others behind a writer.
        let (pods, mut has_changed) = (pods.borrow().clone(), false);
        for endpoint in self.slices.values_mut().flat_map(|slice| &mut slice.endpoints) {
            let Some(pod) = &endpoint.pod else { continue };
            let before = || self.known.get(&endpoint.instance.id).map(|instance| &instance.labels);
            if let Some(labels) = pods.labels(pod).or_else(before) {
                has_changed |= endpoint.label(labels);
            }
        }
        pods.discard();
        has_changed
    }

    /// The instances of all slices.
    fn instances(&mut self) -> Vec<Arc<Instance>> {
        let mut instances = merge(self.slices.values(), self.config.zone.as_deref());
        let mut before = std::mem::take(&mut self.known);
        for instance in &mut instances {
            // An instance that has not changed is shared with the watchers of before.
            if let Some(same) = before.remove(&instance.id).filter(|before| before == instance) {
                *instance = same;
            }
            self.known.insert(instance.id.clone(), instance.clone());
        }
        instances
    }

    /// Logs the refused entries that were not refused `before`.
    fn warn(&mut self, refused: HashMap<String, String>, before: &HashMap<String, String>) {
        let new = refused.iter().filter(|(place, why)| before.get(*place) != Some(*why));
        for (n, (place, why)) in new.enumerate() {
            if n < MAX_WARNINGS {
                tracing::warn!(target: "chassis", service = self.service, slice = place, why, "instance refused");
            } else {
                tracing::debug!(target: "chassis", service = self.service, slice = place, why, "instance refused");
            }
        }
        self.refused.extend(refused);
    }
}

// === impl KubernetesKind ===

impl Kind for KubernetesKind {
    type Config = KubernetesConfig;
    type Made = Arc<dyn Registry>;

    fn name(&self) -> &str {
        "kubernetes"
    }

    #[cfg(feature = "schema")]
    fn schema(&self) -> chassis_core::schema::Value {
        chassis_core::schema::of::<KubernetesConfig>()
    }

    fn check(&self, config: &KubernetesConfig) -> Vec<Problem> {
        config.check()
    }

    fn make(&self, config: &KubernetesConfig) -> Result<Arc<dyn Registry>, BoxError> {
        Ok(Arc::new(KubernetesRegistry::new(config.clone())?))
    }
}
