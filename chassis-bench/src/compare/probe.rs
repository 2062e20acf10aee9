//! Detects whether `tracing/log` is on. It costs every gRPC call a fifth, and any crate of a build can enable
//! it for all.
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

struct Probe;

static RECEIVED: AtomicBool = AtomicBool::new(false);

/// Emits an event with `tracing` and checks whether it reaches `log`. Once per process, before a logger or a
/// subscriber is set.
pub(super) fn is_log_on() -> bool {
    if log::set_logger(&Probe).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
        tracing::info!(target: "chassis_bench", "a test event");
        log::set_max_level(log::LevelFilter::Off);
    }
    RECEIVED.load(Relaxed)
}

impl log::Log for Probe {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        RECEIVED.store(true, Relaxed);
    }

    fn flush(&self) {}
}
