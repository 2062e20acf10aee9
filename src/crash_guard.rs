//! Recognises settings that crash the process right after they were applied, and keeps them from being applied at boot.
//!
//! Three files in the directory of `config.last_good`:
//!
//! | file | contents |
//! | --- | --- |
//! | `settings-trying` | the hash of settings that were just applied, and how often they crashed the process; gone once the process has lived for [`SURVIVAL`], or stops in order |
//! | `settings-proven` | the texts of all sources, before `${…}`, of the last settings that survived |
//! | `settings-avoided` | hashes that are not applied any more, with the reasons; also those that a roll-out found harmful |
//!
//! A process that ends without a stop counts as crashed by its settings only if it panicked in that time: the panic hook
//! appends a line to `settings-trying`. Nothing can be learned from within about a process that was killed (out of memory,
//! `kill -9`, loss of power), that aborted or called `exit`: such an end does not count.
use std::{
    fs,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use chassis_core::{config::Text, files};
use serde::{Deserialize, Serialize};

use crate::last_good::{LastGood, decode, encode};

/// Remembers what settings did to this process, on disk.
pub(crate) struct CrashGuard {
    disk: LastGood,
    /// How long settings must be in force until they are kept as proven.
    proven_after: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    proven: Option<Proven>,
    /// The settings that the former process tried last, and how often they crashed it.
    suspect: Option<Tried>,
    avoided: Vec<Avoided>,
    /// The hash of the settings in force, while their file is there.
    trying: Option<String>,
}

/// Settings that were just applied.
#[derive(Serialize, Deserialize)]
struct Tried {
    hash: String,
    crashes: u32,
    /// The process that tried them has ended, and its end was reported and counted. Since then others were tried.
    #[serde(default)]
    is_counted: bool,
}

/// Settings that survived.
struct Proven {
    hash: String,
    sources: Vec<(String, Vec<Text>)>,
}

/// Settings that are not applied any more.
#[derive(Clone, Serialize, Deserialize)]
struct Avoided {
    hash: String,
    why: String,
}

/// Held by the service; dropping it without a stop is an end in order, unless there was a panic.
pub(crate) struct Watched(pub(crate) Arc<CrashGuard>);

/// An end within this time after settings were applied is attributed to them.
pub(crate) const SURVIVAL: Duration = Duration::from_secs(10);
/// So many crashes, one after the other, and the settings are not applied at boot.
const MOST_CRASHES: u32 = 2;
/// The number of hashes that are remembered.
const MOST_AVOIDED: usize = 20;
/// The most bytes of a file.
const MOST: u64 = 64 << 20;

const TRYING: &str = "settings-trying";
const PROVEN: &str = "settings-proven";
const AVOIDED: &str = "settings-avoided";

/// Files that get a line when this process panics.
static TRIED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

// === impl CrashGuard ===

impl CrashGuard {
    /// Reads what former processes left in the directory. Files that can't be read are reported, and count as missing.
    pub(crate) fn open(disk: LastGood, proven_after: Duration) -> Self {
        hook();
        let mut state = State {
            proven: read(&disk, PROVEN).and_then(|text| Proven::decode(&text)),
            avoided: read(&disk, AVOIDED)
                .and_then(|text| serde_json::from_str(&text).ok())
                .unwrap_or_default(),
            ..State::default()
        };
        if let Some(text) = read(&disk, TRYING)
            && let Some((head, panics)) = text.split_once('\n')
            && let Ok(mut tried) = serde_json::from_str::<Tried>(head)
        {
            let hash = &tried.hash;
            if tried.is_counted {
                // Reported by an earlier start.
            } else if panics.is_empty() {
                tracing::warn!(target: "chassis", hash, "the process ended soon after these settings were applied, and did \
                    not panic: this does not count against them");
            } else {
                tried.crashes += 1;
                let crashes = tried.crashes;
                tracing::warn!(target: "chassis", hash, crashes, "the process crashed soon after these settings were \
                    applied: {}", panics.trim());
            }
            if tried.crashes >= MOST_CRASHES {
                let why =
                    format!("it crashed the process {} times right after it was applied", tried.crashes);
                state.avoid(&disk, &tried.hash, why);
                remove(&disk, TRYING);
            } else {
                tried.is_counted = true;
                if let Err(error) = disk.replace(TRYING, tried.head().as_bytes()) {
                    tracing::warn!(target: "chassis", "the crash guard can't write: {error}");
                }
                state.suspect = Some(tried);
            }
        }
        CrashGuard { disk, proven_after, state: Mutex::new(state) }
    }

    /// The texts of the last settings that survived.
    pub(crate) fn proven(&self) -> Vec<(String, Vec<Text>)> {
        self.state().proven.as_ref().map(|proven| proven.sources.clone()).unwrap_or_default()
    }

    /// Settings will be applied. Returns whether [`survived`](Self::survived) is to be called after a while.
    pub(crate) fn trying(&self, hash: &str) -> bool {
        let mut state = self.state();
        if state.proven.as_ref().is_some_and(|proven| proven.hash == hash) {
            self.end_trial(&mut state);
            return false;
        }
        let crashes =
            state.suspect.as_ref().filter(|tried| tried.hash == hash).map_or(0, |tried| tried.crashes);
        let tried = Tried { hash: hash.to_owned(), crashes, is_counted: false };
        match self.disk.replace(TRYING, tried.head().as_bytes()) {
            Ok(()) => {
                state.trying = Some(hash.to_owned());
                state.suspect = Some(tried);
                let (path, mut files) = (self.path(TRYING), tried_files());
                // Settings that come before the former ones have survived use the same file.
                if !files.contains(&path) {
                    files.push(path);
                }
            }
            Err(error) => tracing::warn!(target: "chassis", "the crash guard can't write: {error}"),
        }
        true
    }

    /// The settings with this hash have been in force for [`SURVIVAL`].
    pub(crate) fn survived(&self, hash: &str) {
        let mut state = self.state();
        if state.trying.as_deref() == Some(hash) {
            state.suspect = None;
            self.end_trial(&mut state);
        }
    }

    /// The time after which settings that are still in force are proven.
    pub(crate) fn proven_after(&self) -> Duration {
        self.proven_after
    }

    /// The settings in force are good: a start may fall back to them.
    pub(crate) fn prove(&self, hash: &str, sources: Vec<(String, Vec<Text>)>) {
        let mut state = self.state();
        if state.avoids(hash).is_some() {
            return;
        }
        let proven = Proven { hash: hash.to_owned(), sources };
        match self.disk.replace(PROVEN, proven.encode().as_bytes()) {
            Ok(()) => state.proven = Some(proven),
            Err(error) => tracing::warn!(target: "chassis", "proven settings can't be kept: {error}"),
        }
    }

    /// Whether the settings with this hash may be applied; an error states why not.
    pub(crate) fn admit(&self, hash: &str) -> Result<(), String> {
        match self.state().avoids(hash) {
            Some(why) => Err(why.to_owned()),
            None => Ok(()),
        }
    }

    /// The settings with this hash did harm, and are not applied any more.
    pub(crate) fn avoid(&self, hash: &str, why: String) {
        self.state().avoid(&self.disk, hash, why);
    }

    /// The settings with this hash may be applied again. Returns whether they were avoided.
    pub(crate) fn forgive(&self, hash: &str) -> bool {
        let mut state = self.state();
        let before = state.avoided.len();
        state.avoided.retain(|avoided| avoided.hash != hash);
        let is_known = state.avoided.len() < before;
        if is_known {
            state.keep_avoided(&self.disk);
        }
        is_known
    }

    /// The process stops in order.
    pub(crate) fn stopped(&self) {
        self.end_trial(&mut self.state());
    }

    /// No file says any more that settings are being tried.
    fn end_trial(&self, state: &mut State) {
        if state.trying.take().is_some() {
            let path = self.path(TRYING);
            tried_files().retain(|file| *file != path);
            remove(&self.disk, TRYING);
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.disk.directory().join(name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn avoids(&self, hash: &str) -> Option<&str> {
        self.avoided.iter().find(|avoided| avoided.hash == hash).map(|avoided| &*avoided.why)
    }

    fn avoid(&mut self, disk: &LastGood, hash: &str, why: String) {
        self.avoided.retain(|avoided| avoided.hash != hash);
        let first = (self.avoided.len() + 1).saturating_sub(MOST_AVOIDED);
        self.avoided.drain(..first);
        self.avoided.push(Avoided { hash: hash.to_owned(), why });
        self.keep_avoided(disk);
    }

    fn keep_avoided(&self, disk: &LastGood) {
        let text = serde_json::to_string_pretty(&self.avoided).unwrap_or_default();
        if let Err(error) = disk.replace(AVOIDED, text.as_bytes()) {
            tracing::warn!(target: "chassis", "settings to avoid can't be kept: {error}");
        }
    }
}

// === impl Tried ===

impl Tried {
    /// The first line of the file. The lines of panics follow.
    fn head(&self) -> String {
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

// === impl Proven ===

impl Proven {
    fn encode(&self) -> String {
        let whole = |source: &str, text: &Text| String::from_utf8_lossy(&encode(source, text)).into_owned();
        let texts = |(source, texts): &(String, Vec<Text>)| {
            (source.clone(), texts.iter().map(|text| whole(source, text)).collect::<Vec<_>>())
        };
        let sources: Vec<_> = self.sources.iter().map(texts).collect();
        serde_json::to_string(&(&self.hash, sources)).unwrap_or_default()
    }

    /// `None` if a part is damaged.
    fn decode(text: &str) -> Option<Self> {
        let (hash, sources): (String, Vec<(String, Vec<String>)>) = serde_json::from_str(text).ok()?;
        let texts = |(source, texts): (String, Vec<String>)| {
            let texts =
                texts.iter().map(|text| decode(&source, text.as_bytes())).collect::<Option<Vec<_>>>()?;
            Some((source, texts))
        };
        Some(Proven { hash, sources: sources.into_iter().map(texts).collect::<Option<_>>()? })
    }
}

// === impl Watched ===

impl Drop for Watched {
    fn drop(&mut self) {
        let has_panicked = read(&self.0.disk, TRYING).is_some_and(|text| text.lines().count() > 1);
        if !has_panicked {
            self.0.stopped();
        }
    }
}

fn read(disk: &LastGood, name: &str) -> Option<String> {
    let path = disk.directory().join(name);
    let bytes = match files::read(&path, MOST) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(target: "chassis", "{}: {error}", path.display());
            return None;
        }
    };
    String::from_utf8(bytes).ok()
}

fn remove(disk: &LastGood, name: &str) {
    let path = disk.directory().join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(target: "chassis", "{}: {error}", path.display());
        }
        _ => {}
    }
}

fn tried_files() -> MutexGuard<'static, Vec<PathBuf>> {
    TRIED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds a line to the files of settings that are being tried when this process panics; the former hook follows.
fn hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            // Not waited for: this thread may hold the lock.
            if let Ok(files) = TRIED.try_lock() {
                let line = panic.to_string().replace('\n', " ");
                files.iter().for_each(|file| note(file, &line));
            }
            before(panic);
        }));
    });
}

/// Only into a file that is there: it is gone once the settings have survived.
fn note(file: &Path, line: &str) {
    if let Ok(mut file) = fs::OpenOptions::new().append(true).open(file) {
        let _ = writeln!(file, "{line}").and_then(|()| file.sync_data()); // nothing else can be done here
    }
}

#[cfg(test)]
mod tests {
    use chassis_core::config::Format;

    use super::*;

    fn sources(content: &str) -> Vec<(String, Vec<Text>)> {
        let (content, origin) = (content.to_owned(), "file".to_owned());
        vec![("file".into(), vec![Text { content, format: Format::Yaml, origin, revision: None }])]
    }

    /// What ends the processes of a directory, one after the other: `p` a panic, `k` a kill, `s` a stop, `l` a long life.
    /// Each tries the same settings. Returns whether the next one may apply them.
    #[track_caller]
    fn check(ends: &str, may_apply: bool) {
        let dir = tempfile::tempdir().unwrap();
        let open = || CrashGuard::open(LastGood::new(dir.path()), SURVIVAL);
        let before = open();
        before.trying("old");
        before.survived("old");
        before.prove("old", sources("a: ${env:B}"));
        for end in ends.chars() {
            let guard = open();
            assert!(guard.admit("new").is_ok(), "{ends}: before {end}");
            guard.trying("new");
            match end {
                'p' => note(&guard.path(TRYING), "out of cheese"),
                'k' => {}
                's' => guard.stopped(),
                _ => guard.survived("new"),
            }
            let file = guard.path(TRYING);
            tried_files().retain(|tried| *tried != file);
        }
        let guard = open();
        assert_eq!(guard.admit("new").is_ok(), may_apply, "{ends}");
        assert_eq!(open().admit("new").is_ok(), may_apply, "{ends}: it is remembered");
        assert!(guard.admit("old").is_ok() && guard.admit("newer").is_ok());
        assert_eq!(guard.proven(), sources("a: ${env:B}"));
    }

    #[test]
    fn two_crashes_right_after_an_apply_are_the_fault_of_the_settings() {
        check("p", true);
        check("pp", false);
        check("pkp", false);
        check("kkkk", true);
        check("ssss", true);
        check("psp", true);
        check("plp", true);
    }

    /// Settings that crashed a process once were rolled back: starts with others do not report that crash again, and an
    /// end of theirs is none of it. It still counts if they come back.
    #[test]
    fn a_crash_is_reported_once_and_stays_counted() {
        let dir = tempfile::tempdir().unwrap();
        let open = || CrashGuard::open(LastGood::new(dir.path()), SURVIVAL);
        open().prove("good", sources("a: 1"));
        let crash = |guard: &CrashGuard| {
            assert!(guard.trying("new"));
            note(&guard.path(TRYING), "out of cheese");
        };
        crash(&open());
        for _ in 0..3 {
            let guard = open();
            assert!(!guard.trying("good"));
            let left = fs::read_to_string(guard.path(TRYING)).unwrap();
            assert!(left.contains(r#""crashes":1,"is_counted":true"#) && left.lines().count() == 1, "{left}");
        }
        crash(&open());
        assert!(open().admit("new").is_err());
    }

    #[test]
    fn proven_settings_are_never_suspected() {
        let dir = tempfile::tempdir().unwrap();
        let open = || CrashGuard::open(LastGood::new(dir.path()), SURVIVAL);
        open().prove("good", sources("a: 1"));
        for _ in 0..3 {
            let guard = open();
            assert!(!guard.trying("good"));
            assert!(!guard.path(TRYING).exists());
        }
        // Settings that did harm later are not proven by their age.
        let guard = open();
        guard.state().avoid(&guard.disk, "bad", "it did harm".into());
        guard.prove("bad", sources("a: 2"));
        assert_eq!(open().proven(), sources("a: 1"));
    }

    #[test]
    fn damaged_files_count_as_missing() {
        let dir = tempfile::tempdir().unwrap();
        let open = || CrashGuard::open(LastGood::new(dir.path()), SURVIVAL);
        let guard = open();
        guard.prove("good", sources("a: 1"));
        let text = fs::read_to_string(guard.path(PROVEN)).unwrap();
        fs::write(guard.path(PROVEN), text.replace("a: 1", "a: 2")).unwrap();
        fs::write(guard.path(AVOIDED), "[").unwrap();
        fs::write(guard.path(TRYING), "{\npanicked").unwrap();
        assert!(open().proven().is_empty() && open().admit("x").is_ok());
    }

    #[test]
    fn the_oldest_hashes_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let guard = CrashGuard::open(LastGood::new(dir.path()), SURVIVAL);
        for number in 0..50 {
            guard.state().avoid(&guard.disk, &format!("hash {number}"), "it did harm".into());
        }
        let kept: Vec<_> = (0..50).filter(|number| guard.admit(&format!("hash {number}")).is_err()).collect();
        assert_eq!(kept, (30..50).collect::<Vec<_>>());
    }
}
