//! Where users put layers of their own: at named stages, for all services or for one.
//!
//! Between the user's layers and the built-in ones types are erased, once; an empty stage is a branch. Who
//! listens to a call does not go along into the user's layers: whatever they do with it, what was counted above
//! them comes back.
use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    BoxError, BoxFuture,
    call::{Home, Invocation, Reply},
    clock::Instant,
    shard::{Cells, Line},
    types::{Error, Side},
};

/// A place in the pipeline where a user's layer can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Client: just below the metrics, around everything that may refuse or retry.
    Call,
    /// Client: just below the retries, once for each attempt, before a node is picked.
    Attempt,
    /// Client: just above the connection, with the node picked.
    Node,
    /// Server: just below the metrics.
    ServerCall,
    /// Server: just above the handler.
    Handler,
}

/// At which stage a user's layer stands, and for which calls: a [`Stage`] alone is for all services.
///
/// ```
/// use chassis_core::{Placement, Stage};
///
/// let everywhere: Placement = Stage::Call.into();
/// let stock_only: Placement = Stage::Call.of("stock");
/// # let _ = (everywhere, stock_only);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    stage: Stage,
    service: Option<Arc<str>>,
}

/// What is inside a user's layer: calls it on, or not.
///
/// Always ready. A layer may call it more than once, with another [`Invocation`] each time: a
/// [`try_clone`](Invocation::try_clone) of the one that it was given lives under the same rules, one made by
/// [`new`](Invocation::new) under none. At [`Stage::Node`] a call needs the node that it was given with. The call
/// ends as the answer or the error does that the layer returns.
#[derive(Clone)]
pub struct Next(Arc<dyn Erased>);

trait Erased: Send + Sync {
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>>;
}

/// A tower layer that is an async function: see [`from_fn`].
pub struct FnLayer<F>(Arc<F>);

/// The service of [`FnLayer`].
pub struct FnService<F> {
    function: Arc<F>,
    next: Next,
}

/// Layers of ours, which a call goes through at once and leaves as they were. So threads have some of their
/// own, made once, rather than for each call, which would count references to what all share. Nobody waits
/// for them: whoever finds them taken - by a call made within a call, or as more threads than shards are
/// about - makes some for the one call.
struct Erase<S> {
    service: S,
    own: Cells<Mutex<S>>,
}

/// The user's layers, in the order they were added: the first is outermost.
#[derive(Clone, Default)]
pub struct Stages(Arc<Vec<Entry>>);

#[derive(Clone)]
struct Entry {
    stage: Stage,
    name: Arc<str>,
    service: Option<Arc<str>>,
    wrap: Arc<dyn Fn(Next) -> Next + Send + Sync>,
}

/// A stage with the user's layers around it, or without any.
#[derive(Clone)]
pub enum Staged<S> {
    /// None: the inner service itself.
    Plain(S),
    /// The outermost of the user's layers.
    User(Next),
}

/// Makes a tower layer of an async function over the call and what is inside, as axum's `from_fn` does.
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
pub fn from_fn<F, Fut>(function: F) -> FnLayer<F>
where
    F: Fn(Invocation, Next) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Error>> + Send + 'static,
{
    FnLayer(Arc::new(function))
}

pin_project! {
    #[allow(missing_docs)]
    /// The future of a [`Staged`].
    #[project = StagedProjection]
    pub enum StagedFuture<F> {
        /// The inner service's own.
        Plain { #[pin] inner: F },
        /// Of the user's layers.
        User {
            inner: BoxFuture<'static, Result<Reply, Error>>,
            // Those who listen to the call, until there is an answer.
            home: Option<Home>,
        },
    }
}

// === impl Next ===

impl Next {
    /// Erases `service`, which has to be always ready.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Next(Arc::new(Erase::new(service)))
    }

    /// Passes the call on.
    pub fn run(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        self.0.call(call)
    }
}

impl<S> Erase<S> {
    fn new(service: S) -> Self {
        Erase { service, own: Cells::new() }
    }
}

impl<S> Erased for Erase<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        let own = self.own.mine(|| Box::new(Line(Mutex::new(self.service.clone()))));
        match own.try_lock() {
            Ok(mut own) => Box::pin(own.call(call)),
            Err(_) => Box::pin(self.service.clone().call(call)),
        }
    }
}

impl Service<Invocation> for Next {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply, Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Self::Future {
        self.0.call(call)
    }
}

impl std::fmt::Debug for Next {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Next")
    }
}

// === impl Stages ===

impl Stages {
    /// Adds a tower layer at `stage`, for calls to `service` or for all. Its service is made ready before
    /// each call, so layers that wait in `poll_ready` work too. [`Error::from_layer`] tells what its errors
    /// become.
    pub fn add_layer<L>(&mut self, stage: Stage, name: &str, service: Option<&str>, layer: L)
    where
        L: Layer<Next> + Send + Sync + 'static,
        L::Service: Service<Invocation, Response = Reply> + Clone + Send + Sync + 'static,
        <L::Service as Service<Invocation>>::Error: Into<BoxError>,
        <L::Service as Service<Invocation>>::Future: Send + 'static,
    {
        self.push(stage, name, service, move |next| Next(Arc::new(Foreign(layer.layer(next)))));
    }

    /// Adds an async function over the call and what is inside: cheaper by a clone than [`from_fn`].
    pub fn add_fn<F, Fut>(&mut self, stage: Stage, name: &str, service: Option<&str>, function: F)
    where
        F: Fn(Invocation, Next) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Reply, Error>> + Send + 'static,
    {
        let function = Arc::new(function);
        self.push(stage, name, service, move |next| {
            Next(Arc::new(FnService { function: function.clone(), next }))
        });
    }

    fn push(
        &mut self,
        stage: Stage,
        name: &str,
        service: Option<&str>,
        wrap: impl Fn(Next) -> Next + Send + Sync + 'static,
    ) {
        let entry =
            Entry { stage, name: name.into(), service: service.map(Into::into), wrap: Arc::new(wrap) };
        Arc::make_mut(&mut self.0).push(entry);
    }

    /// Puts the layers of `stage` around `inner`.
    pub(crate) fn at<S>(&self, stage: Stage, service: &str, inner: S) -> Staged<S>
    where
        S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let mut entries = self.of(stage, service).rev();
        match entries.next() {
            None => Staged::Plain(inner),
            Some(innermost) => {
                let first = (innermost.wrap)(Next(Arc::new(Below(Erase::new(inner)))));
                Staged::User(entries.fold(first, |next, entry| (entry.wrap)(next)))
            }
        }
    }

    /// The names of the layers at `stage`, outermost first.
    pub fn names(&self, stage: Stage, service: &str) -> Vec<Arc<str>> {
        self.of(stage, service).map(|entry| entry.name.clone()).collect()
    }

    fn of(&self, stage: Stage, service: &str) -> impl DoubleEndedIterator<Item = &Entry> {
        let applies = move |entry: &&Entry| {
            entry.stage == stage && entry.service.as_deref().is_none_or(|only| only == service)
        };
        self.0.iter().filter(applies)
    }
}

impl Stage {
    /// Which end of a call it is on.
    pub fn side(self) -> Side {
        match self {
            Stage::Call | Stage::Attempt | Stage::Node => Side::Client,
            Stage::ServerCall | Stage::Handler => Side::Server,
        }
    }

    /// This stage of the calls to `service` alone. At the server's stages the service is the server's own.
    pub fn of(self, service: &str) -> Placement {
        Placement { stage: self, service: Some(service.into()) }
    }
}

// === impl Placement ===

impl Placement {
    /// The stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The one service whose calls it is for; `None`: all.
    pub fn service(&self) -> Option<&str> {
        self.service.as_deref()
    }
}

impl From<Stage> for Placement {
    fn from(stage: Stage) -> Self {
        Placement { stage, service: None }
    }
}

/// What is below the user's layers, which may have let the call wait.
struct Below<S>(Erase<S>);

impl<S> Erased for Below<S>
where
    S: Service<Invocation, Response = Reply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    fn call(&self, mut call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        call.attempt_waited(Instant::now());
        self.0.call(call)
    }
}

/// A user's tower service: made ready on a clone of its own for each call.
struct Foreign<S>(S);

impl<S> Erased for Foreign<S>
where
    S: Service<Invocation, Response = Reply> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        let mut service = self.0.clone();
        Box::pin(async move {
            let ready = std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(Error::from_layer);
            match ready {
                Ok(()) => service.call(call).await.map_err(Error::from_layer),
                Err(error) => Err(call.refuse(error.with_maybe_executed(false))),
            }
        })
    }
}

// === impl FnLayer ===

impl<F> Clone for FnLayer<F> {
    fn clone(&self) -> Self {
        FnLayer(self.0.clone())
    }
}

impl<F> Layer<Next> for FnLayer<F> {
    type Service = FnService<F>;

    fn layer(&self, next: Next) -> FnService<F> {
        FnService { function: self.0.clone(), next }
    }
}

impl<F> std::fmt::Debug for FnLayer<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FnLayer")
    }
}

// === impl FnService ===

impl<F> Clone for FnService<F> {
    fn clone(&self) -> Self {
        FnService { function: self.function.clone(), next: self.next.clone() }
    }
}

impl<F, Fut> Service<Invocation> for FnService<F>
where
    F: Fn(Invocation, Next) -> Fut,
    Fut: Future<Output = Result<Reply, Error>>,
{
    type Response = Reply;
    type Error = Error;
    type Future = Fut;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Invocation) -> Fut {
        (self.function)(call, self.next.clone())
    }
}

impl<F> std::fmt::Debug for FnService<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FnService")
    }
}

impl<F, Fut> Erased for FnService<F>
where
    F: Fn(Invocation, Next) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Reply, Error>> + Send + 'static,
{
    fn call(&self, call: Invocation) -> BoxFuture<'static, Result<Reply, Error>> {
        Box::pin((self.function)(call, self.next.clone()))
    }
}

// === impl Staged ===

impl<S> Service<Invocation> for Staged<S>
where
    S: Service<Invocation, Response = Reply, Error = Error>,
{
    type Response = Reply;
    type Error = Error;
    type Future = StagedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
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
                StagedFuture::User { inner: next.run(call), home }
            }
        }
    }
}

impl<F: Future<Output = Result<Reply, Error>>> Future for StagedFuture<F> {
    type Output = Result<Reply, Error>;

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
