//! The files: a line of JSON, then the content. A file is whole or not there.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use chassis_core::{
    contracts::{Contract, ContractOwner, MAX_CONTENT},
    files,
};
use serde::{Deserialize, Serialize};

use super::store::Hashed;
use crate::{server::snapshot::write_whole, wire::etag_of};

/// The first line of a file.
#[derive(Serialize, Deserialize)]
struct Head {
    service: String,
    version: String,
    environment: String,
    name: String,
    media_type: String,
    /// The hash of the content.
    etag: String,
    /// The number of the change that brought it, which orders versions.
    number: u64,
}

const END: &str = "contract";
/// The longest file.
const MOST: u64 = MAX_CONTENT as u64 + (16 << 10);

/// Writes the file of a contract.
pub(super) fn write(folder: &Path, number: u64, of: &ContractOwner, hashed: &Hashed) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let ContractOwner { service, version, environment } = of.clone();
    let Hashed { contract: Contract { name, media_type, content }, etag } = hashed.clone();
    let mut bytes =
        serde_json::to_vec(&Head { service, version, environment, name, media_type, etag, number })?;
    bytes.push(b'\n');
    bytes.extend_from_slice(&content);
    write_whole(&path(folder, of, &hashed.contract.name), &bytes)
}

/// Removes the file of a contract, if it is there.
pub(super) fn remove(folder: &Path, of: &ContractOwner, name: &str) -> io::Result<()> {
    match fs::remove_file(path(folder, of, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All contracts of a folder, in the order in which they were published.
pub(super) fn read(folder: &Path) -> io::Result<Vec<(u64, ContractOwner, Hashed)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_none_or(|end| end != END) {
            continue; // one that was not written to its end
        }
        match read_one(&path) {
            Ok(read) => all.push(read),
            Err(why) => {
                tracing::warn!(target: "chassis", path = %path.display(), why, "the file of a contract is left out");
            }
        }
    }
    all.sort_by_key(|(number, ..)| *number);
    Ok(all)
}

fn read_one(path: &Path) -> Result<(u64, ContractOwner, Hashed), String> {
    let bytes = files::read(path, MOST).map_err(|error| error.to_string())?;
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
    let head: Head = serde_json::from_slice(&bytes[..line]).map_err(|error| error.to_string())?;
    let content = bytes[line + 1..].to_vec();
    let of = ContractOwner::new(head.service, head.version).in_environment(head.environment);
    let hashed = Hashed::new(Contract::new(head.name, head.media_type, content));
    if hashed.etag != head.etag {
        return Err("its content is damaged".to_owned());
    }
    of.check(std::slice::from_ref(&hashed.contract)).map_err(|error| error.to_string())?;
    Ok((head.number, of, hashed))
}

/// Names may have any characters: the file is called by their hash.
fn path(folder: &Path, of: &ContractOwner, name: &str) -> PathBuf {
    let ContractOwner { service, version, environment } = of;
    let key = serde_json::json!([service, version, environment, name]).to_string();
    folder.join(format!("{}.{END}", etag_of(key.as_bytes())))
}
