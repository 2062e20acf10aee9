//! Settings that crash the process right after they are applied. The test starts this binary again, as the program.
#![allow(clippy::unwrap_used)] // clippy treats helpers of integration tests as library code
use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use chassis::{Chassis, Section};

/// Set where this binary is the program.
const PROGRAM: &str = "CRASH_TEST_PROGRAM";

#[derive(Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    discount: u8,
    token: String,
    /// What the program does with these settings.
    then: String,
}

fn main() -> chassis::Result {
    if std::env::var_os(PROGRAM).is_none() {
        settings_that_crash_twice_are_not_applied_again();
        settings_without_earlier_ones_stop_the_start();
        println!("crashes are attributed: ok");
        return Ok(());
    }
    // On the paused clock the seconds of a life pass at once.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(program())
}

async fn program() -> chassis::Result {
    let builder = Chassis::builder("shop").section(Section::<Shop>::new("shop"));
    let app = builder.settings(serde_json::json!({ "registry": { "kind": "memory" } })).build().await?;
    let shop = app.settings::<Shop>("shop")?.get();
    println!("runs with {}", shop.discount);
    let running = app.start().await?;
    match &*shop.then {
        "panic" => panic!("out of cheese"),
        "caught" => assert!(std::thread::spawn(|| panic!("out of cheese")).join().is_err()),
        "wait" => loop {
            std::thread::park(); // not a wait on the clock, which would pass at once
        },
        "exit" => std::process::exit(3),
        _ => tokio::time::sleep(Duration::from_secs(60)).await,
    }
    running.stop().await;
    Ok(())
}

/// Runs the program in a directory until it ends; one that waits is killed. Returns the settings it ran with, whether it
/// ended well, and stderr.
fn run(dir: &Path) -> (Option<String>, bool, String) {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.env_clear().env(PROGRAM, "1").env("LOGIN", "hunter2").current_dir(dir);
    let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let first = BufReader::new(child.stdout.take().unwrap()).lines().next().map(|line| line.unwrap());
    let settings = std::fs::read_to_string(dir.join("chassis.yaml")).unwrap();
    if settings.contains("then: wait") {
        child.kill().unwrap();
    }
    let done = child.wait_with_output().unwrap();
    (first, done.status.success(), String::from_utf8(done.stderr).unwrap())
}

/// Writes the settings of the program.
fn write(dir: &Path, shop: &str) {
    let state = dir.join("state");
    let text = format!("config: {{ last_good: {} }}\nshop: {{ {shop} }}\n", state.display());
    std::fs::write(dir.join("chassis.yaml"), text).unwrap();
}

#[track_caller]
fn check(dir: &Path, expected: (&str, bool)) -> String {
    let (first, is_well, error) = run(dir);
    assert_eq!((first.as_deref(), is_well), (Some(expected.0), expected.1), "{error}");
    error
}

fn settings_that_crash_twice_are_not_applied_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "discount: 1, token: \"${env:LOGIN}\"");
    check(dir, ("runs with 1", true));

    write(dir, "discount: 2, then: panic");
    check(dir, ("runs with 2", false));
    check(dir, ("runs with 2", false));
    for _ in 0..2 {
        check(dir, ("runs with 1", true));
    }
    // Other settings are applied.
    write(dir, "discount: 3, then: panic");
    check(dir, ("runs with 3", false));
    write(dir, "discount: 4");
    check(dir, ("runs with 4", true));
    write(dir, "discount: 3, then: panic");
    check(dir, ("runs with 3", false));
    write(dir, "discount: 2, then: panic");
    check(dir, ("runs with 4", true));

    // A kill, an exit, and a panic that the program survives are not the settings' fault.
    for (discount, then, is_well) in [(5, "wait", false), (6, "exit", false), (7, "caught", true)] {
        write(dir, &format!("discount: {discount}, then: {then}"));
        for _ in 0..4 {
            check(dir, (&format!("runs with {discount}"), is_well));
        }
    }
    for file in std::fs::read_dir(dir.join("state")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        assert!(!text.contains("hunter2"), "{text}");
    }
}

fn settings_without_earlier_ones_stop_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write(dir, "discount: 2, then: panic");
    check(dir, ("runs with 2", false));
    check(dir, ("runs with 2", false));
    let (first, is_well, error) = run(dir);
    assert_eq!((first, is_well), (None, false));
    let why = "are not applied, because it crashed the process 2 times right after it was applied";
    assert!(error.contains(why) && error.contains("no earlier settings are on disk"), "{error}");
    write(dir, "discount: 3");
    check(dir, ("runs with 3", true));
}
