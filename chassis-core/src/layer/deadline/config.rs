//! What people write: `timeout` and `total_timeout`, lengths of time above 0, or `off`.
use std::time::Duration;

/// The `timeout` of calls that go out, where none is written.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// The `timeout` of calls that come in, where none is written: their callers, who know what they wait for, bound
/// them first.
pub const DEFAULT_INBOUND_TIMEOUT: Duration = Duration::from_secs(30);
