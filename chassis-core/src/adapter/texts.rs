//! The texts of a config center: the state for its watchers, and one document of many sections.
use std::path::Path;

use async_trait::async_trait;
use tokio::sync::watch;

use crate::{
    plugin::config_source::{ConfigWatcher, Format, SourceError, Text},
    tasks::Tasks,
};

/// Receives the texts that the follower of a config center reads.
pub struct TextFeed(watch::Sender<State>);

/// A section of settings, as a center holds it apart from others.
#[derive(Clone, Debug)]
pub struct SectionText<'a> {
    /// Its place and revision, for messages: `etcd:/orders/outbound@12`.
    pub origin: String,
    /// Its name. An ending `.yaml`, `.yml` or `.json` is left out.
    pub name: &'a [u8],
    /// YAML or JSON; or why it can't be read.
    pub content: Result<&'a str, &'a str>,
}

/// The text, or why there is none.
type Answer = Result<Text, String>;

#[derive(Clone, Default)]
struct State {
    /// `None`: not known yet.
    answer: Option<Answer>,
    trouble: Option<String>,
}

/// Watches a center until it is dropped.
struct TextWatcher {
    state: watch::Receiver<State>,
    /// The last answer.
    last: Option<Answer>,
    /// The task of the follower ends with it.
    _over: watch::Sender<()>,
}

/// The most bytes of a document of sections.
const MAX_TEXT: usize = 8 << 20;

/// A watcher, and a follower that runs among `tasks` until the watcher is dropped.
pub fn watch_texts<F>(tasks: &Tasks, follow: impl FnOnce(TextFeed) -> F) -> Box<dyn ConfigWatcher>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, state) = watch::channel(State::default());
    let (over, mut is_over) = watch::channel(());
    let following = follow(TextFeed(sender));
    tasks.spawn(async move {
        tokio::select! {
            _ = is_over.changed() => {}
            () = following => {}
        }
    });
    Box::new(TextWatcher { state, last: None, _over: over })
}

/// One document of all `sections`, each with a line that says where it is from. `{}` without any: a blank text would be
/// taken for one that was cut off.
///
/// # Errors
/// A section that can't be part of a document, with its origin.
pub fn sections<'a>(place: &str, all: impl IntoIterator<Item = SectionText<'a>>) -> Result<String, String> {
    let mut content = String::new();
    for SectionText { origin, name, content: section } in all {
        let name =
            std::str::from_utf8(name).map_err(|_| format!("{origin}: the name of a section is no UTF-8"))?;
        let name = [".yaml", ".yml", ".json"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || !name.bytes().all(is_word) {
            return Err(format!("{origin}: `{}` can't be the name of a section", name.escape_debug()));
        }
        let section = section.map_err(|why| format!("{origin}: {why}"))?;
        // A second document would begin here, and another section's keys at the margin.
        let is_mark =
            |line: &str| line.starts_with("---") || line.starts_with("...") || line.starts_with('%');
        if section.lines().any(is_mark) {
            return Err(format!("{origin}: a section is one document of YAML, without marks"));
        }
        // It ends a line of YAML, and none of the lines below: what follows it would stand at the margin.
        if section.lines().any(|line| line.contains('\r')) {
            return Err(format!("{origin}: a carriage return stands without a line feed"));
        }
        content.push_str(&format!("# {origin}\n{name}:\n"));
        for line in section.lines() {
            content.push_str(&format!("  {line}\n"));
        }
    }
    if content.len() > MAX_TEXT {
        let bytes = content.len();
        return Err(format!("{place}: all sections have {bytes} bytes, {MAX_TEXT} are allowed"));
    }
    if content.is_empty() {
        content.push_str("{}\n");
    }
    Ok(content)
}

/// The format of a document, by what its key ends in: `.json`, `.toml`, and YAML otherwise.
pub fn format_of(key: &str) -> Format {
    match Path::new(key).extension().and_then(|end| end.to_str()) {
        Some("json") => Format::Json,
        Some("toml") => Format::Toml,
        _ => Format::Yaml,
    }
}

// === impl TextFeed ===

impl TextFeed {
    /// Shows the watcher the text, or why there is none.
    pub fn show(&self, answer: Result<Text, String>) {
        self.0.send_modify(|state| *state = State { answer: Some(answer), trouble: None });
    }

    /// Shows the watcher that the server can't be asked, and why.
    pub fn fail(&self, why: String) {
        self.0.send_modify(|state| state.trouble = Some(why));
    }
}

// === impl TextWatcher ===

#[async_trait]
impl ConfigWatcher for TextWatcher {
    async fn next(&mut self) -> Result<Text, SourceError> {
        loop {
            let State { answer, trouble } = self.state.borrow_and_update().clone();
            let news = match trouble {
                Some(why) => Some(Err(why)),
                None => answer,
            };
            if let Some(news) = news.filter(|news| !is_known(self.last.as_ref(), news)) {
                self.last = Some(news.clone());
                return news.map_err(SourceError::new);
            }
            if self.state.changed().await.is_err() {
                return Err(SourceError::new("the process ends"));
            }
        }
    }
}

/// A text that was put again as it was is no news.
fn is_known(last: Option<&Answer>, news: &Answer) -> bool {
    match (last, news) {
        (Some(Ok(last)), Ok(news)) => (&last.content, last.format) == (&news.content, news.format),
        (last, news) => last == Some(news),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(content: &str) -> Result<String, String> {
        let origin = "etcd:/a@1".to_owned();
        sections("etcd:/*", [SectionText { origin, name: b"outbound.yaml", content: Ok(content) }])
    }

    #[test]
    fn a_section_stays_below_its_name() {
        assert_eq!(one("a: 1\r\nb: 2\n").as_deref(), Ok("# etcd:/a@1\noutbound:\n  a: 1\n  b: 2\n"));
        for outside in ["a: 1\rinbound: {}", "a: 1\n---\nb: 2", "%YAML 1.2", "...", "a: 1\r"] {
            let why = one(outside).expect_err(outside);
            assert!(why.starts_with("etcd:/a@1: "), "{why}");
        }
    }
}
