//! The document of the `file` registry: its results, and the errors of an invalid document.
#![allow(clippy::unwrap_used)]
use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime},
};

use chassis_core::{
    registry::{Instance, Membership, Registry, Watcher},
    units::PositiveSpan,
};
use chassis_registry::{FileConfig, FileRegistry};
use tempfile::TempDir;
use tokio::time::timeout;

struct Document {
    dir: TempDir,
    path: PathBuf,
}

const CAP: Duration = Duration::from_secs(30);

impl Document {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Document { path: dir.path().join("instances.json"), dir }
    }

    fn write(&self, text: &str) {
        let temp = self.dir.path().join("new");
        fs::write(&temp, text).unwrap();
        fs::rename(temp, &self.path).unwrap();
    }

    fn registry(&self) -> FileRegistry {
        FileRegistry::new(FileConfig { path: self.path.clone(), poll: PositiveSpan::from_millis(2) })
    }

    async fn watch(&self) -> Box<dyn Watcher> {
        self.registry().watch("stock").await.unwrap()
    }
}

async fn next(watcher: &mut Box<dyn Watcher>) -> Result<Membership, String> {
    timeout(CAP, watcher.next()).await.expect("an answer").map_err(|e| e.to_string())
}

fn known(ids: &[&str]) -> Result<Membership, String> {
    let stock = |id: &&str| Instance::new("stock", *id).with_address("grpc", "h:1");
    Ok(Membership::known(ids.iter().map(stock)))
}

fn stock(ids: &[&str]) -> String {
    let entry = |id: &&str| format!(r#"{{ "id": "{id}", "addresses": {{ "grpc": "h:1" }} }}"#);
    let entries: Vec<_> = ids.iter().map(entry).collect();
    format!(r#"{{ "services": {{ "stock": [{}] }} }}"#, entries.join(", "))
}

#[tokio::test]
async fn no_list_and_an_empty_list_and_null_are_three_things() {
    let document = Document::new();
    document.write(r#"{ "services": { "orders": [] } }"#);
    let registry = document.registry();
    let mut watcher = registry.watch("stock").await.unwrap();
    assert_eq!(next(&mut watcher).await, Ok(Membership::Unknown));
    document.write(&stock(&["a"]));
    assert_eq!(next(&mut watcher).await, known(&["a"]));
    document.write(r#"{ "services": {} }"#);
    assert_eq!(next(&mut watcher).await, known(&[]), "no longer named is not deleted");
    document.write(r#"{ "services": { "stock": null } }"#);
    assert_eq!(next(&mut watcher).await, Ok(Membership::Deleted));
    document.write(r#"{ "services": { "stock": [], "orders": null } }"#);
    assert_eq!(next(&mut watcher).await, known(&[]));
    assert_eq!(registry.services().await, ["stock"]);
}

#[tokio::test]
async fn a_document_that_cannot_be_read_is_no_news_until_it_can() {
    let document = Document::new();
    let mut watcher = document.watch().await;
    let path = document.path.display();
    assert_eq!(next(&mut watcher).await, Err(format!("{path}: No such file or directory (os error 2)")));
    let whole = stock(&["a"]);
    document.write(&whole);
    assert_eq!(next(&mut watcher).await, known(&["a"]));

    document.write(&whole[..whole.len() - 3]);
    assert_eq!(
        next(&mut watcher).await,
        Err(format!("{path}: EOF while parsing an object at line 1 column 73"))
    );
    document.write(&whole);
    assert_eq!(next(&mut watcher).await, known(&["a"]), "reported again after the error");

    fs::remove_file(&document.path).unwrap();
    assert!(next(&mut watcher).await.unwrap_err().contains("No such file"));
    for (bad, why) in [
        ("", "EOF"),
        ("{}", "missing field `services`"),
        ("services: []", "expected value"),
        (r#"{ "services": { "stock": {} } }"#, "expected a sequence"),
        (r#"{ "services": {}, "version": 2 }"#, "unknown field `version`"),
        ("\u{0}\u{0}\u{0}", "expected value"),
        (&"[".repeat(100_000), "expected a map"),
        (&format!(r#"{{ "services": {{ "stock": {} "#, "[".repeat(100_000)), "EOF"),
    ] {
        document.write(bad);
        let error = next(&mut watcher).await.unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let huge = File::create(document.dir.path().join("huge")).unwrap();
    huge.set_len(65 << 20).unwrap();
    fs::rename(document.dir.path().join("huge"), &document.path).unwrap();
    assert!(next(&mut watcher).await.unwrap_err().contains("68157440 bytes are too many"));
    fs::remove_file(&document.path).unwrap();
    assert!(Command::new("mkfifo").arg(&document.path).status().unwrap().success());
    while !next(&mut watcher).await.unwrap_err().contains("a pipe is no regular file") {}
    document.write(&whole);
    assert_eq!(next(&mut watcher).await, known(&["a"]));
}

#[tokio::test]
async fn bad_instances_are_refused_one_by_one() {
    let document = Document::new();
    document.write(
        &r#"{ "services": { "stock": [
            { "id": "a", "addresses": { "grpc": "h:1" } },
            { "id": "port-0", "addresses": { "grpc": "h:0" } },
            { "id": "a", "addresses": { "grpc": "h:2" } },
            { "id": "", "addresses": { "grpc": "h:1" } },
            { "addresses": { "grpc": "h:1" } },
            { "id": "nowhere", "addresses": {} },
            { "id": "scoped", "addresses": { "grpc": "fe80::1%eth0:80" } },
            { "id": "mistyped", "adresses": { "grpc": "h:1" } },
            { "id": "weight", "addresses": { "grpc": "h:1" }, "weight": -1 },
            { "id": "weight", "addresses": { "grpc": "h:1" }, "weight": 4294967296 },
            { "id": "theirs", "service": "orders", "addresses": { "grpc": "h:1" } },
            { "id": "ours", "service": "stock", "addresses": { "grpc": "h:1" } },
            { "id": "yesterday", "addresses": { "grpc": "h:1" }, "started_at": "yesterday" },
            17, null, "b", [], {}, DEEP ] } }"#
            .replace("DEEP", &format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))),
    );
    assert_eq!(next(&mut document.watch().await).await, known(&["a", "ours"]));
}

#[tokio::test]
async fn a_hundred_thousand_instances_are_reported_once_each() {
    let ids: Vec<String> = (0..100_000).map(|n| format!("stock-{n:05}")).collect();
    let twice: Vec<&str> = ids.iter().chain(&ids[..1000]).map(String::as_str).collect();
    let document = Document::new();
    document.write(&stock(&twice));
    let registry = document.registry();
    let mut watcher = registry.watch("stock").await.unwrap();
    let Ok(Membership::Known(all)) = next(&mut watcher).await else { panic!("not known") };
    assert!(all.iter().map(|instance| &instance.id).eq(&ids));
    let mut another = registry.watch("orders").await.unwrap();
    assert_eq!(next(&mut another).await, Ok(Membership::Unknown), "another service is not affected");
}

#[tokio::test]
async fn what_is_another_services_is_no_news() {
    let document = Document::new();
    document.write(&stock(&["a"]));
    let registry = document.registry();
    let mut stocks = registry.watch("stock").await.unwrap();
    let mut orders = registry.watch("orders").await.unwrap();
    assert_eq!(next(&mut stocks).await, known(&["a"]));
    assert_eq!(next(&mut orders).await, Ok(Membership::Unknown));
    document.write(&stock(&["a"]).replace("] }", r#"], "orders": [] }"#));
    assert_eq!(next(&mut orders).await, known(&[]));
    document.write(&stock(&["b"]));
    assert_eq!(next(&mut stocks).await, known(&["b"]), "no answer in between");
}

#[tokio::test]
async fn a_second_writing_with_the_same_time_and_length_is_seen() {
    let document = Document::new();
    document.write(&stock(&["a"]));
    let written = fs::metadata(&document.path).unwrap().modified().unwrap();
    let mut watcher = document.watch().await;
    assert_eq!(next(&mut watcher).await, known(&["a"]));
    fs::write(document.dir.path().join("b"), stock(&["b"])).unwrap();
    File::options().append(true).open(document.dir.path().join("b")).unwrap().set_modified(written).unwrap();
    fs::rename(document.dir.path().join("b"), &document.path).unwrap();
    assert_eq!(next(&mut watcher).await, known(&["b"]));
}

#[tokio::test]
async fn a_link_that_is_swapped_is_followed() {
    let document = Document::new();
    let long_ago = SystemTime::now() - Duration::from_secs(3600);
    for (n, id) in ["a", "b"].into_iter().enumerate() {
        let version = document.dir.path().join(id);
        fs::write(&version, stock(&[id])).unwrap();
        let time = long_ago + Duration::from_millis(n as u64);
        File::options().append(true).open(version).unwrap().set_modified(time).unwrap();
    }
    symlink("a", &document.path).unwrap();
    let mut watcher = document.watch().await;
    assert_eq!(next(&mut watcher).await, known(&["a"]));
    symlink("b", document.dir.path().join("link")).unwrap();
    fs::rename(document.dir.path().join("link"), &document.path).unwrap();
    assert_eq!(next(&mut watcher).await, known(&["b"]));
}
