//! Observes the incoming frames of a server's connection.
use std::{sync::Arc, task::Context};

use tokio::time::Instant;

use crate::{
    h2::{
        flood::FrameBudget,
        frames::{FrameEvent, FrameParser, HEADERS, HeaderLimit, RESET, Unfinished},
        keep_alive::KeepAlive,
        read_budget::ReadBudget,
    },
    server::activity::Activity,
};

/// Updates keep-alive, the read budget, the flood budget and the connection's activity from the incoming bytes.
pub(crate) struct FrameMonitor {
    keep_alive: Arc<KeepAlive>,
    read_budget: ReadBudget,
    activity: Arc<Activity>,
    frames: FrameParser,
    limit: HeaderLimit,
    budget: FrameBudget,
    /// After the last read: the unfinished part, whether it is a header list, and the number of frames before
    /// it.
    unfinished: (Unfinished, bool, u64),
}

// === impl FrameMonitor ===

impl FrameMonitor {
    pub(crate) fn new(
        keep_alive: Arc<KeepAlive>,
        read_budget: ReadBudget,
        activity: Arc<Activity>,
        limit: HeaderLimit,
    ) -> Self {
        let budget = FrameBudget::new(Instant::now());
        FrameMonitor {
            keep_alive,
            read_budget,
            activity,
            frames: FrameParser::default(),
            limit,
            budget,
            unfinished: (Unfinished::Nothing, false, 0),
        }
    }

    /// The connection's activity.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    /// Adds to the flood budget for `bytes` that were written.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.budget.earn(bytes);
    }

    /// Whether this poll has read enough. Then the task is woken, to be polled again soon.
    pub(crate) fn is_spent(&self, cx: &mut Context<'_>) -> bool {
        self.read_budget.is_spent(cx)
    }

    /// Whether each read must be small.
    pub(crate) fn is_slow(&self) -> bool {
        self.activity.streams.is_slow()
    }

    /// Observes incoming `bytes`.
    pub(crate) fn read(&mut self, bytes: &[u8]) {
        let FrameMonitor { keep_alive, read_budget, activity, frames, limit, budget, unfinished: last } =
            self;
        keep_alive.received();
        let begun = frames.read(bytes, &mut |seen| {
            match seen {
                FrameEvent::Frame(frame) => {
                    match frame.kind {
                        HEADERS => activity.streams.headers(frame.stream),
                        RESET => activity.streams.reset(),
                        _ => {}
                    }
                    if let Err(abuse) = budget.spend(&frame, Instant::now) {
                        activity.streams.give_up(abuse);
                        // The connection's task handles it before it reads on.
                        read_budget.exhaust();
                    }
                }
                FrameEvent::Settings { max_header_list, stream_window, .. } => {
                    limit.set(max_header_list);
                    stream_window.into_iter().for_each(|bytes| activity.windows.set_stream(bytes));
                }
                FrameEvent::WindowUpdate { stream: 0, by } => activity.windows.grant(by),
                _ => {}
            }
        });
        read_budget.spend_read(bytes.len(), begun);
        if activity.streams.is_slow() {
            read_budget.exhaust();
        }
        let unfinished = (frames.unfinished(), frames.is_in_list(), frames.count());
        // While the same frame, or header list, continues, the time of its first byte counts.
        let goes_on = unfinished.2 == last.2 || (unfinished.1 && last.1);
        if unfinished.0 != last.0 || (unfinished.0 != Unfinished::Nothing && !goes_on) {
            activity.set_unfinished(unfinished.0, goes_on);
        }
        *last = unfinished;
    }
}
