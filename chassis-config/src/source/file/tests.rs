use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use chassis_core::testing::contract::config_source::{Place, config_source};

/// Long enough that no test waits for a poll: every change must arrive by an event.
const NEVER: Duration = Duration::from_secs(3600);
const CAP: Duration = Duration::from_secs(30);

/// The way a file is replaced.
enum How {
    InPlace,
    ByRename,
    /// As Kubernetes does it: `chassis.yaml` → `..data/chassis.yaml`, and `..data` → a new directory each
    /// time.
    BySwap(u32),
}

struct File(TempDir, How, Duration);

impl File {
    fn new(how: How, poll: Duration) -> Self {
        File(tempfile::tempdir().expect("a directory can be made"), how, poll)
    }
    fn path(&self) -> PathBuf {
        self.0.path().join("chassis.yaml")
    }
}

#[async_trait]
impl Place for File {
    fn source(&self) -> Arc<dyn ConfigSource> {
        Arc::new(FileSource::new(self.path()).poll_every(self.2))
    }
    async fn write(&mut self, content: &str) {
        let (path, dir) = (self.path(), self.0.path().to_path_buf());
        match &mut self.1 {
            How::InPlace => std::fs::write(path, content).unwrap(),
            How::ByRename => {
                std::fs::write(dir.join(".new"), content).unwrap();
                std::fs::rename(dir.join(".new"), path).unwrap();
            }
            How::BySwap(n) => {
                *n += 1;
                let old = std::fs::read_link(dir.join("..data")).ok();
                std::fs::create_dir(dir.join(format!("..{n}"))).unwrap();
                std::fs::write(dir.join(format!("..{n}/chassis.yaml")), content).unwrap();
                std::os::unix::fs::symlink(format!("..{n}"), dir.join("..data_tmp")).unwrap();
                std::fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
                if path.symlink_metadata().is_err() {
                    std::os::unix::fs::symlink("..data/chassis.yaml", path).unwrap();
                }
                if let Some(old) = old {
                    std::fs::remove_dir_all(dir.join(old)).unwrap();
                }
            }
        }
    }
    async fn spoil(&mut self) -> bool {
        std::fs::remove_file(self.path()).unwrap();
        true
    }
}

#[tokio::test]
async fn a_file_written_in_place_keeps_the_contract() {
    config_source(File::new(How::InPlace, NEVER)).await;
}

#[tokio::test]
async fn a_file_replaced_by_rename_keeps_the_contract() {
    config_source(File::new(How::ByRename, NEVER)).await;
}

#[tokio::test]
async fn a_file_behind_swapped_links_keeps_the_contract() {
    config_source(File::new(How::BySwap(0), NEVER)).await;
}

async fn next(watcher: &mut Box<dyn ConfigWatcher>) -> Result<String, String> {
    let said = tokio::time::timeout(CAP, watcher.next()).await.expect("it answers");
    said.map(|text| text.content).map_err(|e| e.to_string())
}

#[tokio::test]
async fn what_makes_no_event_is_found_by_polling() {
    // The link and its target's directory are watched; the middle of the chain is not.
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (c, d) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(c.path().join("x.yaml"), "a: 1").unwrap();
    std::fs::write(d.path().join("x.yaml"), "a: 2").unwrap();
    std::os::unix::fs::symlink(c.path(), b.path().join("now")).unwrap();
    std::os::unix::fs::symlink(b.path().join("now/x.yaml"), a.path().join("x.yaml")).unwrap();
    let source = FileSource::new(a.path().join("x.yaml")).poll_every(Duration::from_millis(10));
    let mut watcher = source.watch().await.unwrap();
    assert_eq!(next(&mut watcher).await, Ok("a: 1".into()));
    std::fs::remove_file(b.path().join("now")).unwrap();
    std::os::unix::fs::symlink(d.path(), b.path().join("now")).unwrap();
    let mut said = next(&mut watcher).await;
    if said.is_err() {
        said = next(&mut watcher).await; // polled between the two lines above
    }
    assert_eq!(said, Ok("a: 2".into()));
}

#[tokio::test]
async fn what_is_no_text_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chassis.yaml");
    let shown = path.display();
    let mut watcher = FileSource::new(&path).poll_every(NEVER).watch().await.unwrap();
    std::fs::write(dir.path().join("chassis.yml"), "a: 1").unwrap();
    let meant = dir.path().join("chassis.yml");
    let missing = format!("{shown}: there is no such file; did you mean `{}`?", meant.display());
    assert_eq!(next(&mut watcher).await, Err(missing));
    for (bytes, why) in [
        (&b"a: \xff"[..], "it is not UTF-8"),
        (&[b' '; MAX_BYTES + 1], "4194305 bytes are too many; the limit is 4194304"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(next(&mut watcher).await, Err(format!("{shown}: {why}")));
    }
    std::fs::write(&path, "a: 1").unwrap();
    assert_eq!(next(&mut watcher).await, Ok("a: 1".into()));
}

#[tokio::test]
async fn a_directory_that_comes_late_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etc/chassis.toml");
    let mut watcher = FileSource::new(&path).poll_every(Duration::from_millis(10)).watch().await.unwrap();
    assert!(next(&mut watcher).await.is_err());
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    std::fs::write(&path, "a = 1").unwrap();
    let mut said = next(&mut watcher).await;
    while said.as_ref().is_ok_and(String::is_empty) || said.is_err() {
        said = next(&mut watcher).await; // polled while it was empty
    }
    assert_eq!(said, Ok("a = 1".into()));
}

/// A file that is empty or holds only comments is accepted at the start, and half-written once there were
/// settings.
#[tokio::test]
async fn a_file_without_settings_is_believed_at_the_start_only() {
    for (name, some, empty) in [
        ("chassis.yaml", "a: 1", "write `{}` if that is meant"),
        ("chassis.toml", "a = 1", "write an empty table, as in `[outbound]` if that is meant"),
    ] {
        for blank in ["", " \n\n", "# one day\n", "\u{feff}# one day\n  # or another"] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(name);
            let put = |content: &str| {
                std::fs::write(dir.path().join("new"), content).unwrap();
                std::fs::rename(dir.path().join("new"), &path).unwrap();
            };
            put(blank);
            let mut watcher = FileSource::new(&path).poll_every(NEVER).watch().await.unwrap();
            assert_eq!(next(&mut watcher).await, Ok(blank.into()));
            put(some);
            assert_eq!(next(&mut watcher).await, Ok(some.into()));
            put(blank);
            let why = format!("{}: no setting is left, perhaps half-written; {empty}", path.display());
            assert_eq!(next(&mut watcher).await, Err(why));
            put(some);
            assert_eq!(next(&mut watcher).await, Ok(some.into()));
        }
    }
}

/// Opening a pipe blocks until its other end is opened, and a runtime waits for its blocked threads when it
/// is dropped.
#[test]
fn what_is_no_regular_file_is_refused_and_holds_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("chassis.yaml");
    let shown = path.display();
    let pipe = || {
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo is there");
    };
    let device = || std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
    let directory = || std::fs::create_dir(&path).unwrap();
    let kinds: [(&dyn Fn(), &str); 3] =
        [(&pipe, "a pipe"), (&device, "a device"), (&directory, "a directory")];
    for from_the_start in [true, false] {
        for (put, kind) in kinds {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let source = FileSource::new(&path).poll_every(NEVER);
            runtime.block_on(async {
                let mut watcher = source.watch().await.unwrap();
                if !from_the_start {
                    std::fs::write(&path, "a: 0").unwrap();
                    assert_eq!(next(&mut watcher).await, Ok("a: 0".into()));
                    std::fs::remove_file(&path).unwrap();
                }
                put();
                let why = format!("{shown}: {kind} is no regular file");
                let mut said = next(&mut watcher).await;
                if said != Err(why.clone()) {
                    said = next(&mut watcher).await; // it read in between
                }
                assert_eq!(said, Err(why));
                if path.is_dir() {
                    std::fs::remove_dir(&path).unwrap();
                } else {
                    std::fs::remove_file(&path).unwrap();
                }
                std::fs::write(dir.path().join("new"), "a: 1").unwrap();
                std::fs::rename(dir.path().join("new"), &path).unwrap();
                let mut said = next(&mut watcher).await;
                if said.is_err() {
                    said = next(&mut watcher).await; // it read in between
                }
                assert_eq!(said, Ok("a: 1".into()));
            });
            let (over, ended) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                drop(runtime); // waits for blocked reads
                over.send(())
            });
            ended.recv_timeout(CAP).expect("the process can end");
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[tokio::test]
async fn the_language_is_in_the_name() {
    let error = FileSource::new("chassis.conf").watch().await.err().map(|e| e.to_string());
    assert_eq!(error.as_deref(), Some("chassis.conf: name it .yaml, .toml or .json to say what it is"));
}
