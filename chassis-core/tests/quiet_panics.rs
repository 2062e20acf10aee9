//! Caught panics and the panic hook: it is global to the process, hence a test binary of its own.
#![allow(clippy::unwrap_used)]
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use chassis_core::layer::panic::{caught, quiet_panics};

#[test]
fn a_caught_panic_is_reported_with_text_and_place_and_kept_from_the_hook_where_asked() {
    static REPORTED: AtomicUsize = AtomicUsize::new(0);
    std::panic::set_hook(Box::new(|_| {
        REPORTED.fetch_add(1, SeqCst);
    }));
    assert_eq!(caught(|| 7).unwrap(), 7);
    assert_eq!(caught(|| -> () { panic!("a text") }).unwrap_err(), "a text");
    assert_eq!(REPORTED.load(SeqCst), 1, "by default the previous hook is called");

    quiet_panics();
    let words = caught(|| -> () { panic!("text {}", 2) }).unwrap_err();
    assert!(words.starts_with("text 2 (") && words.contains("quiet_panics.rs:"), "{words}");
    assert!(caught(|| -> () { std::panic::panic_any(7) }).unwrap_err().starts_with("no text ("));
    assert_eq!(REPORTED.load(SeqCst), 1);
    // Nested: the outer panic is still caught.
    let words = caught(|| -> () {
        let _ = caught(|| -> () { panic!("inner") });
        panic!("outer")
    });
    assert!(words.unwrap_err().starts_with("outer ("));
    assert_eq!(REPORTED.load(SeqCst), 1);

    let _ = std::panic::catch_unwind(|| panic!("not caught by chassis"));
    assert_eq!(REPORTED.load(SeqCst), 2, "panics outside of chassis are reported as before");
}
