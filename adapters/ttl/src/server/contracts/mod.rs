//! The contracts of services: all of them in memory, and each in a file of its own beside the snapshot.
mod files;
mod requests;
mod store;

use std::{
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use chassis_core::{
    BoxError,
    contracts::{Contract, ContractOwner},
};
use tokio::{
    sync::OwnedMutexGuard,
    task::{JoinError, spawn_blocking},
    time::Instant,
};

pub(super) use self::requests::{delete, get, list, put};
use self::store::{Full, Hashed, Kept, Limits, Store};
use super::TtlServerConfig;

/// All contracts, and the folder with their files.
pub(super) struct Shelf {
    store: Mutex<Store>,
    /// Held by the one change that is under way. Others wait for it without a thread.
    folder: Arc<tokio::sync::Mutex<Option<PathBuf>>>,
}

/// The folder, if there is one, and the right to the one change of it.
type Turn = OwnedMutexGuard<Option<PathBuf>>;

/// The result of a publication.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Put {
    /// It is there, with this hash.
    Done(String),
    /// There is one of this name, which was to stay.
    Stays,
}

/// Why a contract is not published.
#[derive(Debug)]
enum Failed {
    Full(Full),
    Disk(io::Error),
}

// === impl Shelf ===

impl Shelf {
    /// The contracts beside the snapshot of a server.
    pub(super) async fn beside(config: &TtlServerConfig) -> Result<Self, BoxError> {
        let TtlServerConfig { max_contracts, max_contract_bytes, max_contract_versions, .. } = *config;
        let bytes = max_contract_bytes.get();
        let limits = Limits { contracts: max_contracts, bytes, versions: max_contract_versions };
        let folder = config.snapshot.as_ref().map(|path| {
            let mut name = path.as_os_str().to_owned();
            name.push(".contracts");
            PathBuf::from(name)
        });
        let place = folder.clone().unwrap_or_default();
        let shelf = spawn_blocking(move || Shelf::open(folder, limits)).await?;
        Ok(shelf.map_err(|error| format!("the contracts in {}: {error}", place.display()))?)
    }

    /// Reads the files in `folder`, if there is one.
    ///
    /// # Errors
    /// The folder can't be read. A file that makes no sense is left out with a warning.
    fn open(folder: Option<PathBuf>, limits: Limits) -> io::Result<Self> {
        let mut store = Store::new(limits);
        if let Some(folder) = &folder {
            let now = Instant::now();
            for (number, of, hashed) in files::read(folder)? {
                store.number_from(number);
                let name = hashed.contract.name.clone();
                match store.room(&of, &hashed.contract, false, now) {
                    Ok(gone) => {
                        store.put(&of, hashed, &gone, now);
                        gone.iter().for_each(|(of, name)| forget(folder, of, name));
                    }
                    Err(_) => {
                        let service = of.service.escape_debug();
                        tracing::warn!(target: "chassis", %service, name, "a contract is left out: there are too many");
                    }
                }
            }
        }
        Ok(Shelf { store: Mutex::new(store), folder: Arc::new(tokio::sync::Mutex::new(folder)) })
    }

    /// Publishes a contract, once it is on disk: to its end, also where the caller has gone, so that the files and what is in
    /// force are the same.
    async fn publish(
        self: &Arc<Self>,
        of: ContractOwner,
        contract: Contract,
        kept: bool,
    ) -> Result<Result<Put, Failed>, JoinError> {
        let (turn, shelf) = (self.turn().await, self.clone());
        spawn_blocking(move || shelf.put(turn, &of, contract, kept)).await
    }

    /// Removes a contract, if it is there; like a publication to its end.
    async fn withdraw(
        self: &Arc<Self>,
        of: ContractOwner,
        name: String,
    ) -> Result<io::Result<()>, JoinError> {
        let (turn, shelf) = (self.turn().await, self.clone());
        spawn_blocking(move || shelf.delete(turn, &of, &name)).await
    }

    /// Waits until no other change is under way.
    async fn turn(&self) -> Turn {
        self.folder.clone().lock_owned().await
    }

    /// One that is there equally stays as it is, and so does another one if it is to be `kept`.
    fn put(&self, turn: Turn, of: &ContractOwner, contract: Contract, kept: bool) -> Result<Put, Failed> {
        let now = Instant::now();
        let hashed = Hashed::new(contract);
        let gone = {
            let mut store = self.store();
            store.asked(|other| other == of, now);
            match store.get(of, &hashed.contract.name) {
                Some(there) if there.is(&hashed.contract) => return Ok(Put::Done(hashed.etag)),
                Some(_) if kept => return Ok(Put::Stays),
                _ => store.room(of, &hashed.contract, kept, now).map_err(Failed::Full)?,
            }
        };
        let number = self.store().number() + 1;
        if let Some(folder) = &*turn {
            files::write(folder, number, of, &hashed).map_err(Failed::Disk)?;
        }
        let etag = hashed.etag.clone();
        self.store().put(of, hashed, &gone, now);
        if let Some(folder) = &*turn {
            gone.iter().for_each(|(of, name)| forget(folder, of, name));
        }
        Ok(Put::Done(etag))
    }

    fn delete(&self, turn: Turn, of: &ContractOwner, name: &str) -> io::Result<()> {
        if let Some(folder) = &*turn {
            files::remove(folder, of, name)?;
        }
        self.store().remove(of, name);
        Ok(())
    }

    fn get(&self, of: &ContractOwner, name: &str) -> Option<Kept> {
        let mut store = self.store();
        store.asked(|other| other == of, Instant::now());
        store.get(of, name).cloned()
    }

    /// No code panics while it is held, so the value behind a poisoned lock is intact.
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a file whose contract has made room; one that stays is in the way of nothing.
fn forget(folder: &std::path::Path, of: &ContractOwner, name: &str) {
    if let Err(error) = files::remove(folder, of, name) {
        tracing::warn!(target: "chassis", %error, name, "the file of an old contract is not removed");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{store::IN_USE, *};

    fn limits() -> Limits {
        Limits { contracts: 4, bytes: 100, versions: 2 }
    }

    fn text(name: &str, content: &str) -> Contract {
        Contract::new(name, "text/plain", content.to_owned())
    }

    fn put(shelf: &Shelf, of: &ContractOwner, contract: Contract, kept: bool) -> Result<Put, Failed> {
        shelf.put(shelf.folder.clone().blocking_lock_owned(), of, contract, kept)
    }

    fn delete(shelf: &Shelf, of: &ContractOwner, name: &str) {
        shelf.delete(shelf.folder.clone().blocking_lock_owned(), of, name).unwrap();
    }

    fn names(shelf: &Shelf) -> String {
        let store = shelf.store();
        let all = store.iter(|_| true).map(|(of, name, _)| format!("{}:{}:{name}", of.service, of.version));
        all.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn contracts_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let place = Some(folder.path().join("contracts"));
        let (one, two) = (ContractOwner::new("../a\n", "1"), ContractOwner::new("b", "").in_environment("π"));
        let binary = Contract::new("bin", "application/x", (0..=255).cycle().take(90).collect::<Vec<u8>>());
        let shelf = Shelf::open(place.clone(), limits()).unwrap();
        put(&shelf, &one, text("x", "1"), false).unwrap();
        put(&shelf, &two, binary.clone(), false).unwrap();
        put(&shelf, &one, text("x", "2"), false).unwrap();
        assert_eq!(put(&shelf, &one, text("x", "3"), true).unwrap(), Put::Stays);
        put(&shelf, &one, text("y", "1"), false).unwrap();
        delete(&shelf, &one, "y");
        delete(&shelf, &one, "y");
        // Files that make no sense beside them.
        let good = std::fs::read_dir(place.as_ref().unwrap()).unwrap().next().unwrap().unwrap().path();
        let mut damaged = std::fs::read(good).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        for (n, bad) in [&b""[..], b"{}", b"{}\n", b"\xff\n", &damaged].into_iter().enumerate() {
            std::fs::write(place.as_ref().unwrap().join(format!("{n}.contract")), bad).unwrap();
        }
        let again = Shelf::open(place, limits()).unwrap();
        assert_eq!(names(&again), "../a\n:1:x b::bin");
        assert!(again.get(&two, "bin").unwrap().is(&binary));
        assert!(again.get(&one, "x").unwrap().is(&text("x", "2")));
    }

    #[test]
    fn the_oldest_version_makes_room() {
        let folder = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(Some(folder.path().to_owned()), limits()).unwrap();
        let of = |version: &str| ContractOwner::new("a", version);
        for version in ["1", "2", "1", "3"] {
            put(&shelf, &of(version), text("x", version), false).unwrap();
            put(&shelf, &of(version), text("y", version), false).unwrap();
        }
        assert_eq!(names(&shelf), "a:2:x a:2:y a:3:x a:3:y", "what is equal is not published anew");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
        assert!(matches!(
            put(&shelf, &ContractOwner::new("b", ""), text("x", "1"), false),
            Err(Failed::Full(Full::Used))
        ));
        put(&shelf, &of("3"), text("x", "other"), false).unwrap();
        put(&shelf, &of("4"), text("x", "4"), false).unwrap();
        let long = text("z", &"z".repeat(100));
        assert!(
            matches!(put(&shelf, &of("4"), long, false), Err(Failed::Full(Full::Used))),
            "bytes are bounded too"
        );
        assert_eq!(names(&shelf), "a:3:x a:3:y a:4:x");
    }

    /// A contract that can't be written is not in force.
    #[test]
    fn a_disk_that_fails_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("contracts");
        let shelf = Shelf::open(Some(place.clone()), limits()).unwrap();
        std::fs::write(&place, "a file").unwrap();
        let of = ContractOwner::new("a", "1");
        assert!(matches!(put(&shelf, &of, text("x", "1"), false), Err(Failed::Disk(_))));
        assert_eq!(names(&shelf), "");
        std::fs::remove_file(&place).unwrap();
        put(&shelf, &of, text("x", "1"), false).unwrap();
        assert_eq!(names(&shelf), "a:1:x");
    }

    /// More live versions than are kept, each of which looks for its contracts once a minute.
    #[tokio::test(start_paused = true)]
    async fn versions_in_use_do_not_take_each_others_place() {
        let shelf = Arc::new(Shelf::open(None, limits()).unwrap());
        let of = |version: &str| ContractOwner::new("a", version);
        let publish =
            async |version: &str, kept| shelf.publish(of(version), text("x", version), kept).await.unwrap();
        for version in ["1", "2", "3"] {
            assert!(
                matches!(publish(version, false).await, Ok(Put::Done(_))),
                "a process that starts has its place"
            );
        }
        for _ in 0..30 {
            for version in ["1", "2", "3"] {
                match shelf.get(&of(version), "x") {
                    Some(_) => assert_ne!(version, "1"),
                    None => {
                        assert!(matches!(publish(version, true).await, Err(Failed::Full(Full::Versions))))
                    }
                }
            }
            assert_eq!(names(&shelf), "a:2:x a:3:x");
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        // No process of version 3 is left.
        tokio::time::advance(IN_USE / 2).await;
        assert!(shelf.get(&of("2"), "x").is_some());
        assert!(publish("1", true).await.is_err());
        tokio::time::advance(IN_USE / 2).await;
        assert!(matches!(publish("1", true).await, Ok(Put::Done(_))));
        assert_eq!(
            names(&shelf),
            "a:1:x a:2:x",
            "not the one that was changed first, but the one not in use"
        );
    }

    /// A disk that is slow takes one thread.
    #[test]
    fn changes_wait_without_a_thread() {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().max_blocking_threads(1).build().unwrap();
        runtime.block_on(async {
            let shelf = Arc::new(Shelf::open(None, limits()).unwrap());
            let of = ContractOwner::new("a", "1");
            let under_way = shelf.turn().await;
            let mut waiting = tokio::task::JoinSet::new();
            for n in 0..8 {
                let (shelf, of) = (shelf.clone(), of.clone());
                waiting.spawn(async move {
                    match n % 2 {
                        0 => drop(shelf.publish(of, text("x", "1"), false).await.unwrap().unwrap()),
                        _ => shelf.withdraw(of, "y".to_owned()).await.unwrap().unwrap(),
                    }
                });
            }
            tokio::task::yield_now().await;
            let other = tokio::time::timeout(Duration::from_secs(10), spawn_blocking(|| 1)).await;
            assert_eq!(other.expect("a thread is free").unwrap(), 1);
            drop(under_way);
            waiting.join_all().await;
            assert_eq!(names(&shelf), "a:1:x");
        });
    }
}
