//! The table of concerns: each key of the settings about calls, its fields in a policy, and its compiler.
//!
//! Everything that has a part for each concern is generated from this table: the settings
//! ([`settings`](super::settings)), the inheritance ([`Resolved`]), the [`Policy`](super::Policy), and the
//! inspection. So a new concern is one entry here, in addition to its folder and its place in the pipeline.

/// Passes the table to the macro `$then`. An entry has the form `key: written => { fields of the policy } by
/// compiler, seen as field of the inspection`.
macro_rules! concerns {
    ($then:ident) => {
        $then! {
            // Keys of all calls: of services and of operations.
            both {
                /// The time that a call may take to the head of its answer; local, not sent with the call. For
                /// outgoing calls retries are included, and the default is `5s`; for incoming calls it is
                /// `30s`, unless their caller waits for less.
                timeout: Switch<PositiveSpan> => {
                    /// The timeout to the head of the answer.
                    pub(crate) timeout: Option<Duration>
                } by layer::deadline::TimeoutRule;
                /// The time that a call may take to the end of its body; sent with the call. Default `off`.
                total_timeout: Switch<PositiveSpan> => {
                    /// The timeout to the end of the body; sent with the call.
                    pub(crate) total_timeout: Option<Duration>
                } by layer::deadline::TotalTimeoutRule;
                /// The limit of calls in flight. Default `off`.
                concurrency: Switch<layer::concurrency::ConcurrencyConfig> => {
                    /// The limit of calls in flight.
                    pub(crate) concurrency: Option<layer::concurrency::Bound>,
                    /// The limit of calls in flight at each node.
                    pub(crate) node_concurrency: Option<u32>
                } by layer::concurrency::ConcurrencyRule, seen as
                    /// Limits on concurrent calls.
                    concurrency: layer::concurrency::ConcurrencyView;
                /// Rates at which calls are admitted; all of them must admit a call. Default: none.
                rate_limits: Vec<layer::rate_limit::RateLimitConfig> => {
                    /// The rates at which calls are admitted.
                    pub(crate) rate_limits: Arc<[Arc<layer::rate_limit::Limit>]>
                } by layer::rate_limit::RateLimitRule, seen as
                    /// Rate limits, of outgoing and incoming calls.
                    limits: layer::rate_limit::LimitView;
                /// The user's layers that are switched, by name; for an incoming operation, in addition to the
                /// setting of its listener. Default: the table `layers` of the document.
                layers: BTreeMap<String, layer::own::LayerSwitch> => {
                    /// The user's layers that calls skip.
                    pub(crate) layers: layer::own::Switched
                } by layer::own::LayersRule, seen as
                    /// Switches of the user's layers that are off, or that differ for a listener.
                    layers: layer::own::LayerView;
                /// Limits on the bytes of an answer, and on the number and rate of messages. Default `off`.
                message_limits: Switch<layer::message_limits::MessageLimitsPatch> => {
                    /// The limits on answers and messages.
                    pub(crate) message_limits: Option<Arc<layer::message_limits::MessageLimits>>
                } by layer::message_limits::MessageLimitsRule, seen as
                    /// Limits on answers and messages.
                    message_limits: layer::message_limits::MessageLimitsView;
            }
            // Keys of outgoing calls: of services and of operations.
            outbound {
                /// When and how often calls are retried; `off` for never.
                retry: Switch<layer::retry::RetryPatch> => {
                    /// The retries.
                    pub(crate) retry: Option<layer::retry::Retries>
                } by layer::retry::RetryRule, seen as
                    /// The budgets of retries, of services.
                    budgets: layer::retry::BudgetView;
                /// When a circuit opens; `off` for never.
                breaker: Switch<layer::breaker::BreakerPatch> => {
                    /// The circuit above the retries.
                    pub(crate) breaker: Option<layer::breaker::Guard>,
                    /// The settings of the nodes' circuits.
                    pub(crate) node_breaker: Option<Arc<layer::breaker::CircuitConfig>>,
                    /// The failures that reduce a node's share of picks.
                    pub(crate) failures: layer::breaker::FailureSet
                } by layer::breaker::BreakerRule, seen as
                    /// Circuits above the retries, of services and operations.
                    circuits: layer::breaker::CircuitView;
                /// The answer in place of a failed call. Default `off`. A function given to the builder
                /// overrides it.
                fallback: Switch<layer::fallback::FallbackConfig> => {
                    /// The answer in place of a failed call.
                    pub(crate) fallback: Option<layer::fallback::Fallback>
                } by layer::fallback::FallbackRule;
                /// Whether calls can be executed twice without harm. Default: according to HTTP methods and
                /// protos.
                idempotent: bool => {
                    /// Whether a second execution is harmless.
                    pub(crate) idempotent: bool
                } by layer::retry::IdempotentRule;
            }
            // Keys of outgoing calls, of services only: they apply to all operations of a service.
            service {
                /// The picker of a node: `round_robin`, `random`, `p2c`, or the name of an entry of `pickers`
                /// or of a user's own picker. Default `p2c`.
                balance: String => {
                    /// The picker.
                    pub(crate) picker: layer::balance::Balancer
                } by layer::balance::PickerRule;
                /// The routes of calls, in order; the first rule that matches decides. Default: any node.
                routes: Vec<layer::route::RouteConfig> => {
                    /// The routes of calls.
                    pub(crate) routes: Arc<[layer::route::Rule]>
                } by layer::route::RouteRule;
            }
        }
    };
}
pub(crate) use concerns;
