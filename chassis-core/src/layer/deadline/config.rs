//! The settings `timeout` and `total_timeout`: lengths of time above 0, or `off`.
use std::time::Duration;

/// The default `timeout` of outgoing calls.
pub(crate) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The default `timeout` of incoming calls: longer, because callers bound their calls themselves.
pub(crate) const DEFAULT_INBOUND_TIMEOUT: Duration = Duration::from_secs(30);
