//! Bad settings through a config center: none is put in force, each refusal explains itself.
use std::collections::BTreeSet;

use chassis::{
    Chassis, Event,
    config::Format,
    document::TextSource,
    testing::{BadSettings, Mesh},
};

struct Center {
    app: Chassis,
    source: TextSource,
}

impl Center {
    /// Pushes a text: the problems, or `None` if it was put in force.
    async fn push(&self, yaml: &str) -> Option<Vec<String>> {
        let mut events = self.app.runtime().events().subscribe();
        self.source.set(yaml);
        loop {
            match &*events.recv().await.unwrap() {
                Event::ConfigApplied { .. } => return None,
                Event::ConfigRefused { problems, .. } => return Some(problems.clone()),
                _ => {}
            }
        }
    }

    /// The version in force, its hash, and a timeout that it sets.
    fn in_force(&self) -> (u64, String, u128) {
        let policies = self.app.runtime().policies().get();
        let timeout = policies.outbound(&"stock".into(), "a.B/C").timeout().unwrap_or_default();
        (self.app.config().version(), self.app.config().hash(), timeout.as_millis())
    }
}

/// A thousand texts of every class, between sound ones: none is accepted, the version in force never moves, and each
/// refusal has a code, a position, and the reason or what is allowed.
#[tokio::test(start_paused = true)]
async fn no_bad_settings_are_put_in_force() {
    let sound = |millis: usize| format!("outbound: {{ defaults: {{ timeout: {millis}ms }} }}");
    let source = TextSource::new("center", Format::Yaml, sound(1));
    let app = Mesh::new().builder("orders").config(source.clone()).build().await.unwrap();
    let center = Center { app, source };
    let (mut wrong, mut classes, mut expected) = (Vec::new(), BTreeSet::new(), center.in_force());
    for (at, bad) in BadSettings::seeded(7).take(1_000).enumerate() {
        if at % 250 == 0 {
            assert_eq!(center.push(&sound(at + 2)).await, None);
            let before = std::mem::replace(&mut expected, center.in_force());
            assert_eq!((expected.0, expected.2), (before.0 + 1, at as u128 + 2));
        }
        match center.push(&bad.yaml).await {
            Some(problems) => wrong.extend(bad.check("center", &problems).err()),
            None => wrong.push(format!("{} is accepted:\n{}", bad.class, bad.yaml)),
        }
        if center.in_force() != expected {
            wrong.push(format!("{} moved the version in force:\n{}", bad.class, bad.yaml));
            expected = center.in_force();
        }
        classes.insert(bad.class);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(classes.len() == BadSettings::CLASSES && classes.len() >= 40, "{}", classes.len());
    // Texts above the bound are refused before they are parsed.
    let long = format!("# {}\n{}", "x".repeat(4 << 20), sound(9));
    let why = center.push(&long).await.expect("it is refused").join("");
    assert!(why.starts_with("error[C013]: center\n") && why.contains("the limit is 4194304"), "{why}");
    assert_eq!((center.in_force(), center.push(&sound(10)).await), (expected, None));
    assert_eq!(center.in_force().2, 10);
}
