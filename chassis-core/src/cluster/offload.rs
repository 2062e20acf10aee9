//! Work on large sets of instances, away from the threads that serve calls.
use std::{future::pending, panic::resume_unwind, sync::Arc, time::Duration};

use super::members::Members;
use crate::tasks::Tasks;

/// Sets of at most this many instances are handled in place, in less than half a millisecond: another thread would only
/// delay their changes.
pub(crate) const IN_PLACE: usize = 256;
/// The time after which no pick of before a change uses the old members any more, unless its thread did not run.
const LOOKS_END: Duration = Duration::from_millis(20);
/// The number of such times for which the old members are kept for others that hold them.
const MOST_LOOKS: usize = 50;

/// Runs `work`, which handles this many instances: in place if they are few, else on a thread for blocking work. Its
/// panic is resumed here.
pub(crate) async fn offload<T: Send + 'static>(
    instances: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if instances <= IN_PLACE {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            Err(_) => pending().await, // the tokio runtime ends, and this task with it
        },
    }
}

/// Drops `old`, which no new call can find: members of a large set are dropped on a thread for blocking work, once this
/// is the last reference, so that no call drops them.
pub(super) fn drop_members(old: Arc<Members>, tasks: &Tasks) {
    if old.nodes().len() <= IN_PLACE {
        return;
    }
    tasks.spawn(async move {
        for _ in 0..MOST_LOOKS {
            tokio::time::sleep(LOOKS_END).await;
            if Arc::strong_count(&old) == 1 {
                break;
            }
        }
        // Awaited by nothing: the end of the drop concerns no one.
        drop(tokio::task::spawn_blocking(move || drop(old)));
    });
}

/// Drops a list of this many parts: on a thread for blocking work if there are many.
pub(crate) fn drop_list<T: Send + 'static>(parts: usize, list: T) {
    if parts > IN_PLACE {
        drop(tokio::task::spawn_blocking(move || drop(list)));
    }
}
