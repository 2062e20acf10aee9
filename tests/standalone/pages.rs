//! The contents of the pages of `docs/`: code that compiles and whose tests pass, settings that are valid.
use std::{fs, sync::Arc};

use chassis::{
    Chassis, Document, Invocation, Next, Section, Stage,
    config::{Format, Text},
    document::tree::Layer,
    from_fn, kind,
    layer::balance::{Candidates, Picker, PickerFactory},
    registries::{FileConfig, FileRegistry, MemoryRegistry},
    registry::{Membership, Registry},
};
use chassis_config::parse;
use serde::Deserialize;

use crate::{
    page::{blocks, files},
    readme::{ONE_AT_A_TIME, made},
};

const CRATE: &str = include_str!("../../docs/crate.md");
const TESTING: &str = include_str!("../../docs/testing.md");
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

/// The YAML of every page. Centers and registries of other systems are read, and not started: a start would reach for
/// them.
#[tokio::test]
async fn settings_are_sound() {
    let mut seen = Vec::new();
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/docs");
    for page in fs::read_dir(docs).unwrap().map(|page| page.unwrap().path()) {
        let name = page.file_name().unwrap().to_str().unwrap();
        let text: &'static str = fs::read_to_string(&page).unwrap().leak();
        for block in blocks(text).into_iter().filter(|block| block.language == "yaml") {
            let wrong = match name {
                "consul.md" => cfg!(feature = "consul").then(|| read(&block.text)).flatten(),
                "config-centers.md" => cfg!(feature = "http-center").then(|| read(&block.text)).flatten(),
                "servicecomb.md" => cfg!(feature = "servicecomb").then(|| read(&block.text)).flatten(),
                "ttl.md" => cfg!(feature = "ttl").then(|| read(&block.text)).flatten(),
                "kubernetes.md" => cfg!(feature = "kubernetes").then(|| read(&block.text)).flatten(),
                "tls.md" => cfg!(all(feature = "etcd", feature = "tls")).then(|| read(&block.text)).flatten(),
                "etcd.md" => cfg!(feature = "etcd").then(|| read(&block.text)).flatten(),
                "dns.md" => cfg!(feature = "dns").then(|| read(&block.text)).flatten(),
                _ => build(&block.text).await,
            };
            assert_eq!(wrong, None, "{name}\n{}", block.text);
            seen.push(name.to_owned());
        }
    }
    for page in [
        "admin.md",
        "config-centers.md",
        "containers.md",
        "registries.md",
        "etcd.md",
        "consul.md",
        "dns.md",
        "servicecomb.md",
        "ttl.md",
        "kubernetes.md",
        "tls.md",
        "extending.md",
    ] {
        assert!(seen.iter().any(|seen| seen == page), "{page}: no settings were found");
    }
}

/// Builds a service with these settings and with all that `extending.md` registers; returns the error.
async fn build(settings: &str) -> Option<String> {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("chassis.yaml");
    fs::write(&path, settings).unwrap();
    let team = kind::from_fn("team", |TeamConfig { team }: &TeamConfig| {
        Ok(Arc::new(MemoryRegistry::shared(team)) as Arc<dyn Registry>)
    });
    let near = kind::from_fn("near", |NearConfig { zone }: &NearConfig| {
        Ok(Arc::new(Near(zone.clone())) as Arc<dyn PickerFactory>)
    });
    let layer = |call: Invocation, next: Next| next.run(call);
    let builder = Chassis::builder("orders").config_file(path).environment(Default::default());
    let builder = builder.kind(team).kind(near).layer(Stage::Call, "audit", from_fn(layer));
    let builder = builder.section(Section::<Shop>::new("shop")).section(Section::<Audit>::new("x-audit"));
    builder.build().await.err().map(|error| error.to_string())
}

/// Reads these settings with the kinds of the build; returns the problems.
fn read(settings: &str) -> Option<String> {
    let (content, origin) = (settings.to_owned(), "settings".to_owned());
    let text = Text { content, format: Format::Yaml, origin, revision: None };
    let problems = match parse(&text, Layer::File) {
        Ok(tree) => Document::read(&tree).1,
        Err(problem) => vec![*problem],
    };
    (!problems.is_empty()).then(|| format!("{problems:?}"))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TeamConfig {
    team: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NearConfig {
    zone: String,
}

#[derive(Clone)]
struct Near(String);

impl Picker for Near {
    fn pick(&self, candidates: &Candidates<'_>) -> usize {
        let near = |i: &usize| candidates.nodes()[*i].instance().zone == self.0;
        (0..candidates.nodes().len()).find(near).unwrap_or(0)
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    discount: u8,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Audit {
    operations: Vec<String>,
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
