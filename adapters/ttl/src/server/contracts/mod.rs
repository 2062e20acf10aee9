//! The contracts of services: all of them in memory, and each in a file of its own beside the snapshot.
mod files;
mod requests;
mod store;

use std::{
    io,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use chassis_core::{
    BoxError,
    contracts::{Contract, ContractOwner},
};
use tokio::task::spawn_blocking;

pub(super) use self::requests::{delete, get, list, put};
use self::store::{Full, Kept, Limits, Store};
use super::TtlServerConfig;

/// All contracts, and the folder with their files. Its functions block.
pub(super) struct Shelf {
    store: Mutex<Store>,
    /// Held by the one change that is under way.
    folder: Mutex<Option<PathBuf>>,
}

/// The result of a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    Done,
    /// There is one of this name, which was to stay.
    Stays,
}

/// Why a contract is not published.
#[derive(Debug)]
enum Failed {
    Full,
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
            for (number, of, contract) in files::read(folder)? {
                store.number_from(number);
                let name = contract.name.clone();
                match store.room(&of, &contract) {
                    Ok(gone) => {
                        store.put(&of, contract, &gone);
                        gone.iter().for_each(|(of, name)| forget(folder, of, name));
                    }
                    Err(Full) => {
                        let service = of.service.escape_debug();
                        tracing::warn!(target: "chassis", %service, name, "a contract is left out: there are too many");
                    }
                }
            }
        }
        Ok(Shelf { store: Mutex::new(store), folder: Mutex::new(folder) })
    }

    /// Publishes a contract, once it is on disk. One that is there equally stays as it is, and so does another one if it is
    /// to be `kept`.
    fn put(&self, of: &ContractOwner, contract: Contract, kept: bool) -> Result<Put, Failed> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        let gone = {
            let store = self.store();
            match store.get(of, &contract.name) {
                Some(there) if there.is(&contract) => return Ok(Put::Done),
                Some(_) if kept => return Ok(Put::Stays),
                _ => store.room(of, &contract).map_err(|Full| Failed::Full)?,
            }
        };
        let number = self.store().number() + 1;
        if let Some(folder) = &*folder {
            files::write(folder, number, of, &contract).map_err(Failed::Disk)?;
        }
        self.store().put(of, contract, &gone);
        if let Some(folder) = &*folder {
            gone.iter().for_each(|(of, name)| forget(folder, of, name));
        }
        Ok(Put::Done)
    }

    fn delete(&self, of: &ContractOwner, name: &str) -> io::Result<()> {
        let folder = self.folder.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(folder) = &*folder {
            files::remove(folder, of, name)?;
        }
        self.store().remove(of, name);
        Ok(())
    }

    fn get(&self, of: &ContractOwner, name: &str) -> Option<Kept> {
        self.store().get(of, name).cloned()
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
    use super::*;

    fn limits() -> Limits {
        Limits { contracts: 4, bytes: 100, versions: 2 }
    }

    fn text(name: &str, content: &str) -> Contract {
        Contract::new(name, "text/plain", content.to_owned())
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
        shelf.put(&one, text("x", "1"), false).unwrap();
        shelf.put(&two, binary.clone(), false).unwrap();
        shelf.put(&one, text("x", "2"), false).unwrap();
        assert_eq!(shelf.put(&one, text("x", "3"), true).unwrap(), Put::Stays);
        shelf.put(&one, text("y", "1"), false).unwrap();
        shelf.delete(&one, "y").unwrap();
        shelf.delete(&one, "y").unwrap();
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
            shelf.put(&of(version), text("x", version), false).unwrap();
            shelf.put(&of(version), text("y", version), false).unwrap();
        }
        assert_eq!(names(&shelf), "a:2:x a:2:y a:3:x a:3:y", "what is equal is not published anew");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
        assert!(matches!(shelf.put(&ContractOwner::new("b", ""), text("x", "1"), false), Err(Failed::Full)));
        shelf.put(&of("3"), text("x", "other"), false).unwrap();
        shelf.put(&of("4"), text("x", "4"), false).unwrap();
        let long = text("z", &"z".repeat(100));
        assert!(matches!(shelf.put(&of("4"), long, false), Err(Failed::Full)), "bytes are bounded too");
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
        assert!(matches!(shelf.put(&of, text("x", "1"), false), Err(Failed::Disk(_))));
        assert_eq!(names(&shelf), "");
        std::fs::remove_file(&place).unwrap();
        shelf.put(&of, text("x", "1"), false).unwrap();
        assert_eq!(names(&shelf), "a:1:x");
    }
}
