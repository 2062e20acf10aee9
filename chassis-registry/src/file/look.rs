//! One read of the document: parses only if the content changed, and refuses invalid instances.
use std::{
    collections::{BTreeMap, HashSet},
    fs,
    hash::{DefaultHasher, Hasher},
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use chassis_core::{
    files,
    registry::{Instance, RegistryError},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The file's stamp and content at the last read.
#[derive(Clone)]
pub(super) struct Look {
    /// `None` if the file could not be read.
    read: Option<(Stamp, u64)>,
    pub(super) content: Result<Arc<Services>, Arc<str>>,
}

/// The metadata that changes with every write, unless two writes fall within the clock's resolution.
#[derive(Clone, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    /// True if the time is old enough that the next write must have another one.
    settled: bool,
}

/// The instances of each service; `None` for a deleted service.
pub(super) type Services = BTreeMap<String, Option<Vec<Arc<Instance>>>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document<'a> {
    /// Parsed one by one later, so that an invalid instance affects no other.
    #[serde(borrow)]
    services: BTreeMap<String, Option<Vec<&'a RawValue>>>,
}

/// A document of 10⁵ instances takes about 20 MB.
const MAX_LENGTH: u64 = 64 << 20;
/// Once a file is this old when it is read, a later write has another time. The coarsest file system, FAT,
/// stores times in steps of 2 s.
const SETTLED: Duration = Duration::from_secs(2);
/// Maximum of warnings per document, so that 10⁵ invalid entries do not fill the log.
const MAX_WARNINGS: usize = 10;

// === impl Look ===

impl Default for Look {
    fn default() -> Self {
        Look::failed("not looked at yet".into())
    }
}

impl Look {
    pub(super) fn failed(why: String) -> Self {
        Look { read: None, content: Err(why.into()) }
    }

    /// Reads the file again if it changed. Blocks.
    pub(super) fn again(self, path: &Path) -> Look {
        match self.read(path) {
            Ok(look) => look,
            Err(why) => Look::failed(format!("{}: {why}", path.display())),
        }
    }

    fn read(self, path: &Path) -> io::Result<Look> {
        let stamp = Stamp::of(&fs::metadata(path)?)?;
        if stamp.settled && self.read.as_ref().is_some_and(|(before, _)| *before == stamp) {
            return Ok(self);
        }
        let file = files::open(path)?;
        let stamp = Stamp::of(&file.metadata()?)?; // of the open file; the path may already name another one
        let text = files::read_open(&file, MAX_LENGTH)?;
        let mut hasher = DefaultHasher::new();
        hasher.write(&text);
        let hash = hasher.finish();
        let content = match self.read {
            Some((_, before)) if before == hash => self.content,
            _ => parse(&text).map(Arc::new).map_err(|why| format!("{}: {why}", path.display()).into()),
        };
        Ok(Look { read: Some((stamp, hash)), content })
    }
}

// === impl Stamp ===

impl Stamp {
    fn of(metadata: &fs::Metadata) -> io::Result<Stamp> {
        let modified = metadata.modified()?;
        let settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age >= SETTLED);
        Ok(Stamp { modified, length: metadata.len(), settled })
    }
}

fn parse(text: &[u8]) -> Result<Services, serde_json::Error> {
    let document: Document = serde_json::from_slice(text)?;
    let mut refused = 0;
    let mut services = Services::new();
    for (service, written) in document.services {
        let all = written.map(|written| sift(&service, written, &mut refused));
        services.insert(service, all);
    }
    if refused > MAX_WARNINGS {
        tracing::warn!(refused, "more instances were refused than are named here");
    }
    Ok(services)
}

/// The valid instances. If several have the same id, the first one is kept.
fn sift(service: &str, written: Vec<&RawValue>, refused: &mut usize) -> Vec<Arc<Instance>> {
    let mut ids = HashSet::with_capacity(written.len());
    let mut instances = Vec::with_capacity(written.len());
    for (at, text) in written.into_iter().enumerate() {
        match instance(service, text) {
            Ok(instance) if ids.insert(instance.id.clone()) => instances.push(Arc::new(instance)),
            other => {
                *refused += 1;
                if *refused <= MAX_WARNINGS {
                    let why = match other {
                        Ok(instance) => format!("another instance has the id `{}`", instance.id),
                        Err(why) => why.to_string(),
                    };
                    tracing::warn!(%service, at, %why, "instance refused");
                }
            }
        }
    }
    instances
}

fn instance(service: &str, text: &RawValue) -> Result<Instance, RegistryError> {
    let parsed = serde_json::from_str::<Instance>(text.get());
    let mut instance = parsed.map_err(|e| RegistryError::new(e.to_string()))?;
    if instance.service.is_empty() {
        instance.service = service.into();
    }
    if instance.service != service {
        return Err(RegistryError::new(format!("it says it belongs to `{}`", instance.service)));
    }
    instance.check()?;
    Ok(instance)
}
