use chassis_core::config::{Format, Text};
use chassis_core::kind;
use serde::Deserialize;

use super::*;
use crate::document::{parse, tree::Layer};

fn yaml(content: &str) -> Node {
    let text = Text { content: content.into(), format: Format::Yaml, origin: "c".into(), revision: None };
    parse(&text, Layer::File).expect("the test's YAML is sound")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seed {
    seed: u64,
}

#[derive(Clone)]
struct Seeded(u64);

impl chassis_core::layer::balance::Picker for Seeded {
    fn pick(&self, _: &chassis_core::layer::balance::Candidates<'_>) -> usize {
        self.0 as usize
    }
}

fn seeded() -> Kinds {
    let mut kinds = Kinds::default();
    Port::add(
        &mut kinds,
        kind::from_fn("seeded", |seed: &Seed| match seed.seed {
            13 => Err("13 brings bad luck".into()),
            seed => Ok(Arc::new(Seeded(seed)) as Arc<dyn PickerFactory>),
        }),
    );
    kinds
}

#[track_caller]
fn pickers(kinds: &Kinds, content: &str, expected: &[&str]) -> Pickers {
    let mut problems = Vec::new();
    let pickers = kinds.read_pickers(&yaml(content), &mut problems);
    assert_eq!(problems.iter().map(Problem::in_a_line).collect::<Vec<_>>(), expected);
    pickers
}

#[test]
fn what_a_build_is_without_is_named_with_its_feature() {
    let mut problems = Vec::new();
    let kinds = Kinds::default();
    kinds.read_registry(&yaml("registry: { kind: local, lease: 5s }"), &mut problems);
    let left_out = "this build of chassis has no `local`: the cargo feature `local` adds it";
    assert_eq!(problems[0].in_a_line(), format!("C003 c:1:19 registry.kind: {left_out}"));

    let mut problems = vec![Problem::error(Path::of(["server"]), None, "unknown key")];
    kinds.explain_left_out(&mut problems);
    let left_out = "this build of chassis has no `server`: the cargo feature `http` adds it";
    assert_eq!(problems[0].in_a_line(), format!("C006 server: {left_out}"));
}

#[test]
fn what_a_table_of_a_kind_holds_is_read_at_its_place() {
    let kinds = seeded();
    pickers(
        &kinds,
        "pickers: { a: { kind: seeded, seed: x } }",
        &["C005 c:1:37 pickers.a.seed: a whole number belongs here, not `x`"],
    );
    pickers(
        &kinds,
        "pickers: { a: { kind: seeded, sed: 1 } }",
        &["C002 c:1:31 pickers.a.sed: unknown key; did you mean `seed`?"],
    );
    pickers(
        &kinds,
        "pickers: { a: { kind: seded } }",
        &["C003 c:1:23 pickers.a.kind: `seded` is not known here; did you mean `seeded`?"],
    );
    pickers(
        &kinds,
        "pickers: { a: { kind: seeded, seed: 13 } }",
        &["C007 c:1:12 pickers.a: 13 brings bad luck"],
    );
    pickers(
        &kinds,
        "pickers: { a: seeded }",
        &["C005 c:1:15 pickers.a: a map with a `kind` belongs here, not `seeded`"],
    );
    pickers(
        &kinds,
        "pickers: { a: { kind: [seeded] } }",
        &["C005 c:1:23 pickers.a.kind: the name of a kind belongs here, not a list"],
    );
    pickers(
        &kinds,
        "pickers: [ a ]",
        &["C005 c:1:10 pickers: a map of pickers by name belongs here, not a list"],
    );
    pickers(
        &kinds,
        "pickers: { p2c: { kind: seeded, seed: 1 } }",
        &["C006 c:1:12 pickers.p2c: `p2c` is built in; a picker of one's own has another name"],
    );
}

#[test]
fn the_same_settings_have_the_same_picker() {
    let kinds = seeded();
    let read = |content| pickers(&kinds, content, &[]);
    let first = read("pickers: { a: { kind: seeded, seed: 1 } }");
    assert_eq!(first.0.len(), 1, "one that needs settings is not there without");
    assert_eq!(first, read("pickers: { a: { seed: 1, kind: 'seeded' } } # the same"));
    assert_ne!(first, read("pickers: { a: { kind: seeded, seed: 2 } }"));
    assert_eq!(first, read("pickers: { a: { kind: seeded, seed: 1 } }"), "it was in use meanwhile");
    drop(first);
    assert_eq!(kinds.made.lock().unwrap().iter().filter(|(.., picker)| picker.strong_count() > 0).count(), 0);
}

#[test]
fn sections_that_clash_are_noted() {
    let mut kinds = Kinds::default();
    kinds.section(Section::<u8>::new("x-a"));
    kinds.section(Section::<u16>::new("x-a"));
    kinds.section(Section::<u32>::new("outbound"));
    assert_eq!(
        kinds.conflicts,
        [
            "two sections are called `x-a`",
            "`outbound` is a table of chassis' own; a section has another name",
        ]
    );
    let mut kinds = Kinds::default();
    kinds.section(Section::<Vec<u8>>::new("x-a"));
    kinds.section(Section::<Vec<u8>>::new("x-b"));
    let mut problems = Vec::new();
    kinds.read_sections(&yaml(""), &mut problems);
    assert!(problems[0].message.contains("another section has the same type"), "{problems:?}");
}

#[test]
fn config_centers_are_read_at_their_place() {
    use chassis_core::config::{ConfigSource, ConfigWatcher, SourceError};

    struct Nothing;
    #[async_trait::async_trait]
    impl ConfigSource for Nothing {
        fn name(&self) -> String {
            "nothing".into()
        }
        async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
            Err(SourceError::new("nothing is here"))
        }
    }

    let mut kinds = Kinds::default();
    Port::add(&mut kinds, kind::from_fn("seeded", |_: &Seed| Ok(Arc::new(Nothing) as Arc<dyn ConfigSource>)));
    let read = |content| {
        let mut problems = Vec::new();
        let centers = kinds.read_centers(&yaml(content), &mut problems);
        let required =
            centers.iter().map(|center| (center.path.clone(), center.is_required, center.has_references));
        (required.collect::<Vec<_>>(), problems.iter().map(Problem::in_a_line).collect::<Vec<_>>())
    };
    let good = "config: { centers: [ { kind: seeded, seed: 1 }, { kind: seeded, seed: 2, required: false, references: true } ] }";
    let both = [("config.centers[0]".to_owned(), true, false), ("config.centers[1]".to_owned(), false, true)];
    assert_eq!(read(good), (both.to_vec(), Vec::new()));
    for (content, problem) in [
        ("config: 1", "C005 c:1:9 config: a map with `centers` belongs here, not `1`"),
        ("config: { centres: [] }", "C002 c:1:11 config.centres: unknown key; did you mean `centers`?"),
        (
            "config: { centers: {} }",
            "C005 c:1:20 config.centers: a list of config centers belongs here, not a map",
        ),
        ("config: { centers: [ { seed: 1 } ] }", "C004 c:1:22 config.centers[0]: missing `kind`"),
        (
            "config: { centers: [ { kind: seeded, sed: 1 } ] }",
            "C002 c:1:38 config.centers[0].sed: unknown key; did you mean `seed`?",
        ),
        (
            "config: { centers: [ { kind: seeded, seed: 1, required: 'no' } ] }",
            "C005 c:1:57 config.centers[0].required: `true` or `false` belongs here, not `no`",
        ),
        (
            "config: { centers: [ { kind: seeded, seed: 1, references: 1 } ] }",
            "C005 c:1:59 config.centers[0].references: `true` or `false` belongs here, not `1`",
        ),
        (
            "config: { centers: [ { kind: etcd } ] }",
            "C003 c:1:30 config.centers[0].kind: this build of chassis has no `etcd`: the cargo feature `etcd` adds it",
        ),
    ] {
        assert_eq!(read(content), (Vec::new(), vec![problem.to_owned()]), "{content}");
    }
}

/// JSON has `off` in quotes only.
#[test]
fn no_last_good_texts_are_kept_where_it_is_off() {
    for off in ["off", "\"off\"", "false"] {
        assert!(matches!(keep(&yaml(&format!("config: {{ last_good: {off} }}"))), Keep::Off), "{off}");
    }
    let kept = keep(&yaml("config: { last_good: ./off }"));
    assert!(matches!(kept, Keep::In(directory) if directory == "./off"));
    assert!(matches!(keep(&yaml("{}")), Keep::ByDefault));
    assert!(matches!(keep(&yaml("config: { last_good: [off] }")), Keep::Wrong(_)));
}
