//! A file that changes while the process runs.
use std::{sync::Arc, time::Duration};

use chassis_config::{Change, FileSource, Loader, Moved, tree::Layer};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    timeout: u32,
}

async fn next(loader: &mut Loader<Settings, u32>) -> String {
    let change = tokio::time::timeout(Duration::from_secs(30), loader.next()).await;
    match change.expect("a change is noticed") {
        Change::Applied(version) => {
            let changes: Vec<_> = version.changes.iter().map(Moved::to_string).collect();
            format!("{} with {}: {}", version.number, version.value, changes.join(", "))
        }
        Change::Refused(refusal) => refusal.problems[0].in_a_line(),
        Change::Unreadable(unreadable) => unreadable.to_string(),
        Change::Restored(number) => format!("{number} again"),
        Change::Held(held) => format!("{} is pinned", held.pinned),
        Change::Avoided(avoided) => avoided.why,
    }
}

#[tokio::test]
async fn the_last_good_version_outlives_whatever_happens_to_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, new) = (dir.path().join("chassis.toml"), dir.path().join("new"));
    let shown = path.display();
    std::fs::write(&path, "timeout = 1\n").unwrap();
    let mut loader = Loader::new(|s: &Settings| Ok((s.timeout, Vec::new())))
        .source(Layer::File, Arc::new(FileSource::new(&path)));
    assert_eq!(next(&mut loader).await, format!("1 with 1: timeout unset -> 1 ({shown}:1:11)"));

    std::fs::write(&new, "\ntimeout = 2\n").unwrap();
    std::fs::rename(&new, &path).unwrap();
    assert_eq!(next(&mut loader).await, format!("2 with 2: timeout 1 -> 2 ({shown}:2:11)"));

    std::fs::write(&path, "timeout = 3\ntimeo").unwrap(); // half-written
    let broken = next(&mut loader).await;
    assert!(broken.starts_with(&format!("C001 {shown}:2:")), "{broken}");

    std::fs::remove_file(&path).unwrap();
    assert_eq!(next(&mut loader).await, format!("C014 {shown}: there is no such file"));

    std::fs::write(&path, "timeout = 2 # as before\n").unwrap();
    assert_eq!(next(&mut loader).await, "2 again");

    std::fs::write(&path, "timeout = 3\n").unwrap();
    assert_eq!(next(&mut loader).await, format!("3 with 3: timeout 2 -> 3 ({shown}:1:11)"));
}
