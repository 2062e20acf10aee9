//! The stages of users' own layers: named places in the pipeline, for all services or for one.
//!
//! Between the user's layers and the built-in ones types are erased, once; an empty stage costs one branch.
//! Listeners of a call do not enter the user's layers: whatever a layer does with the call, the listeners above
//! it are notified.
use std::{
    any::Any,
    marker::PhantomData,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError, BoxFuture,
    call::{CallError, Failed, Home, Invocation, Reply},
    clock::Instant,
    context::Context as Handled,
    striped::{CachePadded, StripedCells},
    types::{Error, Side},
};

/// A place in the pipeline for users' layers.
///
/// `E` is the error of the services there: [`Error`], or below the retries [`Failed`].
pub struct Stage<E = Error>(Place, PhantomData<fn() -> E>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Call,
    Attempt,
    Node,
    ServerCall,
    Handler,
}

/// The stage of a user's layer, and the calls that it applies to: a [`Stage`] alone is for all services.
///
/// ```
/// use chassis_core::{Placement, Stage};
///
/// let everywhere: Placement = Stage::Call.into();
/// let stock_only: Placement = Stage::Call.of("stock");
/// # let _ = (everywhere, stock_only);
/// ```
pub struct Placement<E = Error> {
    stage: Stage<E>,
    service: Option<Arc<str>>,
}

/// The service inside a user's layer, which the layer may call.
///
/// Always ready. A layer may call it more than once, with another [`Invocation`] each time: a
/// [`try_clone`](Invocation::try_clone) of the original has the same policy, one made by
/// [`new`](Invocation::new) has none. At [`Stage::Node`] a call needs its original node. The call ends with the
/// answer or the error that the layer returns.
///
/// `E` is the error of the [`Stage`].
pub struct Next<E = Error>(Arc<dyn Erased<E>>);

trait Erased<E>: Send + Sync {
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, E>>;
}

/// A tower layer that is an async function: see [`from_fn`].
pub struct FnLayer<F, E = Error>(Arc<F>, PhantomData<fn() -> E>);

/// The service of [`FnLayer`].
pub struct FnService<F, E = Error> {
    function: Arc<F>,
    next: Next<E>,
}

/// Built-in layers, which a call passes at once and leaves unchanged. Each stripe of threads keeps one copy of
/// them, because creating them for each call would count references to shared values. No call waits for a copy:
/// if it is in use, by a call made within a call or because there are more threads than stripes, a new copy is
/// created for this one call.
struct Erase<S> {
    service: S,
    own: StripedCells<Mutex<S>>,
}

/// The user's layers, in the order they were added: the first is outermost.
#[derive(Clone, Default)]
pub struct Stages(Arc<Vec<Entry>>);

#[derive(Clone)]
struct Entry {
    place: Place,
    name: Arc<str>,
    /// The number of its name: layers with the same name are switched together.
    number: usize,
    service: Option<Arc<str>>,
    /// A `Wrap` over the error of its place.
    wrap: Arc<dyn Any + Send + Sync>,
}

struct Wrap<E>(Box<dyn Fn(Next<E>) -> Next<E> + Send + Sync>);

/// A layer that settings can switch off, and the service inside it.
struct Switchable<E> {
    on: Next<E>,
    off: Next<E>,
    number: usize,
    listener: Option<Arc<str>>,
}

/// A stage, with or without layers of the user.
pub(crate) enum Staged<S, E = Error> {
    /// Without layers: the inner service itself.
    Plain(S),
    /// The outermost of the user's layers.
    User(Next<E>),
}

/// Creates a tower layer from an async function over the call and the inner service, as axum's `from_fn` does.
///
/// ```
/// use chassis_core::{Error, Invocation, Next, Reply, Stage, Stages, from_fn};
///
/// async fn audit(call: Invocation, next: Next) -> Result<Reply, Error> {
///     println!("{}", call.target.operation);
///     next.run(call).await
/// }
///
/// let mut stages = Stages::default();
/// stages.add_layer(Stage::Call, "audit", None, from_fn(audit));
/// ```
///
/// Below the retries, at `Stage::Attempt` and `Stage::Node`, its error is [`Failed`]:
///
/// ```
/// use chassis_core::{Failed, Invocation, Next, Reply, Stage, Stages, from_fn};
///
/// async fn watch(call: Invocation, next: Next<Failed>) -> Result<Reply, Failed> {
///     let reply = next.run(call).await;
///     if let Err(failed) = &reply {
///         println!("{:?}: {failed}", failed.endpoint());
///     }
///     reply
/// }
///
/// let mut stages = Stages::default();
/// stages.add_layer(Stage::Attempt, "watch", None, from_fn(watch));
/// ```
pub fn from_fn<F, Fut, E>(function: F) -> FnLayer<F, E>
where
    F: Fn(Invocation, Next<E>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, E>> + Send + 'static,
    E: CallError,
{
    FnLayer(Arc::new(function), PhantomData)
}

pin_project! {
    #[allow(missing_docs)]
    /// The future of a [`Staged`].
    #[project = StagedProjection]
    pub(crate) enum StagedFuture<F, E = Error> {
        /// The inner service's own.
        Plain { #[pin] inner: F },
        /// The future of the user's layers.
        User {
            inner: BoxFuture<'static, Result<Reply, E>>,
            // The listeners of the call, until there is an answer.
            home: Option<Home>,
        },
    }
}

// === impl Next ===

impl<E> Next<E> {
    /// Erases the type of `service`, which must always be ready.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Invocation, Response = Reply, Error = E> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Next(Arc::new(Erase::new(service)))
    }

    /// Passes the call on.
    pub fn run(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, E>> {
        self.0.call(call)
    }
}

impl<S> Erase<S> {
    fn new(service: S) -> Self {
        Erase { service, own: StripedCells::new() }
    }
}

impl<S, E> Erased<E> for Erase<S>
where
    S: Service<Invocation, Response = Reply, Error = E> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, E>> {
        let own = self.own.mine(|| Box::new(CachePadded(Mutex::new(self.service.clone()))));
        match own.try_lock() {
            Ok(mut own) => Box::pin(own.call(call)),
            Err(_) => Box::pin(self.service.clone().call(call)),
        }
    }
}

impl<E> Service<Invocation> for Next<E> {
    type Response = Reply;
    type Error = E;
    type Future = BoxFuture<'static, Result<Reply, E>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        self.0.call(call)
    }
}

impl<E> Clone for Next<E> {
    fn clone(&self) -> Self {
        Next(self.0.clone())
    }
}

impl<E> std::fmt::Debug for Next<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Next")
    }
}

// === impl Stages ===

impl Stages {
    /// Adds a tower layer at `stage`, for calls to `service` or for all. Its service is made ready before each
    /// call, so layers that wait in `poll_ready` work too. [`Error::from_layer`] converts its errors.
    pub fn add_layer<E, L>(&mut self, stage: Stage<E>, name: &str, service: Option<&str>, layer: L)
    where
        E: CallError,
        L: Layer<Next<E>> + Send + Sync + 'static,
        L::Service: Service<Invocation, Response = Reply> + Clone + Send + Sync + 'static,
        <L::Service as Service<Invocation>>::Error: Into<BoxError>,
        <L::Service as Service<Invocation>>::Future: Send + 'static,
    {
        self.push(stage, name, service, move |next| Next(Arc::new(Foreign(layer.layer(next)))));
    }

    /// Adds an async function over the call and the inner service: cheaper by a clone than [`from_fn`].
    pub fn add_fn<E, F, Fut>(&mut self, stage: Stage<E>, name: &str, service: Option<&str>, function: F)
    where
        E: CallError,
        F: Fn(Invocation, Next<E>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, E>> + Send + 'static,
    {
        let function = Arc::new(function);
        self.push(stage, name, service, move |next| {
            Next(Arc::new(FnService { function: function.clone(), next }))
        });
    }

    fn push<E: 'static>(
        &mut self,
        stage: Stage<E>,
        name: &str,
        service: Option<&str>,
        wrap: impl Fn(Next<E>) -> Next<E> + Send + Sync + 'static,
    ) {
        let names = self.distinct();
        let number = names.iter().position(|other| **other == *name).unwrap_or(names.len());
        let (name, service) = (name.into(), service.map(Into::into));
        let wrap = Arc::new(Wrap(Box::new(wrap)));
        Arc::make_mut(&mut self.0).push(Entry { place: stage.0, name, number, service, wrap });
    }

    /// The names of all layers, each once, by their numbers.
    pub(crate) fn distinct(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for entry in self.0.iter() {
            if !names.contains(&entry.name) {
                names.push(entry.name.clone());
            }
        }
        names
    }

    /// Puts the layers of `stage` around `inner`; for incoming calls, `listener` is the name of their listener.
    pub(crate) fn at<E, S>(
        &self,
        stage: Stage<E>,
        service: &str,
        listener: Option<&Arc<str>>,
        inner: S,
    ) -> Staged<S, E>
    where
        E: CallError,
        S: Service<Invocation, Response = Reply, Error = E> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let wraps = self.of(stage, service).filter_map(|entry| {
            let Wrap(wrap) = entry.wrap.downcast_ref::<Wrap<E>>()?;
            Some((wrap, entry.number))
        });
        let mut wraps = wraps.rev().peekable();
        if wraps.peek().is_none() {
            return Staged::Plain(inner);
        }
        let inner = Next(Arc::new(Below(Erase::new(inner))));
        Staged::User(wraps.fold(inner, |next, (wrap, number)| {
            let on = wrap(next.clone());
            Next(Arc::new(Switchable { on, off: next, number, listener: listener.cloned() }))
        }))
    }

    /// The names and numbers of the layers at `stage`, outermost first.
    pub(crate) fn numbered<E>(&self, stage: Stage<E>, service: &str) -> Vec<(Arc<str>, usize)> {
        self.of(stage, service).map(|entry| (entry.name.clone(), entry.number)).collect()
    }

    fn of<E>(&self, stage: Stage<E>, service: &str) -> impl DoubleEndedIterator<Item = &Entry> {
        let place = stage.0;
        let applies = move |entry: &&Entry| {
            entry.place == place && entry.service.as_deref().is_none_or(|only| only == service)
        };
        self.0.iter().filter(applies)
    }
}

// === impl Stage ===

#[allow(non_upper_case_globals)] // one set of names, in two types
impl Stage {
    /// Client: just below the metrics, around everything that may refuse or retry.
    pub const Call: Stage = Stage(Place::Call, PhantomData);
    /// Server: just below the metrics.
    pub const ServerCall: Stage = Stage(Place::ServerCall, PhantomData);
    /// Server: just above the handler.
    pub const Handler: Stage = Stage(Place::Handler, PhantomData);
}

#[allow(non_upper_case_globals)] // as above
impl Stage<Failed> {
    /// Client: just below the retries, once for each attempt, before a node is picked.
    pub const Attempt: Stage<Failed> = Stage(Place::Attempt, PhantomData);
    /// Client: just above the connection, with the node picked.
    pub const Node: Stage<Failed> = Stage(Place::Node, PhantomData);
}

impl<E> Stage<E> {
    /// The side of a call that it is on.
    pub fn side(self) -> Side {
        match self.0 {
            Place::Call | Place::Attempt | Place::Node => Side::Client,
            Place::ServerCall | Place::Handler => Side::Server,
        }
    }

    /// This stage for the calls to `service` alone. At the server's stages the service is the server's own.
    pub fn of(self, service: &str) -> Placement<E> {
        Placement { stage: self, service: Some(service.into()) }
    }
}

impl<E> Clone for Stage<E> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<E> Copy for Stage<E> {}

impl<E, F> PartialEq<Stage<F>> for Stage<E> {
    fn eq(&self, other: &Stage<F>) -> bool {
        self.0 == other.0
    }
}

impl<E> Eq for Stage<E> {}

impl<E> std::fmt::Debug for Stage<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

// === impl Placement ===

impl<E> Placement<E> {
    /// The stage.
    pub fn stage(&self) -> Stage<E> {
        self.stage
    }

    /// The only service whose calls it is for; `None` for all.
    pub fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }
}

impl<E> From<Stage<E>> for Placement<E> {
    fn from(stage: Stage<E>) -> Self {
        Placement { stage, service: None }
    }
}

impl<E> Clone for Placement<E> {
    fn clone(&self) -> Self {
        Placement { stage: self.stage, service: self.service.clone() }
    }
}

impl<E> std::fmt::Debug for Placement<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Placement");
        out.field("stage", &self.stage).field("service", &self.service).finish()
    }
}

/// The service below the user's layers, which may have delayed the call.
struct Below<S>(Erase<S>);

impl<S, E> Erased<E> for Below<S>
where
    S: Service<Invocation, Response = Reply, Error = E> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn call(&self, mut call: Invocation) -> BoxFuture<'static, Result<Reply, E>> {
        call.attempt_waited(Instant::now());
        self.0.call(call)
    }
}

impl<E: 'static> Erased<E> for Switchable<E> {
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, E>> {
        match call.policy().layers.is_off(self.number, self.listener.as_deref()) {
            false => self.on.0.call(call),
            true => self.off.0.call(call),
        }
    }
}

/// A user's tower service: for each call a clone is made ready.
struct Foreign<S>(S);

impl<S, E> Erased<E> for Foreign<S>
where
    S: Service<Invocation, Response = Reply> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    E: CallError,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, E>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            match std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(Failed::from_layer) {
                Ok(()) => service.call(call).await.map_err(|error| Failed::from_layer(error).into()),
                Err(failed) => Err(call.refuse(failed.into_error().with_maybe_executed(false))),
            }
        })
    }
}

// === impl FnLayer ===

impl<F, E> Clone for FnLayer<F, E> {
    fn clone(&self) -> Self {
        FnLayer(self.0.clone(), PhantomData)
    }
}

impl<F, E> Layer<Next<E>> for FnLayer<F, E> {
    type Service = FnService<F, E>;

    fn layer(&self, next: Next<E>) -> FnService<F, E> {
        FnService { function: self.0.clone(), next }
    }
}

impl<F, E> std::fmt::Debug for FnLayer<F, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FnLayer")
    }
}

// === impl FnService ===

impl<F, E> Clone for FnService<F, E> {
    fn clone(&self) -> Self {
        FnService { function: self.function.clone(), next: self.next.clone() }
    }
}

impl<F, Fut, E> Service<Invocation> for FnService<F, E>
where
    F: Fn(Invocation, Next<E>) -> Fut,
    Fut: Future<Output = Result<Reply, E>>,
{
    type Response = Reply;
    type Error = E;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), E>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Fut {
        (self.function)(call, self.next.clone())
    }
}

impl<F, E> std::fmt::Debug for FnService<F, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FnService")
    }
}

impl<F, Fut, E> Erased<E> for FnService<F, E>
where
    F: Fn(Invocation, Next<E>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, E>> + Send + 'static,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, E>> {
        Box::pin((self.function)(call, self.next.clone()))
    }
}

// === impl Staged ===

impl<S: Clone, E> Clone for Staged<S, E> {
    fn clone(&self) -> Self {
        match self {
            Staged::Plain(inner) => Staged::Plain(inner.clone()),
            Staged::User(next) => Staged::User(next.clone()),
        }
    }
}

impl<S, E> Service<Invocation> for Staged<S, E>
where
    S: Service<Invocation, Response = Reply, Error = E>,
    E: CallError,
{
    type Response = Reply;
    type Error = E;
    type Future = StagedFuture<S::Future, E>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), E>> {
        match self {
            Staged::Plain(inner) => inner.poll_ready(cx),
            Staged::User(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, mut call: Invocation) -> Self::Future {
        match self {
            Staged::Plain(inner) => StagedFuture::Plain { inner: inner.call(call) },
            Staged::User(next) => {
                let home = Home::of(&mut call);
                let inner = match Handled::of_layers(&call.policy) {
                    None => next.run(call),
                    Some(context) => context.begin(|| next.run(call)),
                };
                StagedFuture::User { inner, home }
            }
        }
    }
}

impl<F: Future<Output = Result<Reply, E>>, E: CallError> Future for StagedFuture<F, E> {
    type Output = Result<Reply, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            StagedProjection::Plain { inner } => inner.poll(cx),
            StagedProjection::User { inner, home } => {
                let mut answer = std::task::ready!(inner.as_mut().poll(cx));
                if let Some(home) = home.take() {
                    match &mut answer {
                        Ok(reply) => home.follow(reply),
                        Err(_) => answer = answer.map_err(|error| home.fail(error)),
                    }
                }
                Poll::Ready(answer)
            }
        }
    }
}
