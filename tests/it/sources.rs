//! Sources of settings, and their precedence.
use std::path::Path;

use chassis::{
    Chassis, ChassisBuilder, Section, StartError,
    document::{Environment, TextSource},
};
use serde::Deserialize;

/// Each key is set by one more source than the previous one.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Shop {
    program: String,
    file: String,
    directory: String,
    profile: String,
    second: String,
    environment: String,
    set: String,
}

const KEYS: [&str; 7] = ["program", "file", "directory", "profile", "second", "environment", "set"];

/// Sets each key from `first` on to `name`.
fn text(first: usize, name: &str) -> String {
    let keys = KEYS[first..].iter().map(|key| format!("{key}: {name}")).collect::<Vec<_>>();
    format!("shop: {{ {} }}\n", keys.join(", "))
}

fn write(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn builder(dir: &Path, variables: &[(&str, &str)]) -> ChassisBuilder {
    let program = KEYS.iter().map(|key| ((*key).to_owned(), "program".into())).collect();
    let program = serde_json::Value::Object(program);
    Chassis::builder("shop")
        .settings(serde_json::json!({ "registry": { "kind": "memory" }, "shop": program }))
        .config_file(dir.join("shop.yaml"))
        .environment(Environment::of(variables.iter().copied()))
        .section(Section::<Shop>::new("shop"))
}

async fn shop(builder: ChassisBuilder) -> [String; 7] {
    let app = builder.build().await.expect("the settings are sound");
    let shop = app.settings::<Shop>("shop").unwrap().get();
    [&shop.program, &shop.file, &shop.directory, &shop.profile, &shop.second, &shop.environment, &shop.set]
        .map(Clone::clone)
}

#[tokio::test]
async fn a_center_of_the_program_refers_to_variables_only_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let text = "shop: { file: \"${env:NAME}\" }";
    let center = || TextSource::new("center", chassis::config::Format::Yaml, text);
    let builder = || builder(dir.path(), &[("NAME", "stock")]).without_file();
    let why = refused(builder().config(center())).await;
    assert!(why.starts_with("error[C008]: center:1:15  shop.file\n") && !why.contains("stock"), "{why}");
    assert_eq!(shop(builder().config_with_references(center())).await[1], "stock");
}

async fn refused(builder: ChassisBuilder) -> String {
    match builder.build().await {
        Err(StartError::Settings(why)) => why,
        other => panic!("the settings are wrong: {:?}", other.err()),
    }
}

#[tokio::test]
async fn later_sources_win() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "shop.yaml", &text(1, "file"));
    write(dir.path(), "shop.d/1.yaml", &text(2, "replaced"));
    write(dir.path(), "shop.d/2.yaml", &text(2, "directory"));
    write(dir.path(), "shop.prod.yaml", &text(3, "profile"));
    write(dir.path(), "shop.eu.yaml", &text(4, "second"));
    write(dir.path(), "shop.other.yaml", "shop: nonsense");
    let environment: Vec<_> = KEYS[5..]
        .iter()
        .map(|key| (format!("CHASSIS_SHOP__{}", key.to_uppercase()), "environment"))
        .collect();
    let mut variables: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    variables.push(("CHASSIS_PROFILE", "prod,eu"));
    let set = |builder: ChassisBuilder| builder.set("shop.set", "replaced").set("shop.set", "set");
    assert_eq!(shop(set(builder(dir.path(), &variables))).await, KEYS);

    // The environment's profile replaces that of the program.
    let by_default = builder(dir.path(), &[]).profile("prod");
    assert_eq!(shop(by_default).await[4], "profile");
    let replaced = builder(dir.path(), &[("CHASSIS_PROFILE", "")]).profile("prod");
    assert_eq!(shop(replaced).await[4], "directory");
}

/// A misspelt profile must not start with settings without a profile.
#[tokio::test]
async fn a_profile_without_a_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "shop.yaml", "");
    write(dir.path(), "shop.prod.yaml", "");
    let why = refused(builder(dir.path(), &[("CHASSIS_PROFILE", "prd")])).await;
    assert!(
        why.contains("shop.prd.yaml: there is no such file") && why.contains("shop.prod.yaml`?"),
        "{why}"
    );
    let why = refused(builder(dir.path(), &[("CHASSIS_PROFILE", "../prod")])).await;
    assert!(why.contains("CHASSIS_PROFILE: `../prod` is no profile"), "{why}");
}

#[tokio::test]
async fn a_single_setting_that_is_wrong_is_quoted() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "shop.yaml", "");
    let why = refused(builder(dir.path(), &[]).set("outbound.defaults.retry.atempts", "3")).await;
    assert!(why.contains("--set  outbound.defaults.retry.atempts"), "{why}");
    assert!(
        why.contains("      |                         ^^^^^^^ unknown key; did you mean `attempts`?"),
        "{why}"
    );
}

/// A start shows all problems at once: of the texts that name config centers, and of all others beside one that is broken.
#[tokio::test]
async fn one_look_shows_the_problems_of_all_files() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "shop.yaml", "outbound: { defaults: { timeout: 300 } }\nconfig: { centers: [ {} ] }\n");
    write(dir.path(), "shop.d/1.yaml", "inbound: { timeout: [\n");
    write(
        dir.path(),
        "shop.d/2.yaml",
        "shop: { filee: a }\noutbound: { services: { a: { balance: later } } }\n",
    );
    write(dir.path(), "shop.prod.yaml", "- no map\n");
    let why = refused(builder(dir.path(), &[("CHASSIS_PROFILE", "prod")])).await;
    let errors = [
        ("C001", "shop.d/1.yaml:1:21"),
        ("C001", "shop.prod.yaml:1:1"),
        ("C004", "shop.yaml:2:22"),
        ("C006", "shop.yaml:1:34"),
        ("C002", "shop.d/2.yaml:1:9"),
    ];
    for (code, place) in errors {
        let all =
            why.lines().filter(|line| line.starts_with(&format!("error[{code}]")) && line.contains(place));
        assert_eq!(all.count(), 1, "{code} {place} in\n{why}");
    }
    assert!(why.ends_with("5 errors, nothing is running yet"), "{why}");

    // Without the broken texts the others are one document, and the picker is looked for.
    write(dir.path(), "shop.yaml", "config: { centers: [ {} ] }\nshutdown: { delay: 1 }\n");
    write(dir.path(), "shop.d/1.yaml", "");
    write(dir.path(), "shop.prod.yaml", "shop: { profile: [] }");
    let why = refused(builder(dir.path(), &[("CHASSIS_PROFILE", "prod")])).await;
    let found: Vec<_> = why.lines().filter_map(|line| line.strip_prefix("error[")).collect();
    let codes: Vec<_> = found.iter().map(|line| &line[..4]).collect();
    assert_eq!(codes, ["C002", "C005", "C004", "C006"], "{why}");
}

/// Old names of keys, of a section and of a kind, in every source: the later source wins, whatever name it uses.
#[tokio::test]
async fn old_names_are_read_in_every_source() {
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        path: String,
    }
    struct TableKind;
    impl chassis::Kind for TableKind {
        type Config = Table;
        type Made = std::sync::Arc<dyn chassis::registry::Registry>;
        fn name(&self) -> &str {
            "table"
        }
        fn renamed(&self) -> &[(&str, &str)] {
            &[("file", "path")]
        }
        fn make(&self, table: &Table) -> Result<Self::Made, chassis::BoxError> {
            assert_eq!(table.path, "a");
            Ok(std::sync::Arc::new(chassis::registries::MemoryRegistry::new()))
        }
    }
    let dir = tempfile::tempdir().unwrap();
    write(
        dir.path(),
        "shop.yaml",
        "registry: { kind: table, file: a }\nshop: { written: file, directory: old }\n",
    );
    write(dir.path(), "shop.d/1.yaml", "shop: { file: directory }\n");
    let with = |variables: &[(&str, &str)]| {
        Chassis::builder("shop")
            .config_file(dir.path().join("shop.yaml"))
            .environment(Environment::of(variables.iter().copied()))
            .kind(TableKind)
            .section(Section::<Shop>::new("shop").renamed("written", "file").renamed("varied", "environment"))
    };
    let app = with(&[("CHASSIS_SHOP__VARIED", "variable")]).set("shop.varied", "set").build().await.unwrap();
    let shop = app.settings::<Shop>("shop").unwrap().get();
    assert_eq!((&*shop.file, &*shop.directory, &*shop.environment), ("directory", "old", "set"));
    // The settings are known by their new names.
    let origin = |path: &str| app.config().origin(path).map(|origin| origin.to_string());
    assert_eq!(origin("shop.environment").as_deref(), Some("--set"));
    assert_eq!(origin("shop.varied"), None);
    let why = refused(with(&[("CHASSIS_SHOP__VARIED", "a"), ("CHASSIS_SHOP__ENVIRONMENT", "b")])).await;
    assert!(why.contains("`varied` is the former name of `environment`, and both are here"), "{why}");
}
