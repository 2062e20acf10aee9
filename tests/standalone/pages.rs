//! The contents of the pages of `docs/`: code that compiles and whose tests pass, settings that are valid.
use std::fs;

use chassis::{
    Chassis,
    registries::{FileConfig, FileRegistry},
    registry::{Membership, Registry},
};

use crate::{
    page::{blocks, files},
    readme::{ONE_AT_A_TIME, made},
};

const CRATE: &str = include_str!("../../docs/crate.md");
const TESTING: &str = include_str!("../../docs/testing.md");
const CONTAINERS: &str = include_str!("../../docs/containers.md");
const REGISTRIES: &str = include_str!("../../docs/registries.md");

/// The first service, extended as the pages describe.
#[test]
fn code_compiles_and_its_tests_pass() {
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let made = made();
    let mut tests = 0;
    for (path, text) in files(CRATE).chain(files(TESTING)) {
        match path {
            "Cargo.toml" => made.append(path, &text),
            _ => made.write(path, &text),
        }
        tests += text.matches("#[tokio::test").count();
    }
    let all: Vec<_> = [CRATE, TESTING].into_iter().flat_map(blocks).collect();
    assert!(all.iter().all(|block| block.file.is_some()), "each block is a file: {all:?}");
    let printed = made.cargo(&["test"]);
    assert_eq!(printed.matches(" ... ok").count(), tests, "{printed}");
}

#[tokio::test]
async fn settings_are_sound() {
    let mut seen = 0;
    for block in [CONTAINERS, REGISTRIES].into_iter().flat_map(blocks).filter(|it| it.language == "yaml") {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("chassis.yaml");
        fs::write(&path, &block.text).unwrap();
        let built =
            Chassis::builder("orders").config_file(path).environment(Default::default()).build().await;
        assert!(built.is_ok(), "{:?}\n{}", built.err(), block.text);
        seen += 1;
    }
    assert_eq!(seen, 3);
}

#[tokio::test]
async fn the_document_of_instances_is_read_whole() {
    let document = files(REGISTRIES).find(|(path, _)| *path == "instances.json").unwrap().1;
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("instances.json");
    fs::write(&path, document).unwrap();
    let registry = FileRegistry::new(FileConfig::at(path));
    let known = async |service: &str| registry.watch(service).await.unwrap().next().await.unwrap();
    let Membership::Known(stock) = known("stock").await else { panic!("stock is not known") };
    let labels: Vec<_> = stock.iter().map(|it| (&*it.id, it.weight, it.labels.len())).collect();
    assert_eq!(labels, [("stock-1", 2, 1), ("stock-2", 1, 0)]);
    assert_eq!(known("resting").await, Membership::Known(vec![]));
    assert_eq!(known("retired").await, Membership::Deleted);
}
