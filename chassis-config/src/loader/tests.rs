use std::collections::BTreeMap;

use chassis_core::config::{Format, SourceError};
use serde::Deserialize;

use super::*;
use crate::TextSource;
use crate::version::Moved;

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    timeout: String,
    retries: u32,
    labels: BTreeMap<String, String>,
}

type Tested = Loader<Settings, u32>;

/// Refuses more than ten retries, and warns of none.
fn loader() -> Tested {
    Loader::new(|s: &Settings| match s.retries {
        0 => Ok((0, vec![Finding::warning("retries", "none at all")])),
        n if n > 10 => Err(vec![Finding::error("retries", "more than 10")]),
        n => Ok((n, Vec::new())),
    })
}

fn text(name: &str, content: &str) -> TextSource {
    TextSource::new(name, Format::Yaml, content)
}

/// The next change as one line.
async fn next(loader: &mut Tested) -> String {
    match loader.next().await {
        Change::Applied(v) => {
            let changes: Vec<_> = v.changes.iter().map(Moved::to_string).collect();
            format!("{}: {}", v.number, changes.join(", "))
        }
        Change::Refused(r) => {
            let problems: Vec<_> = r.problems.iter().map(Problem::without_code).collect();
            format!("refused, {:?} stays: {}", r.running, problems.join(", "))
        }
        Change::Unreadable(u) => format!("unreadable, {:?} stays: {u}", u.running),
        Change::Restored(number) => format!("{number} again"),
        Change::Held(held) => format!("{:?} stays, {} is pinned", held.running, held.pinned),
        Change::Avoided(avoided) => {
            let stuck = if avoided.is_stuck { ", and nothing is there instead" } else { "" };
            format!("{:?} stays: {}{stuck}", avoided.running, avoided.why)
        }
    }
}

async fn is_quiet(loader: &mut Tested) -> bool {
    tokio::time::timeout(Duration::from_secs(3600), loader.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_version_applies_whole_or_not_at_all() {
    let file = text("file", "timeout: 1s\nretries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    assert_eq!(next(&mut loader).await, "1: timeout unset -> 1s (file:1:10), retries unset -> 1 (file:2:10)");
    file.set("timeout: 2s\nretries: 11");
    assert_eq!(next(&mut loader).await, "refused, Some(1) stays: file:2:10 retries: more than 10");
    file.set("timeout: 2s\nretries: [");
    assert_eq!(next(&mut loader).await, "refused, Some(1) stays: file:2:10: this bracket is never closed");
    file.set("timeout: 2s\nretries: 2");
    assert_eq!(next(&mut loader).await, "2: timeout 1s -> 2s (file:1:10), retries 1 -> 2 (file:2:10)");
}

#[tokio::test(start_paused = true)]
async fn what_means_the_same_makes_no_version() {
    let file = text("file", "timeout: 1s\nretries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    next(&mut loader).await;
    file.set("# the same in other words\nretries: 1\ntimeout: '1s'\n");
    assert!(is_quiet(&mut loader).await);
    file.set("retries: 1");
    assert_eq!(next(&mut loader).await, "2: timeout 1s -> unset");
}

#[tokio::test(start_paused = true)]
async fn going_back_to_what_holds_is_told_once() {
    let file = text("file", "retries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    next(&mut loader).await;
    file.set("retires: 1");
    let refused = "refused, Some(1) stays: file:1:1 retires: unknown key; did you mean `retries`?";
    assert_eq!(next(&mut loader).await, refused);
    file.set("retries: 1");
    assert_eq!(next(&mut loader).await, "1 again");
    file.fail("it is gone");
    assert_eq!(next(&mut loader).await, "unreadable, Some(1) stays: C014 file: it is gone");
    assert!(is_quiet(&mut loader).await);
    file.set("retries: 1");
    assert_eq!(next(&mut loader).await, "1 again");
    assert!(is_quiet(&mut loader).await);
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_make_one_version() {
    let (file, center) = (text("file", "retries: 1"), text("center", "timeout: 1s"));
    let mut loader =
        loader().source(Layer::Center, Arc::new(center.clone())).source(Layer::File, Arc::new(file.clone()));
    next(&mut loader).await;
    let push = async {
        for n in 2..=20 {
            file.set(format!("retries: {}", n.min(9)));
            tokio::time::sleep(Duration::from_millis(10)).await;
            center.set(format!("timeout: {n}s"));
        }
    };
    let ((), change) = tokio::join!(push, next(&mut loader));
    assert_eq!(change, "2: retries 1 -> 9 (file:1:10), timeout 1s -> 20s (center:1:10)");
    assert!(is_quiet(&mut loader).await);
}

#[tokio::test(start_paused = true)]
async fn changes_that_never_stop_are_applied_all_the_same() {
    let file = text("file", "retries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    next(&mut loader).await;
    let push = async {
        for n in 0.. {
            file.set(format!("retries: {}", 2 + n % 2));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = push => {}
        change = next(&mut loader) => assert!(change.starts_with("2: retries 1 -> "), "{change}"),
    }
}

#[tokio::test(start_paused = true)]
async fn later_layers_win() {
    let file = text("file", "timeout: 2s\nretries: 2\nlabels: { a: file, b: file }");
    let center = text("center", "retries: 3\nlabels: { b: center }");
    let environment = Environment::of([("CHASSIS_LABELS__A", "environment"), ("CHASSIS_TIMEOT", "3s")]);
    let mut loader = loader()
        .environment(environment)
        .source(Layer::Center, Arc::new(center))
        .source(Layer::File, Arc::new(file))
        .settings(&serde_json::json!({ "timeout": "1s", "labels": { "c": "builder" } }));
    let Change::Applied(version) = loader.next().await else { panic!("it is sound") };
    let settings: Vec<_> =
        version.settings().map(|(path, value, at)| format!("{path}={value} {at}")).collect();
    let expected = [
        "labels.c=builder builder",
        "labels.a=environment environment",
        "labels.b=center center:2:14",
        "timeout=2s file:1:10",
        "retries=3 center:1:10",
    ];
    assert_eq!(settings, expected);
    let warnings: Vec<_> = version.warnings.iter().map(Problem::without_code).collect();
    let hidden = "file:3:14 labels.a: hidden by `CHASSIS_LABELS__A` in the environment: `environment` holds";
    let unknown = "environment timeot: no setting has this name; did you mean `CHASSIS_TIMEOUT`?";
    assert_eq!(warnings, [hidden, unknown]);
}

#[tokio::test(start_paused = true)]
async fn single_settings_win_over_all_others() {
    let file = text("file", "timeout: 2s\nlabels: { a.b: file }");
    let environment = Environment::of([("CHASSIS_TIMEOUT", "3s")]);
    let set = |overrides: Overrides| {
        let file = Arc::new(file.clone());
        loader().environment(environment.clone()).source(Layer::File, file).overrides(overrides)
    };
    let overrides = Overrides::default().set("timeout", "4s").set("labels.a.b", "set").set("retries", "1");
    let Change::Applied(version) = set(overrides).next().await else { panic!("it is sound") };
    let settings: Vec<_> =
        version.settings().map(|(path, value, at)| format!("{path}={value} {at}")).collect();
    assert_eq!(settings, ["timeout=4s --set", "labels.\"a.b\"=set --set", "retries=1 --set"]);
    let Change::Refused(refusal) = set(Overrides::default().set("retires", "1")).next().await else {
        panic!("the key is unknown")
    };
    let unknown = "error[C002]: --set  retires\n      | retires=1\n      | ^^^^^^^ unknown key; did you mean `retries`?";
    assert!(refusal.problems[1].to_string().starts_with(unknown), "{refusal}");
}

/// The messages of a directory's files name the file.
#[tokio::test]
async fn a_directory_is_merged_over_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.yaml"), dir.path().join("2.toml"));
    std::fs::write(&first, "retries: 1\nlabels: { a: first }\n").unwrap();
    std::fs::write(&second, "\n[labels]\nb = 'second'\n").unwrap();
    let file = text("file", "timeout: 2s\nretries: 2\nlabels: { a: file }");
    let mut loader = loader()
        .source(Layer::File, Arc::new(file))
        .directory(Layer::File, DirectorySource::new(dir.path()))
        .source(Layer::File, Arc::new(text("profile", "timeout: 3s")));
    let Change::Applied(version) = loader.next().await else { panic!("it is sound") };
    let settings: Vec<_> =
        version.settings().map(|(path, value, at)| format!("{path}={value} {at}")).collect();
    let (first, second) = (first.display(), second.display());
    let expected = [
        "timeout=3s profile:1:10".to_owned(),
        format!("retries=1 {first}:1:10"),
        format!("labels.a=first {first}:2:14"),
        format!("labels.b=second {second}:3:5"),
    ];
    assert_eq!(settings, expected);
    std::fs::write(dir.path().join("3.yaml"), "retries: 3\nretires: 4").unwrap();
    let Change::Refused(refusal) = loader.next().await else { panic!("a key is unknown") };
    assert_eq!(
        refusal.problems[0].at.as_ref().unwrap().to_string(),
        format!("{}/3.yaml:2:1", dir.path().display())
    );
}

#[tokio::test(start_paused = true)]
async fn a_needed_source_is_waited_for() {
    let (file, center) = (text("file", "retries: 1"), text("center", ""));
    center.fail("no connection");
    let mut loader =
        loader().source(Layer::File, Arc::new(file)).source(Layer::Center, Arc::new(center.clone()));
    let Change::Unreadable(unreadable) = loader.next().await else { panic!("it can't be read") };
    assert!(unreadable.needed);
    assert!(is_quiet(&mut loader).await);
    center.set("retries: 2");
    assert_eq!(next(&mut loader).await, "1: retries unset -> 2 (center:1:10)");
}

#[tokio::test(start_paused = true)]
async fn another_source_is_not() {
    /// Never answers.
    struct Mute;
    #[async_trait::async_trait]
    impl ConfigSource for Mute {
        fn name(&self) -> String {
            "mute".into()
        }
        async fn watch(&self) -> Result<Box<dyn chassis_core::config::ConfigWatcher>, SourceError> {
            std::future::pending().await
        }
    }
    let center = text("center", "");
    center.fail("no connection");
    let started = Instant::now();
    let mut loader = loader()
        .settings(&serde_json::json!({ "retries": 1 }))
        .source_if_there(Layer::Center, Arc::new(center.clone()))
        .source_if_there(Layer::Center, Arc::new(Mute));
    assert_eq!(next(&mut loader).await, "unreadable, None stays: C014 center: no connection");
    assert_eq!(next(&mut loader).await, "1: retries unset -> 1 (builder)");
    assert_eq!(started.elapsed(), PATIENCE);
    center.set("retries: 2");
    assert_eq!(next(&mut loader).await, "2: retries 1 -> 2 (center:1:10)");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_question_loses_nothing() {
    let file = text("file", "retries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    next(&mut loader).await;
    file.set("retries: 2");
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(20), loader.next()).await.is_err());
    }
    assert_eq!(next(&mut loader).await, "2: retries 1 -> 2 (file:1:10)");
}

#[tokio::test(start_paused = true)]
async fn with_no_source_there_is_one_version() {
    let mut loader = loader();
    let Change::Applied(version) = loader.next().await else { panic!("it is sound") };
    let warnings: Vec<_> = version.warnings.iter().map(Problem::to_string).collect();
    assert_eq!((version.number, warnings), (1, vec!["warning[C007]: retries\n   none at all".to_string()]));
    assert!(is_quiet(&mut loader).await);
}

/// A source with a script: each item is a text, or `!` for a panic; at the end it never answers. Each watcher
/// takes the next list.
struct Scripted(std::sync::Mutex<VecDeque<Vec<&'static str>>>);
struct ScriptedWatcher(VecDeque<&'static str>);

#[async_trait::async_trait]
impl ConfigSource for Scripted {
    fn name(&self) -> String {
        "scripted".into()
    }
    async fn watch(&self) -> Result<Box<dyn chassis_core::config::ConfigWatcher>, SourceError> {
        let script = self.0.lock().unwrap().pop_front();
        let script = script.unwrap_or_else(|| panic!("no more of it"));
        Ok(Box::new(ScriptedWatcher(script.into())))
    }
}

#[async_trait::async_trait]
impl chassis_core::config::ConfigWatcher for ScriptedWatcher {
    async fn next(&mut self) -> Result<chassis_core::config::Text, SourceError> {
        match self.0.pop_front() {
            Some("!") => panic!("out of cheese"),
            Some(content) => {
                let (content, format) = (content.to_owned(), Format::Yaml);
                Ok(chassis_core::config::Text { content, format, origin: "scripted".into(), revision: None })
            }
            None => std::future::pending().await,
        }
    }
}

impl Drop for ScriptedWatcher {
    fn drop(&mut self) {
        assert!(self.0.pop_front() != Some("drop"), "not gone quietly");
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_panics_is_opened_anew() {
    let script = [vec!["retries: 1", "!"], vec!["!", "drop"], vec!["retries: 2"]];
    let source = Scripted(std::sync::Mutex::new(script.into()));
    let mut loader = loader().source(Layer::File, Arc::new(source));
    assert_eq!(next(&mut loader).await, "1: retries unset -> 1 (scripted:1:10)");
    let panicked = "unreadable, Some(1) stays: C014 scripted: it panicked: ";
    assert_eq!(next(&mut loader).await, format!("{panicked}out of cheese"));
    assert_eq!(next(&mut loader).await, format!("{panicked}not gone quietly"));
    assert_eq!(next(&mut loader).await, "2: retries 1 -> 2 (scripted:1:10)");
    assert!(is_quiet(&mut loader).await);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_silent_from_the_start_is_given_up() {
    let source = Scripted(std::sync::Mutex::new([vec![], vec!["retries: 2"]].into()));
    let mut loader = loader().source(Layer::File, Arc::new(source));
    let started = Instant::now();
    assert_eq!(
        next(&mut loader).await,
        "unreadable, None stays: C014 scripted: it has not answered within 30s"
    );
    assert_eq!(started.elapsed().as_secs(), 30);
    assert_eq!(next(&mut loader).await, "1: retries unset -> 2 (scripted:1:10)");
    assert!(is_quiet(&mut loader).await, "once it has answered it may be silent");
}

/// Regression: each text of a burst was parsed, also those that were never applied.
#[tokio::test(start_paused = true)]
async fn a_burst_makes_few_versions_and_the_last_text_wins() {
    let file = text("file", "retries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    next(&mut loader).await;
    let push = async {
        for n in 0..1_000 {
            file.set(format!("retries: 1\ntimeout: {n}s"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::pin!(push);
    let (begun, mut applied) = (Instant::now(), Vec::new());
    while begun.elapsed() < Duration::from_secs(10) {
        tokio::select! {
            _ = &mut push => {}
            change = next(&mut loader) => applied.push((begun.elapsed(), change)),
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
    }
    assert!(applied.len() <= 4, "{applied:?}");
    let (at, last) = applied.last().expect("there is one");
    assert!(last.ends_with("-> 999s (file:2:10)") && *at <= Duration::from_secs(2), "{applied:?}");
    assert_eq!(loader.control().history().len(), applied.len() + 1);
}

/// One look shows the errors of all texts. Those that a text which can't be parsed could mend are not reported.
#[tokio::test(start_paused = true)]
async fn a_text_that_is_broken_hides_no_problem_of_others() {
    let texts = [
        text("a", "timeout: [1s]\nretries: 11\nlabels: { x: 1 }"),
        text("b", "retries: ["),
        text("c", "retires: 1\nlabels: { y: [] }"),
        text("d", "labels:\n\tx: 1"),
    ];
    let mut loader = loader();
    for text in &texts {
        loader = loader.source(Layer::File, Arc::new(text.clone()));
    }
    let variables = [("CHASSIS_RETRIES", "many"), ("CHASSIS_TIMOUT", "1s")];
    let mut loader = loader.environment(Environment::of(variables));
    let all = [
        "b:1:10: this bracket is never closed",
        "d:2:1: a tab can't indent YAML; use spaces",
        "a:1:10 timeout: a text belongs here, not a list",
        "a:2:10 retries: hidden by `CHASSIS_RETRIES` in the environment: `many` holds",
        "environment retries: a whole number belongs here, not `many`",
        "c:2:14 labels.y: a text belongs here, not a list",
        "c:1:1 retires: unknown key; did you mean `retries`?",
    ];
    let refused = next(&mut loader).await;
    let found = refused.strip_prefix("refused, None stays: ").expect("it is refused");
    all.iter().for_each(|problem| assert!(found.contains(problem), "{problem} in {found}"));
    assert_eq!(found.len(), all.join(", ").len(), "no problem twice, and no others: {found}");
}

/// A text that is missing may choose another kind for a table, complete it, and change what it is checked with.
#[tokio::test(start_paused = true)]
async fn a_text_that_is_missing_causes_no_errors_in_others() {
    #[derive(Default, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    #[allow(dead_code, reason = "only its errors are of interest")]
    struct Tables {
        registry: Option<Registry>,
        rules: Vec<Rule>,
    }
    #[derive(Deserialize)]
    #[serde(tag = "kind", deny_unknown_fields)]
    #[allow(dead_code, reason = "only its errors are of interest")]
    enum Registry {
        #[serde(rename = "file")]
        File { path: String },
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its errors are of interest")]
    struct Rule {
        name: String,
    }
    let problems = async |upper: &str, lower: &str| {
        let check = |_: &Tables| Err(vec![Finding::error("rules", "they do not fit")]);
        let loader: Loader<Tables, ()> = Loader::new(check);
        let (lower, upper) = (text("lower", lower), text("upper", upper));
        let loader =
            loader.source(Layer::File, Arc::new(lower)).source(Layer::File, Arc::new(upper)).partial();
        let mut loader = loader;
        let Change::Refused(refused) = loader.next().await else { panic!("it makes no version") };
        refused.problems.iter().map(Problem::in_a_line).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(problems("", "registry: { kind: file, path: a }").await, "");
    assert_eq!(problems("", "registry: { path: a }").await, "");
    assert_eq!(problems("", "registry: { kind: file }").await, "");
    assert_eq!(problems("registry: { addresses: a }", "registry: { kind: file }").await, "");
    let own = "C002 upper:1:25 registry.pth: unknown key; did you mean `path`?";
    assert_eq!(problems("registry: { kind: file, pth: a }", "registry: { path: a }").await, own);
    assert_eq!(problems("", "rules: [ {} ]").await, "C004 lower:1:10 rules[0]: missing `name`");
}

/// A center's text that was cut off does not remove all settings; a file, and a center without settings, may be blank.
#[tokio::test(start_paused = true)]
async fn a_blank_text_of_a_center_removes_no_settings() {
    let (file, center) = (text("file", "retries: 1"), text("center", " \n"));
    let mut loader =
        loader().source(Layer::File, Arc::new(file.clone())).source(Layer::Center, Arc::new(center.clone()));
    next(&mut loader).await;
    center.set("retries: 2");
    assert_eq!(next(&mut loader).await, "2: retries 1 -> 2 (center:1:10)");
    for blank in ["", " \n\t\n", "# retries: 2\n---\n"] {
        center.set(blank);
        let refused = "refused, Some(2) stays: center:1:1: the text is blank, and had settings before; `{}` removes \
                       all of them";
        assert_eq!(next(&mut loader).await, refused);
    }
    center.set("{}");
    assert_eq!(next(&mut loader).await, "3: retries 2 -> 1 (file:1:10)");
    center.set("");
    file.set("");
    assert_eq!(next(&mut loader).await, "4: retries 1 -> unset");
}

#[tokio::test(start_paused = true)]
async fn the_history_has_accepted_and_refused_versions() {
    let (file, center) = (text("file", "retries: 1"), text("center", ""));
    let mut loader =
        loader().source(Layer::File, Arc::new(file.clone())).source(Layer::Center, Arc::new(center.clone()));
    let control = loader.control();
    next(&mut loader).await;
    center.set("retries: 11");
    next(&mut loader).await;
    file.set("retries: 1\nlabels: { token: hunter2 }");
    center.set("");
    next(&mut loader).await;
    file.set("retries: [");
    next(&mut loader).await;
    let shown: Vec<_> = control.history().iter().map(|record| format!("{record:?}")).collect();
    assert_eq!(shown[0], "version 1 applied, from file, center: retries unset -> 1 (file:1:10)");
    assert!(shown[1].starts_with(
        "refused, from center: retries 1 -> 11 (center:1:10)\nerror[C007]: center:1:10  retries"
    ));
    assert_eq!(shown[2], "version 2 applied, from file, center: labels unset -> { token: *** } (file:2:9)");
    assert!(shown[3].starts_with("refused, from file\nerror[C001]: file:1:10"), "{}", shown[3]);
    // Many that are refused displace no version that was accepted.
    for n in 11..50 {
        file.set(format!("retries: {n}"));
        next(&mut loader).await;
    }
    let versions: Vec<_> = control.history().iter().filter_map(|record| record.version()).collect();
    assert_eq!((versions, control.history().len()), (vec![1, 2], 2 + Control::KEPT));
    for n in 0..30 {
        file.set(format!("timeout: {n}s\nretries: 1"));
        next(&mut loader).await;
    }
    let versions: Vec<_> = control.history().iter().filter_map(|record| record.version()).collect();
    assert_eq!(versions, (13..=32).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn a_version_that_was_rolled_back_to_stays_until_it_is_released() {
    let file = text("file", "retries: 1");
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    let control = loader.control();
    next(&mut loader).await;
    file.set("retries: 2");
    next(&mut loader).await;
    let (back, change) = tokio::join!(control.rollback(1), next(&mut loader));
    assert_eq!((back, change), (Ok(3), "3: retries 2 -> 1 (file:1:10)".to_owned()));
    file.set("retries: 4");
    assert_eq!(next(&mut loader).await, "Some(3) stays, 1 is pinned");
    file.set("retries: 44");
    let refused = "refused, Some(3) stays: file:1:10 retries: more than 10";
    assert_eq!(next(&mut loader).await, refused);
    file.set("retries: 4");
    assert_eq!(next(&mut loader).await, "Some(3) stays, 1 is pinned");
    let ((unknown, released), change) = {
        let asked = async { (control.rollback(9).await, control.release().await) };
        tokio::join!(asked, next(&mut loader))
    };
    assert_eq!(unknown, Err(ControlError::Unknown { version: 9, known: vec![1, 2, 3] }));
    assert_eq!((released, change), (Ok(Some(1)), "4: retries 1 -> 4 (file:1:10)".to_owned()));
    let shown: Vec<_> = control.history().iter().map(ToString::to_string).collect();
    assert_eq!(shown[2], "version 3 applied, which is version 1 again: retries 2 -> 1 (file:1:10)");
    assert!(shown[3].starts_with("held, because an older version is pinned, from file: retries 1 -> 4"));
    drop(loader);
    assert_eq!(control.rollback(1).await, Err(ControlError::Gone));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing() {
    let (file, center) = (text("file", "retries: 1\ntimeout: 1s"), text("center", "retries: 2"));
    let mut loader = loader().source(Layer::File, Arc::new(file)).source(Layer::Center, Arc::new(center));
    let control = loader.control();
    next(&mut loader).await;
    let quiet = tokio::spawn(async move { is_quiet(&mut loader).await });
    let trial = async |origin: &str, content: &str| {
        let (content, origin) = (content.to_owned(), origin.to_owned());
        let trial = control.trial(chassis_core::config::Text {
            content,
            origin,
            format: Format::Yaml,
            revision: None,
        });
        let trial = trial.await.expect("the loader is there");
        let changes: Vec<_> = trial.changes.iter().map(Moved::to_string).collect();
        let problems: Vec<_> = trial.problems.iter().map(Problem::without_code).collect();
        (trial.replaces, changes.join(", "), problems.join(", "))
    };
    let of = |name: &str| Some(name.to_owned());
    let none = String::new;
    assert_eq!(trial("file", "retries: 3\n").await, (of("file"), "timeout 1s -> unset".into(), none()));
    assert_eq!(trial("new", "retries: 3").await, (None, "retries 2 -> 3 (new:1:10)".into(), none()));
    let more = ("retries 2 -> 11 (center:1:10)".into(), "center:1:10 retries: more than 10".into());
    assert_eq!(trial("center", "retries: 11").await, (of("center"), more.0, more.1));
    let broken = (of("center"), none(), "center:1:10: this bracket is never closed".into());
    assert_eq!(trial("center", "retries: [").await, broken);
    assert!(trial("center", " ").await.2.contains("center:1:1: the text is blank"));
    assert_eq!((control.history().len(), quiet.await.unwrap()), (1, true));
}

#[tokio::test]
async fn a_file_that_a_value_is_read_from_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, new) = (dir.path().join("secret"), dir.path().join("new"));
    std::fs::write(&secret, "hunter2\n").unwrap();
    let reference = format!("${{file:{}}}", secret.display());
    let content = format!("retries: 1\nlabels: {{ a: \"{reference}\" }}\ntimeout: ${{env:WAIT:-1s}}");
    let file = text("file", &content);
    let mut loader = loader().source(Layer::File, Arc::new(file.clone()));
    let control = loader.control();
    let bound = Duration::from_secs(30);
    let Change::Applied(version) = loader.next().await else { panic!("it is sound") };
    assert_eq!((&*version.document.labels["a"], &*version.document.timeout), ("hunter2", "1s"));
    std::fs::write(&new, "hunter3").unwrap();
    std::fs::rename(&new, &secret).unwrap();
    let change = tokio::time::timeout(bound, loader.next()).await.expect("a change is noticed");
    let Change::Applied(version) = change else { panic!("it is sound") };
    assert_eq!((version.number, &*version.document.labels["a"]), (2, "hunter3"));
    // The secret is nowhere to be read.
    let settings: Vec<_> = version.settings().collect();
    let shown = format!("{settings:?} {:?} {:?}", version.changes, control.history());
    assert!(shown.contains("labels.a") && shown.contains(&reference) && !shown.contains("hunter"), "{shown}");
    std::fs::remove_file(&secret).unwrap();
    let change = tokio::time::timeout(bound, loader.next()).await.expect("a change is noticed");
    let Change::Refused(refusal) = change else { panic!("the file is gone") };
    assert!(refusal.problems[0].message.contains("No such file"), "{refusal}");
    // Of a past version the files are read anew.
    std::fs::write(&secret, "hunter4").unwrap();
    let (back, change) = tokio::join!(control.rollback(1), loader.next());
    let Change::Applied(version) = change else { panic!("it is sound") };
    assert_eq!((back, &*version.document.labels["a"]), (Ok(3), "hunter4"));
}

/// Whoever may write a center's text must not read what this process can read, unless that is allowed.
#[tokio::test]
async fn a_center_refers_to_files_and_variables_only_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let (secret, new) = (dir.path().join("secret"), dir.path().join("new"));
    std::fs::write(&secret, "hunter2").unwrap();
    let reference = format!("${{file:{}}}", secret.display());
    let environment = || Environment::of([("NAME", "stock")]);
    let center = text("center", "retries: 1");
    let options = SourceOptions::of(Layer::Center);
    assert_eq!((options.needed, options.has_references), (true, false));
    let mut closed = loader().environment(environment()).source(Layer::Center, Arc::new(center.clone()));
    next(&mut closed).await;
    for reference in [&*reference, "${env:NAME}", "${env:NONE:-x}", "${file:/nonesuch:-x}"] {
        center.set(format!("retries: 1\nlabels: {{ a: \"b-{reference}\" }}"));
        let refused = next(&mut closed).await;
        assert!(
            refused.contains("center:2:14 labels.a: a config center may not refer to files"),
            "{refused}"
        );
        assert!(refused.contains("`references: true`") && !refused.contains("hunter"), "{refused}");
    }
    // The characters themselves are no reference, and neither is what a file states below the center.
    center.set("retries: 1\nlabels: { a: \"$${env:NAME}\" }");
    let file = text("file", &format!("labels: {{ b: \"{reference}\" }}"));
    let mut both = loader()
        .environment(environment())
        .source(Layer::File, Arc::new(file))
        .source(Layer::Center, Arc::new(center.clone()));
    let Change::Applied(version) = both.next().await else { panic!("it is sound") };
    let labels: Vec<_> = version.document.labels.values().map(String::as_str).collect();
    assert_eq!(labels, ["${env:NAME}", "hunter2"]);

    let options = SourceOptions { has_references: true, ..options };
    let mut open =
        loader().environment(environment()).source_with(Layer::Center, Arc::new(center.clone()), options);
    center.set(format!("retries: 1\nlabels: {{ a: \"{reference}\", b: \"${{env:NAME}}\" }}"));
    let Change::Applied(version) = open.next().await else { panic!("it is sound") };
    let labels: Vec<_> = version.document.labels.values().map(String::as_str).collect();
    assert_eq!(labels, ["hunter2", "stock"]);
    // A file that the center names is followed.
    std::fs::write(&new, "hunter3").unwrap();
    std::fs::rename(&new, &secret).unwrap();
    let bound = Duration::from_secs(30);
    let change = tokio::time::timeout(bound, open.next()).await.expect("a change is noticed");
    let Change::Applied(version) = change else { panic!("it is sound") };
    assert_eq!((version.number, &*version.document.labels["a"]), (2, "hunter3"));
}

#[tokio::test(start_paused = true)]
async fn a_value_that_is_not_shown_is_not_in_an_error_either() {
    struct Plain;
    impl Decrypt for Plain {
        fn decrypt(&self, text: &str) -> Result<String, chassis_core::BoxError> {
            Ok(format!("hunter{text}"))
        }
    }
    let file = text("file", "retries: ${plain:2}");
    let mut loader = loader().decrypt("plain", Arc::new(Plain)).source(Layer::File, Arc::new(file.clone()));
    let shown = next(&mut loader).await;
    assert_eq!(shown, "refused, None stays: file:1:10 retries: this is no value for it (it is not shown)");
    assert!(!format!("{:?}", loader.control().history()).contains("hunter"));
}

/// Refuses the hashes in its list.
#[derive(Default)]
struct Refusing(std::sync::Mutex<Vec<String>>);

impl Gate for Refusing {
    fn admit(&self, candidate: &Candidate<'_>, is_first: bool) -> Result<(), String> {
        let is_refused = self.0.lock().unwrap().iter().any(|refused| refused == candidate.hash);
        if is_refused { Err(format!("it is on the list, first: {is_first}")) } else { Ok(()) }
    }
}

impl Refusing {
    fn set(&self, hashes: impl IntoIterator<Item = String>) {
        *self.0.lock().unwrap() = hashes.into_iter().collect();
    }
}

/// The hash of the settings in `content`.
fn hash_of(content: &str) -> String {
    let text = Text { content: content.into(), format: Format::Yaml, origin: "file".into(), revision: None };
    hash(&crate::parse(&text, Layer::File).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_version_that_the_gate_refuses_waits_and_is_reported_once() {
    let (file, gate) = (text("file", "retries: 1"), Arc::new(Refusing::default()));
    gate.set([hash_of("retries: 2"), hash_of("retries: 3")]);
    let mut loader = loader().source(Layer::File, Arc::new(file.clone())).gate(gate.clone(), Vec::new());
    let control = loader.control();
    next(&mut loader).await;
    file.set("retries: 2");
    assert_eq!(next(&mut loader).await, "Some(1) stays: it is on the list, first: false");
    file.set("# the same\nretries: 2");
    control.reconsider();
    assert!(is_quiet(&mut loader).await);
    file.set("retries: 1");
    assert!(is_quiet(&mut loader).await);
    file.set("retries: 2");
    assert_eq!(next(&mut loader).await, "Some(1) stays: it is on the list, first: false");
    gate.set([hash_of("retries: 3")]);
    assert!(is_quiet(&mut loader).await, "no source has changed");
    control.reconsider();
    assert_eq!(next(&mut loader).await, "2: retries 1 -> 2 (file:1:10)");
    file.set("retries: 3");
    next(&mut loader).await;
    file.set("retries: 4");
    assert_eq!(next(&mut loader).await, "3: retries 2 -> 4 (file:1:10)");
    let outcomes: Vec<_> = control.history().iter().map(|record| record.version()).collect();
    assert_eq!(outcomes, [Some(1), None, None, Some(2), None, Some(3)]);
    let shown = control.history()[1].to_string();
    let expected =
        "not applied, because it is on the list, first: false, from file: retries 1 -> 2 (file:1:10)";
    assert_eq!(shown, expected);
}

#[tokio::test(start_paused = true)]
async fn a_loader_begins_with_the_texts_of_an_earlier_time() {
    let (file, center) = (text("file", "retries: 2"), text("center", "timeout: 1s"));
    let gate = Arc::new(Refusing::default());
    let with = |instead: Vec<(String, Vec<Text>)>| {
        let loader = loader().source(Layer::File, Arc::new(file.clone()));
        loader.source(Layer::Center, Arc::new(center.clone())).gate(gate.clone(), instead)
    };
    let mut first = with(Vec::new());
    let Change::Applied(version) = first.next().await else { panic!("it is sound") };
    let earlier = version.sources.unwrap();
    assert_eq!((earlier.len(), &*earlier[0].0, &*earlier[1].1[0].content), (2, "file", "timeout: 1s"));

    center.set("timeout: 9s");
    gate.set([hash_of("timeout: 9s\nretries: 2")]);
    let mut loader = with(earlier.clone());
    assert_eq!(next(&mut loader).await, "None stays: it is on the list, first: true");
    let Change::Applied(version) = loader.next().await else { panic!("there are other texts") };
    assert_eq!((version.document.timeout.as_str(), version.sources, version.texts.len()), ("1s", None, 0));
    assert!(is_quiet(&mut loader).await);
    center.set("timeout: 2s");
    assert_eq!(next(&mut loader).await, "2: timeout 1s -> 2s (center:1:10)");

    // Without other texts, or with texts that are refused too, there is no version.
    gate.set([hash_of("timeout: 2s\nretries: 2"), version.hash]);
    for instead in [Vec::new(), earlier] {
        let mut loader = with(instead);
        let stuck = "None stays: it is on the list, first: true, and nothing is there instead";
        assert_eq!(next(&mut loader).await, stuck);
        assert!(is_quiet(&mut loader).await);
    }
}

#[tokio::test(start_paused = true)]
async fn a_harmful_version_is_reverted_without_a_pin() {
    let (file, gate) = (text("file", "retries: 1"), Arc::new(Refusing::default()));
    let mut loader = loader().source(Layer::File, Arc::new(file.clone())).gate(gate.clone(), Vec::new());
    let control = loader.control();
    next(&mut loader).await;
    let revert = async |loader: &mut Tested, content: &str| {
        let hash = hash_of(content);
        let (control, gate) = (control.clone(), gate.clone());
        tokio::spawn(async move {
            gate.set([hash.clone()]);
            control.revert(&hash).await
        });
        next(loader).await
    };
    file.set("retries: 2");
    next(&mut loader).await;
    assert_eq!(revert(&mut loader, "retries: 2").await, "3: retries 2 -> 1 (file:1:10)");
    assert_eq!(next(&mut loader).await, "Some(3) stays: it is on the list, first: false");
    let back_to = |record: &Arc<Record>| match record.outcome {
        Outcome::Applied { back_to, .. } => back_to,
        _ => None,
    };
    assert_eq!(back_to(&control.history()[2]), Some(1));
    file.set("retries: 3");
    assert_eq!(next(&mut loader).await, "4: retries 1 -> 3 (file:1:10)");

    // Another version is in force, or this one is pinned: nothing changes.
    for (pinned, harmful) in [(false, "retries: 2"), (true, "retries: 1")] {
        if pinned {
            let control = control.clone();
            tokio::spawn(async move { control.rollback(1).await });
            assert_eq!(next(&mut loader).await, "5: retries 3 -> 1 (file:1:10)");
        }
        let (control, hash) = (control.clone(), hash_of(harmful));
        let reverted = tokio::spawn(async move { control.revert(&hash).await });
        let _ = tokio::time::timeout(Duration::from_secs(60), loader.next()).await;
        assert_eq!(reverted.await.unwrap(), None, "{harmful}");
    }
}

/// Also when many versions followed it, and not to one of those.
#[tokio::test(start_paused = true)]
async fn a_revert_goes_back_to_the_version_that_was_proven() {
    let (file, gate) = (text("file", "timeout: 1s"), Arc::new(Refusing::default()));
    let mut loader = loader().source(Layer::File, Arc::new(file.clone())).gate(gate.clone(), Vec::new());
    let control = loader.control();
    next(&mut loader).await;
    control.prove(&hash_of("timeout: 1s"));
    for seconds in 2..=30 {
        file.set(format!("timeout: {seconds}s"));
        next(&mut loader).await;
    }
    control.prove(&hash_of("timeout: 2s")); // the history does not have it any more
    let versions: Vec<_> = control.history().iter().filter_map(|record| record.version()).collect();
    assert_eq!(versions, [1].into_iter().chain(11..=30).collect::<Vec<_>>());
    let harmful = hash_of("timeout: 30s");
    let reverting = control.clone();
    let reverted = tokio::spawn(async move {
        gate.set([harmful.clone()]);
        reverting.revert(&harmful).await
    });
    assert_eq!(next(&mut loader).await, "31: timeout 30s -> 1s (file:1:10)");
    assert_eq!(reverted.await.unwrap(), Some(31));
    // A later one that is proven replaces it.
    file.set("timeout: 31s");
    next(&mut loader).await;
    file.set("timeout: 32s");
    next(&mut loader).await;
    file.set("timeout: 33s");
    next(&mut loader).await;
    control.prove(&hash_of("timeout: 32s"));
    let harmful = hash_of("timeout: 33s");
    tokio::spawn(async move { control.revert(&harmful).await });
    let reverted = next(&mut loader).await;
    assert!(reverted.ends_with("timeout 33s -> 32s (file:1:10)"), "{reverted}");
}
