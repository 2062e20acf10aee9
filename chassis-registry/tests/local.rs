//! The `local` registry with processes that are killed, hang, share an id, or leave invalid files.
#![allow(clippy::unwrap_used)]
use std::{
    env,
    fs::{self, File},
    io::Read,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use chassis_core::{
    registry::{Instance, Membership, Registry, Watcher},
    units::PositiveSpan,
};
use chassis_registry::{LocalConfig, LocalRegistry};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

/// A separate process with a registered instance; killed when dropped.
struct Process(Child);

/// A directory for lease files.
struct Place(TempDir);

const CAP: Duration = Duration::from_secs(30);
const CHILD: &str = "CHASSIS_TEST_LOCAL_CHILD";
const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(300);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("chassis")
    }

    fn entry(&self, id: &str) -> PathBuf {
        self.dir().join(format!("stock/{id}.json"))
    }

    fn registry(&self, lease: Duration) -> LocalRegistry {
        registry(&self.dir(), lease)
    }

    async fn watch(&self) -> Box<dyn Watcher> {
        self.registry(HOUR).watch("stock").await.unwrap()
    }

    /// The first answer of a new watcher.
    async fn look(&self) -> Vec<Instance> {
        match next(&mut self.watch().await).await {
            Membership::Known(all) => all.iter().map(|instance| (**instance).clone()).collect(),
            Membership::Unknown => Vec::new(),
            Membership::Deleted => panic!("no test deletes a service"),
        }
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir().join("stock")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Writes an entry with a lease of `lease`, `age` ago, whose process does not run.
    fn leave(&self, instance: &Instance, lease: Duration, age: Duration) -> File {
        let entry =
            serde_json::json!({ "instance": instance, "lease_ms": lease.as_millis() as u64, "pid": 1 });
        self.write(&format!("{}.json", instance.id), &entry.to_string(), age)
    }

    fn write(&self, name: &str, text: &str, age: Duration) -> File {
        fs::create_dir_all(self.dir().join("stock")).unwrap();
        fs::set_permissions(self.dir(), fs::Permissions::from_mode(0o700)).unwrap();
        fs::write(self.dir().join("stock").join(name), text).unwrap();
        let file = File::options().append(true).open(self.dir().join("stock").join(name)).unwrap();
        file.set_modified(SystemTime::now() - age).unwrap();
        file
    }
}

impl Process {
    fn start(place: &Place, id: &str, lease: Duration) -> Process {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "as_a_process_of_its_own", "--nocapture"])
            .env(CHILD, format!("{}\n{id}\n{}", place.dir().display(), lease.as_millis()))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Process(child.unwrap())
    }

    fn signal(&self, signal: &str) {
        let command = format!("kill -{signal} {}", self.0.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    fn kill_9(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Not a test: the code that [`Process`] runs. It ends together with the process that started it.
#[tokio::test]
async fn as_a_process_of_its_own() {
    let Ok(arguments) = env::var(CHILD) else { return };
    let [dir, id, lease] = arguments.split('\n').collect::<Vec<_>>().try_into().unwrap();
    let lease = Duration::from_millis(lease.parse().unwrap());
    let _up = registry(Path::new(dir), lease).register(stock(id)).await.unwrap();
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.unwrap().unwrap();
}

fn registry(dir: &Path, lease: Duration) -> LocalRegistry {
    LocalRegistry::new(LocalConfig {
        dir: Some(dir.into()),
        lease: PositiveSpan::new(lease).unwrap(),
        poll: PositiveSpan::from_millis(10),
    })
}

fn stock(id: &str) -> Instance {
    Instance::new("stock", id).with_address("grpc", "127.0.0.1:50051")
}

async fn next(watcher: &mut Box<dyn Watcher>) -> Membership {
    timeout(CAP, watcher.next()).await.expect("an answer").unwrap()
}

/// Waits until exactly these instances run, in the order of their ids.
async fn until(watcher: &mut Box<dyn Watcher>, expected: &[&str]) {
    let waited = timeout(CAP, async {
        loop {
            match watcher.next().await.unwrap() {
                Membership::Known(all) if all.iter().map(|i| i.id.as_str()).eq(expected.iter().copied()) => {
                    return;
                }
                _ => {}
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never saw {expected:?}"));
}

#[tokio::test]
async fn a_process_that_is_killed_is_missed_long_before_its_lease_is_over() {
    let place = Place::new();
    let mut watcher = place.watch().await;
    assert_eq!(next(&mut watcher).await, Membership::Unknown);
    let a = Process::start(&place, "a", HOUR);
    let _b = Process::start(&place, "b", HOUR);
    until(&mut watcher, &["a", "b"]).await;
    let killed = Instant::now();
    a.kill_9();
    until(&mut watcher, &["b"]).await;
    println!("missed after {:?}", killed.elapsed());
    assert_eq!(place.files(), ["b.json"], "what is left of it is removed");
}

/// No scan by the clock happens here: every change arrives as an event.
#[tokio::test]
async fn joins_and_kills_are_noticed() {
    let place = Place::new();
    let config =
        LocalConfig { dir: Some(place.dir()), poll: PositiveSpan::new(HOUR).unwrap(), ..Default::default() };
    let mut watcher = LocalRegistry::new(config).watch("stock").await.unwrap();
    assert_eq!(next(&mut watcher).await, Membership::Unknown);
    let _a = place.registry(HOUR).register(stock("a")).await.unwrap();
    until(&mut watcher, &["a"]).await;
    let b = Process::start(&place, "b", HOUR);
    until(&mut watcher, &["a", "b"]).await;
    b.kill_9();
    until(&mut watcher, &["a"]).await;
    place.registry(HOUR).register(stock("c")).await.unwrap().deregister().await.unwrap();
    let _d = place.registry(HOUR).register(stock("d")).await.unwrap();
    until(&mut watcher, &["a", "d"]).await;
}

#[tokio::test]
async fn a_process_that_hangs_is_left_out_when_its_lease_is_over_and_back_when_it_wakes() {
    let place = Place::new();
    let mut watcher = place.watch().await;
    let process = Process::start(&place, "a", SOON);
    until(&mut watcher, &["a"]).await;
    process.signal("STOP");
    until(&mut watcher, &[]).await;
    assert_eq!(place.files(), ["a.json"], "the file of a living process is not removed");
    assert!(place.registry(HOUR).register(stock("a")).await.is_err(), "nor its id given away");
    process.signal("CONT");
    until(&mut watcher, &["a"]).await;
}

#[tokio::test]
async fn an_id_belongs_to_one_running_process() {
    let place = Place::new();
    let mut watcher = place.watch().await;
    let process = Process::start(&place, "a", HOUR);
    until(&mut watcher, &["a"]).await;
    let refused = place.registry(HOUR).register(stock("a").with_weight(7)).await.err().unwrap().to_string();
    let path = place.entry("a").display().to_string();
    assert_eq!(refused, format!("instance `a` of `stock`, {path}: a running process has this id already"));
    process.kill_9();
    let _ours = place.registry(HOUR).register(stock("a").with_weight(7)).await.unwrap();
    assert_eq!(place.look().await, [stock("a").with_weight(7)]);
    assert!(place.registry(HOUR).register(stock("a")).await.is_err(), "not to this process either");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_want_an_id_at_once_one_gets_it() {
    let place = Place::new();
    for round in 0..30 {
        if round % 2 == 0 {
            place.leave(&stock("a"), HOUR, Duration::ZERO); // of a process that crashed
        }
        let mut looking = place.watch().await;
        let looking = tokio::spawn(async move { while looking.next().await.is_ok() {} });
        let racers: Vec<_> = (0..8)
            .map(|_| place.registry(HOUR))
            .map(|registry| tokio::spawn(async move { registry.register(stock("a")).await }))
            .collect();
        let mut winners = Vec::new();
        for racer in racers {
            winners.extend(racer.await.unwrap().ok());
        }
        assert_eq!(winners.len(), 1, "round {round}");
        assert_eq!(place.look().await, [stock("a")]);
        winners.remove(0).deregister().await.unwrap();
        looking.abort();
        assert!(place.files().is_empty(), "{:?}", place.files());
    }
}

#[tokio::test]
async fn only_a_renewed_lease_or_an_answer_keeps_an_entry() {
    let place = Place::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let socket = place.0.path().join("sock");
    let _socket = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let gone = format!("unix:{}", place.0.path().join("gone").display());

    let mut locked = Vec::new();
    let mut put = |id: &str, addresses: &[&str], age: Duration| {
        let mut instance = Instance::new("stock", id);
        for (n, address) in addresses.iter().enumerate() {
            instance = instance.with_address(format!("p{n}"), *address);
        }
        let file = place.leave(&instance, HOUR, age);
        file.lock().unwrap();
        locked.push(file);
    };
    put("1-fresh-closed", &[&closed], Duration::ZERO);
    put("2-late-open", &[&address], HOUR * 2 / 3);
    put("3-late-closed", &[&closed, &gone], HOUR * 2 / 3);
    put("4-late-unix", &[&closed, &format!("unix:{}", socket.display())], HOUR * 2 / 3);
    put("5-late-memory", &["memory:stock"], HOUR * 2 / 3);
    put("6-over-open", &[&address], HOUR * 4 / 3);
    let ids: Vec<_> = place.look().await.into_iter().map(|instance| instance.id).collect();
    assert_eq!(ids, ["1-fresh-closed", "2-late-open", "4-late-unix", "5-late-memory"]);
    assert_eq!(place.files().len(), 6, "they are locked, so their processes live");

    let mut watcher = place.watch().await;
    next(&mut watcher).await;
    locked[2].set_modified(SystemTime::now()).unwrap(); // renewed: counts as running again without a check
    until(&mut watcher, &["1-fresh-closed", "2-late-open", "3-late-closed", "4-late-unix", "5-late-memory"])
        .await;
    drop(locked);
    until(&mut watcher, &[]).await;
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn what_is_no_entry_is_left_alone_and_spoils_nothing() {
    let place = Place::new();
    let _up = place.registry(HOUR).register(stock("a")).await.unwrap();
    let whole = fs::read_to_string(place.entry("a")).unwrap();
    let old = Duration::from_secs(120);
    place.write("garbage.json", "\u{0}\u{1}garbage", old);
    place.write("empty.json", "", old);
    place.write("half.json", &whole[..whole.len() / 2], old);
    place.write("another.json", &whole, old);
    place.write("huge.json", &format!("{whole}{}", " ".repeat(1 << 17)), old);
    place.write("theirs.json", &whole.replace("\"stock\"", "\"orders\"").replace("\"a\"", "\"theirs\""), old);
    place.write("port0.json", &whole.replace(":50051", ":0").replace("\"a\"", "\"port0\""), old);
    place.write("notes.txt", "", old);
    place.write(".tmp-chassis-1-1-1", "", Duration::ZERO);
    fs::create_dir(place.dir().join("stock/dir.json")).unwrap();
    let pipe = place.dir().join("stock/pipe.json");
    assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    fs::write(place.dir().join("not a service"), "").unwrap();
    let before = place.files();

    place.write(".tmp-chassis-1-1-2", "", old); // incomplete, of a process that has ended
    place.leave(&stock("crashed"), HOUR, Duration::ZERO);
    assert_eq!(place.look().await, [stock("a")]);
    assert_eq!(place.files(), before, "only what dead processes left is removed");
    assert_eq!(place.registry(HOUR).services().await, ["stock"]);
    // An id is free if its path holds no valid entry.
    let _garbage = place.registry(HOUR).register(stock("garbage")).await.unwrap();
    assert_eq!(place.look().await, [stock("a"), stock("garbage")]);
}

#[tokio::test]
async fn a_removed_entry_is_written_again() {
    let place = Place::new();
    let up = place.registry(SOON).register(stock("a")).await.unwrap();
    let mut watcher = place.watch().await;
    until(&mut watcher, &["a"]).await;
    fs::remove_file(place.entry("a")).unwrap();
    until(&mut watcher, &[]).await;
    until(&mut watcher, &["a"]).await;
    fs::remove_dir_all(place.dir()).unwrap();
    until(&mut watcher, &[]).await;
    until(&mut watcher, &["a"]).await;
    up.deregister().await.unwrap();
    until(&mut watcher, &[]).await;
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn a_registration_takes_down_its_own_file_only() {
    let place = Place::new();
    let up = place.registry(HOUR).register(stock("a")).await.unwrap();
    fs::remove_file(place.entry("a")).unwrap();
    let _another = place.registry(HOUR).register(stock("a")).await.unwrap();
    up.deregister().await.unwrap();
    assert_eq!(place.look().await, [stock("a")]);
}

#[test]
fn the_end_of_the_runtime_keeps_nothing_up() {
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let up = runtime.block_on(place.registry(HOUR).register(stock("a"))).unwrap();
    drop(runtime);
    assert_eq!(place.files(), ["a.json"]);
    drop(up);
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn a_directory_that_becomes_open_to_others_is_no_news() {
    let place = Place::new();
    let _up = place.registry(HOUR).register(stock("a")).await.unwrap();
    let mut watcher = place.watch().await;
    until(&mut watcher, &["a"]).await;
    fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = timeout(CAP, watcher.next()).await.unwrap().unwrap_err();
    assert!(error.to_string().contains("is open to others (chmod 700 it)"), "{error}");
    let registry = place.registry(HOUR);
    assert!(registry.register(stock("b")).await.is_err());
    assert!(registry.watch("stock").await.is_err());
    assert!(registry.services().await.is_empty());
    fs::set_permissions(place.dir(), fs::Permissions::from_mode(0o700)).unwrap();
    until(&mut watcher, &["a"]).await;
}

#[tokio::test]
async fn names_that_cannot_be_files_are_refused() {
    let place = Place::new();
    let registry = place.registry(HOUR);
    let long = "x".repeat(241);
    for (service, id) in [("", "a"), ("stock", ""), (&*long, "a"), ("stock", &*long)] {
        let bad = Instance::new(service, id).with_address("grpc", "127.0.0.1:1");
        assert!(registry.register(bad).await.is_err(), "{service} {id}");
    }
    assert!(registry.register(stock("a").with_address("http", "127.0.0.1:0")).await.is_err());
    assert!(registry.watch("").await.is_err());
    assert!(registry.watch(&long).await.is_err());

    let odd = Instance::new("../../etc\0", "/a\0/../b").with_address("grpc", "127.0.0.1:1");
    let _up = registry.register(odd.clone()).await.unwrap();
    let mut watcher = registry.watch("../../etc\0").await.unwrap();
    assert_eq!(next(&mut watcher).await, Membership::known([odd]));
    assert_eq!(registry.services().await, ["../../etc\0"]);
    let outside: Vec<_> = fs::read_dir(place.0.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(outside, ["chassis"]);
}
