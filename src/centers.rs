//! Config centers that the settings name: read before the settings are, and waited for at the start.
use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use chassis_config::{
    Change, Code, Loader, Refusal, Renamed, is_blank, parse,
    tree::{Layer, Node},
};
use chassis_core::{
    BoxError, Event, Events, Random,
    config::{ConfigSource, ConfigWatcher, SourceError, Text},
    tasks::backoff,
    units::Span,
};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::{
    Document, StartError,
    base::Base,
    document::Reader,
    kinds::{Center, Keep, keep},
    last_good::{Kept, LastGood},
};

/// A source whose first text is waited for.
struct AtStart {
    source: Arc<dyn ConfigSource>,
    /// For the message.
    path: String,
    wait: Duration,
    last_good: Option<LastGood>,
    events: Events,
}

struct AtStartWatcher {
    source: Arc<dyn ConfigSource>,
    path: String,
    watcher: Option<Box<dyn ConfigWatcher>>,
    /// Until when it is waited for; `None` once it has answered.
    until: Option<Instant>,
    wait: Duration,
    /// The text that was kept, to start with if the center does not answer.
    kept: Option<Kept>,
    /// The kept text sets something, and the center has had none but blank ones since: those are not used, as a process that
    /// runs does not use them.
    had_settings: bool,
    events: Events,
}

/// How long a start waits for a config center.
const REQUIRED: Duration = Duration::from_secs(10);
/// How long it waits for one that it goes on without: less than the loader does.
const OPTIONAL: Duration = Duration::from_secs(4);
/// How long it waits where a last good text is on disk. The first call may have to wait for the registry too.
const WITH_LAST_GOOD: Duration = Duration::from_secs(1);
/// The longest pause before a center that can't be read is asked again.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// The centers that the settings name, in their order. `base` has everything that can name them.
///
/// # Errors
/// A problem in the centers, or in a text that may name them; with it come all other problems that the texts of `base`
/// have by themselves.
pub(crate) async fn named(reader: &Arc<Reader>, base: &Base) -> Result<(Vec<Center>, Keep), StartError> {
    let of_centers = reader.clone();
    let read = move |tree: &Node| of_centers.read_centers(tree);
    let check = |centers: &Vec<Center>| Ok((centers.clone(), Vec::new()));
    let mut loader = base.under(Loader::reading(read, check)).renamed(renames(reader));
    loop {
        match loader.next().await {
            Change::Applied(version) => return Ok((version.value, keep(&version.tree))),
            Change::Refused(refusal) => {
                return Err(StartError::Settings(with_others(refusal, reader, base).await.to_string()));
            }
            Change::Unreadable(unreadable) if unreadable.needed => {
                return Err(StartError::Settings(unreadable.to_string()));
            }
            Change::Unreadable(_) | Change::Restored(_) | Change::Held(_) | Change::Avoided(_) => {}
        }
    }
}

/// The keys that have new names.
pub(crate) fn renames(reader: &Arc<Reader>) -> impl Fn(&Node) -> Vec<Renamed> + Send + Sync + 'static {
    let reader = reader.clone();
    move |tree| reader.renamed(tree)
}

/// `refusal` with the other problems of the texts that it is about: they are to be corrected together.
async fn with_others(mut refusal: Refusal, reader: &Arc<Reader>, base: &Base) -> Refusal {
    let whole = reader.clone();
    let read = move |tree: &Node| whole.read(tree);
    let loader = base.under(Loader::reading(read, |_: &Document| Ok(((), Vec::new()))));
    let mut loader = loader.renamed(renames(reader)).partial();
    loop {
        match loader.next().await {
            Change::Refused(all) => {
                refusal.problems.retain(|problem| !all.problems.contains(problem));
                refusal.problems.splice(..0, all.problems);
                return refusal;
            }
            Change::Unreadable(unreadable) if !unreadable.needed => {}
            _ => return refusal,
        }
    }
}

/// The source of a center, which a start waits for.
///
/// # Errors
/// It can't be made of its settings.
pub(crate) fn source(
    center: &Center,
    last_good: Option<&LastGood>,
    events: &Events,
) -> Result<Arc<dyn ConfigSource>, BoxError> {
    let wait = if center.is_required { REQUIRED } else { OPTIONAL };
    let (source, path) = (center.chosen.make()?, center.path.clone());
    Ok(Arc::new(AtStart { source, path, wait, last_good: last_good.cloned(), events: events.clone() }))
}

#[async_trait]
impl ConfigSource for AtStart {
    fn name(&self) -> String {
        self.source.name()
    }

    async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
        let AtStart { source, path, wait, last_good, events } = self;
        let kept = last_good.as_ref().map(|last_good| last_good.read(&source.name())).transpose();
        let kept = kept.unwrap_or_else(|why| {
            tracing::warn!(target: "chassis", "last good settings of {path}: {why}");
            None
        });
        let kept = kept.flatten();
        let wait = if kept.is_some() { WITH_LAST_GOOD.min(*wait) } else { *wait };
        let until = Some(Instant::now() + wait);
        let had_settings = kept.as_ref().is_some_and(|kept| has_settings(&kept.text));
        let (source, path, events) = (source.clone(), path.clone(), events.clone());
        Ok(Box::new(AtStartWatcher { source, path, watcher: None, until, wait, kept, had_settings, events }))
    }

    fn never_blocks(&self) -> bool {
        self.source.never_blocks()
    }
}

#[async_trait]
impl ConfigWatcher for AtStartWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        let Some(until) = self.until else { return self.ask().await };
        let (mut failures, mut last) = (0, None);
        let random = Random::from_os();
        loop {
            match timeout_at(until, self.ask()).await {
                Ok(Ok(text)) => {
                    self.until = None;
                    return Ok(text);
                }
                Ok(Err(error)) => last = Some(error),
                Err(_) => {}
            }
            if Instant::now() >= until {
                self.until = None;
                let (path, wait) = (&self.path, self.wait);
                let last = last.map_or_else(|| "it has not answered".to_owned(), |error| error.to_string());
                if let Some(Kept { text, age }) = self.kept.take() {
                    let (origin, age) = (&text.origin, Span(Duration::from_secs(age.as_secs())));
                    let error = format!(
                        "{} {path}: not readable within {wait:?}: {last}; started with the last good text on disk, \
                         {origin}, {age} old",
                        Code::Unreadable
                    );
                    self.events.emit(Event::ConfigUnreadable { in_force: 0, error });
                    return Ok(text);
                }
                return Err(SourceError::new(format!("{path}: not readable within {wait:?}: {last}")));
            }
            failures += 1;
            sleep_until(until.min(Instant::now() + backoff(failures, LONGEST_WAIT, &random))).await;
        }
    }
}

impl AtStartWatcher {
    async fn ask(&mut self) -> Result<Text, SourceError> {
        let watcher = match &mut self.watcher {
            Some(watcher) => watcher,
            none => none.insert(self.source.watch().await?),
        };
        let text = watcher.next().await?;
        if self.had_settings && is_blank(&text.content, text.format) {
            let origin = &text.origin;
            let why = "the text is blank, and the last good one had settings; `{}` removes all of them";
            return Err(SourceError::new(format!("{origin}: {why}")));
        }
        self.had_settings = false;
        Ok(text)
    }
}

/// Whether the text sets something. One that can't be parsed does so for all that is known.
fn has_settings(text: &Text) -> bool {
    match parse(text, Layer::Center) {
        Ok(tree) => !tree.entries().is_empty(),
        Err(_) => !is_blank(&text.content, text.format),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails until it has been asked so many times; then it has nothing new.
    struct Late(u32);

    #[async_trait]
    impl ConfigSource for Late {
        fn name(&self) -> String {
            "late".into()
        }
        async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
            Ok(Box::new(Late(self.0)))
        }
    }

    #[async_trait]
    impl ConfigWatcher for Late {
        async fn next(&mut self) -> Result<Text, SourceError> {
            self.0 = self.0.saturating_sub(1);
            if self.0 > 0 {
                return Err(SourceError::new("no connection"));
            }
            let (content, format) = ("b: 1".to_owned(), chassis_core::config::Format::Yaml);
            Ok(Text { content, format, origin: "late".into(), revision: None })
        }
    }

    async fn first(tries: u32) -> (Result<Text, SourceError>, Duration) {
        let begun = Instant::now();
        let (source, path) = (Arc::new(Late(tries)), "config.centers[0]".to_owned());
        let (last_good, events) = (None, Events::new());
        let at_start = AtStart { source, path, wait: REQUIRED, last_good, events };
        (at_start.watch().await.unwrap().next().await, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_center_is_waited_for_within_a_bound() {
        let (read, took) = first(5).await;
        assert!(read.is_ok() && took < Duration::from_secs(3), "{read:?} {took:?}");
        let (read, took) = first(1_000).await;
        let error = read.unwrap_err().to_string();
        assert_eq!(error, "config.centers[0]: not readable within 10s: no connection");
        assert!(took <= REQUIRED + Duration::from_millis(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_center_that_is_down_is_replaced_by_its_last_good_text() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        let text = |content: &str| {
            let (content, format) = (content.to_owned(), chassis_core::config::Format::Yaml);
            Text { content, format, origin: "late@7".into(), revision: Some("7".into()) }
        };
        last_good.keep("late", &text("a: 1")).unwrap();
        let events = Events::new();
        let at_start = |tries| AtStart {
            source: Arc::new(Late(tries)),
            path: "config.centers[0]".to_owned(),
            wait: REQUIRED,
            last_good: Some(last_good.clone()),
            events: events.clone(),
        };
        let begun = Instant::now();
        let mut watcher = at_start(10).watch().await.unwrap();
        assert_eq!(watcher.next().await.unwrap(), text("a: 1"));
        assert!(begun.elapsed() <= Duration::from_millis(1_010), "{:?}", begun.elapsed());
        let past = events.past();
        let said = past.last().map(|(_, event)| event.to_string()).unwrap_or_default();
        assert!(said.contains("last good text on disk, late@7, 0s old"), "{said}");
        // It goes on with the center once that answers.
        let mut answer = watcher.next().await;
        while answer.is_err() {
            answer = watcher.next().await;
        }
        assert_eq!(answer.unwrap().origin, "late");
        // A center that answers needs no text of the past.
        let mut watcher = at_start(1).watch().await.unwrap();
        assert_eq!(watcher.next().await.unwrap().content, "b: 1");
    }

    /// Has these texts, one after the other, and then nothing new.
    #[derive(Clone)]
    struct Texts(Vec<&'static str>);

    #[async_trait]
    impl ConfigSource for Texts {
        fn name(&self) -> String {
            "texts".into()
        }
        async fn watch(&self) -> Result<Box<dyn ConfigWatcher>, SourceError> {
            Ok(Box::new(self.clone()))
        }
    }

    #[async_trait]
    impl ConfigWatcher for Texts {
        async fn next(&mut self) -> Result<Text, SourceError> {
            if self.0.is_empty() {
                return std::future::pending().await;
            }
            Ok(yaml(self.0.remove(0)))
        }
    }

    fn yaml(content: &str) -> Text {
        let (content, format) = (content.to_owned(), chassis_core::config::Format::Yaml);
        Text { content, format, origin: "texts".into(), revision: None }
    }

    /// A text that was cut off while no process ran is not used by those that start: they would do without all settings,
    /// and those that run would not.
    #[tokio::test(start_paused = true)]
    async fn a_blank_text_does_not_replace_a_last_good_one_with_settings() {
        let dir = tempfile::tempdir().unwrap();
        let last_good = LastGood::new(dir.path());
        let events = Events::new();
        let start = async |kept: &str, texts: &[&'static str]| {
            last_good.keep("texts", &yaml(kept)).unwrap();
            let at_start = AtStart {
                source: Arc::new(Texts(texts.to_vec())),
                path: "config.centers[0]".to_owned(),
                wait: REQUIRED,
                last_good: Some(last_good.clone()),
                events: events.clone(),
            };
            let mut watcher = at_start.watch().await.unwrap();
            let first = watcher.next().await.unwrap().content;
            (first, watcher)
        };
        for blank in ["", " \n", "# only\n---\n# comments\n"] {
            let (first, mut watcher) = start("a: 1", &[blank, blank, "a: 2", ""]).await;
            // A second one that comes in time is no better; one with settings is used.
            assert_eq!(first, "a: 2", "{blank:?}");
            // From then on the loader judges.
            assert_eq!(watcher.next().await.unwrap().content, "");

            let (first, mut watcher) = start("a: 1", &[blank]).await;
            assert_eq!(first, "a: 1", "{blank:?}");
            let past = events.past();
            let said = past.last().map(|(_, event)| event.to_string()).unwrap_or_default();
            let why = "not readable within 1s: texts: the text is blank, and the last good one had settings";
            assert!(said.contains(why) && said.contains("started with the last good text on disk"), "{said}");
            let more = tokio::time::timeout(Duration::from_secs(60), watcher.next()).await;
            assert!(more.is_err(), "the blank text is not used later");

            for kept in ["{}", "", "# nothing"] {
                assert_eq!(start(kept, &[blank]).await.0, blank, "{kept:?} had no settings");
            }
        }
        assert_eq!(start("a: 1", &["{}"]).await.0, "{}");
    }
}
