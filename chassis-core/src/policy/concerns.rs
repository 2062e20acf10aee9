//! The table of concerns: every key of the settings about calls, what a policy holds of it, and who compiles it.
//!
//! Everything that has a part for each concern is generated from this table: the settings ([`settings`](super::settings)),
//! what is inherited ([`Resolved`]), the [`Policy`](super::Policy), and what `inspect` shows. So a further concern
//! is one entry here, besides its folder and its place in the pipeline.

/// Hands the table to the macro `$then`. An entry reads
/// `key: written => { fields of the policy } by compiler, seen as field of the inspection`.
macro_rules! concerns {
    ($then:ident) => {
        $then! {
            // Keys of all calls: of services and of operations.
            both {
                /// How long a call may take to the head of its answer; local, not sent on. For calls that go out
                /// retries are included, and the default is `5s`; for calls that come in it is `30s`, unless their
                /// caller waits less.
                timeout: Switch<PositiveSpan> => {
                    /// To the head of the answer.
                    pub(crate) timeout: Option<Duration>
                } by layer::deadline::TimeoutRule;
                /// How long a call may take to the end of its body; sent on. Default `off`.
                total_timeout: Switch<PositiveSpan> => {
                    /// To the end of the body; sent on.
                    pub(crate) total_timeout: Option<Duration>
                } by layer::deadline::TotalTimeoutRule;
                /// How many calls may be under way at once. Default `off`.
                concurrency: Switch<layer::concurrency::ConcurrencyConfig> => {
                    /// How many at once.
                    pub(crate) concurrency: Option<layer::concurrency::Bound>,
                    /// How many at once at each node.
                    pub(crate) node_concurrency: Option<u32>
                } by layer::concurrency::ConcurrencyRule, seen as
                    /// Bounds on concurrent calls.
                    concurrency: layer::concurrency::ConcurrencyView;
                /// Rates that calls are admitted at, all of which have to admit a call. Default: none.
                rate_limits: Vec<layer::rate_limit::RateLimitConfig> => {
                    /// Rates to admit at.
                    pub(crate) rate_limits: Arc<[Arc<layer::rate_limit::Limit>]>
                } by layer::rate_limit::RateLimitRule, seen as
                    /// Rate limits, of calls out and in.
                    limits: layer::rate_limit::LimitView;
                /// Layers of one's own that are switched, by name; of an operation that comes in, over what its
                /// listener says. Default: as `layers` of the document says.
                layers: BTreeMap<String, layer::own::LayerSwitch> => {
                    /// Layers of the user's own that it passes by.
                    pub(crate) layers: layer::own::Switched
                } by layer::own::LayersRule, seen as
                    /// Switches of the user's layers that are off, or that differ for a listener.
                    layers: layer::own::LayerView;
                /// What one call may carry: bytes of its answer, number and rate of its messages. Default `off`.
                message_limits: Switch<layer::message_limits::MessageLimitsPatch> => {
                    /// What one call may carry.
                    pub(crate) message_limits: Option<Arc<layer::message_limits::MessageLimits>>
                } by layer::message_limits::MessageLimitsRule, seen as
                    /// Bounds on answers and messages.
                    message_limits: layer::message_limits::MessageLimitsView;
            }
            // Keys of calls that go out: of services and of operations.
            outbound {
                /// When and how often calls are tried again; `off` for never.
                retry: Switch<layer::retry::RetryPatch> => {
                    /// Trying again.
                    pub(crate) retry: Option<layer::retry::Retries>
                } by layer::retry::RetryRule;
                /// When a circuit opens; `off` for never.
                breaker: Switch<layer::breaker::BreakerPatch> => {
                    /// The circuit above the retries.
                    pub(crate) breaker: Option<layer::breaker::Guard>,
                    /// The numbers of the circuits of nodes.
                    pub(crate) node_breaker: Option<Arc<layer::breaker::CircuitConfig>>,
                    /// What weighs on a node when it is picked.
                    pub(crate) failures: layer::breaker::FailureSet
                } by layer::breaker::BreakerRule, seen as
                    /// Circuits above the retries, of services and operations.
                    circuits: layer::breaker::CircuitView;
                /// What to answer where a call fails. Default `off`. A function given to the builder wins.
                fallback: Switch<layer::fallback::FallbackConfig> => {
                    /// Answering instead.
                    pub(crate) fallback: Option<layer::fallback::Fallback>
                } by layer::fallback::FallbackRule;
                /// Can calls be executed twice without harm? Default: as HTTP methods and protos say.
                idempotent: bool => {
                    /// Does executing it twice do no harm?
                    pub(crate) idempotent: bool
                } by layer::retry::IdempotentRule;
            }
            // Keys of calls that go out, of services only: what a service says is said for all its operations.
            service {
                /// How one of several nodes is picked: `round_robin`, `random`, `p2c`, or the name of an entry of
                /// `pickers` or of a picker of one's own. Default `p2c`.
                balance: String => {
                    /// Which node.
                    pub(crate) picker: layer::balance::Balancer
                } by layer::balance::PickerRule;
                /// Where calls go, in order; the first rule that matches decides. Default: anywhere.
                routes: Vec<layer::route::RouteConfig> => {
                    /// Where calls go.
                    pub(crate) routes: Arc<[layer::route::Rule]>
                } by layer::route::RouteRule;
            }
        }
    };
}
pub(crate) use concerns;
