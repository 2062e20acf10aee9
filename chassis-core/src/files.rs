//! Reads regular files, and refuses at once all other kinds, which could block the reader.
//!
//! A pipe blocks the thread that opens it until a writer opens its other end, and with it the end of the
//! process; a device may never end. Settings, documents of registries and lease files are read with these
//! functions.
use std::{
    fs::{self, File, FileType, OpenOptions},
    io::{self, Read},
    path::Path,
};

/// Opens a regular file for reading, without blocking.
///
/// # Errors
/// Another kind of file, which the error names: a directory, a pipe, a socket, a device.
pub fn open(path: &Path) -> io::Result<File> {
    regular(&fs::metadata(path)?)?; // before opening, which may have an effect on a device
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        // Another file may be there by now.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    }
    let file = options.open(path)?;
    regular(&file.metadata()?)?;
    Ok(file)
}

/// The content of a regular file of at most `most` bytes.
///
/// # Errors
/// As [`open`], and for a larger file; of a file that grows without end no more is read.
pub fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_open(&open(path)?, most)
}

/// The same for an open file.
pub fn read_open(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let long = |length: u64| io::Error::other(format!("{length} bytes are too many; the limit is {most}"));
    let length = file.metadata()?.len();
    if length > most {
        return Err(long(length));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        read if read > most => Err(long(read)),
        _ => Ok(bytes),
    }
}

fn regular(metadata: &fs::Metadata) -> io::Result<()> {
    match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::other(format!("{} is no regular file", kind(metadata.file_type())))),
    }
}

fn kind(of: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        match of {
            of if of.is_fifo() => return "a pipe",
            of if of.is_socket() => return "a socket",
            of if of.is_block_device() || of.is_char_device() => return "a device",
            _ => {}
        }
    }
    if of.is_dir() { "a directory" } else { "what is there" }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn only_regular_files_are_read() {
        let dir = std::env::temp_dir().join(format!("chassis-files-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name);
        let made = std::process::Command::new("mkfifo").arg(at("pipe")).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo is there");
        symlink("/dev/zero", at("endless")).unwrap();
        symlink(at("pipe"), at("link")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("file"), "12345").unwrap();
        let said = |name: &str, most| read(&at(name), most).map_err(|e| e.to_string());
        for (name, why) in [
            ("pipe", "a pipe is no regular file"),
            ("link", "a pipe is no regular file"),
            ("endless", "a device is no regular file"),
            ("socket", "a socket is no regular file"),
            (".", "a directory is no regular file"),
        ] {
            assert_eq!(said(name, 100), Err(why.into()), "{name}");
        }
        assert_eq!(said("file", 5), Ok(b"12345".into()));
        assert_eq!(said("file", 4), Err("5 bytes are too many; the limit is 4".into()));
        assert_eq!(read(&at("none"), 1).unwrap_err().kind(), io::ErrorKind::NotFound);
        // Their length is reported as 0.
        assert_eq!(
            read(Path::new("/proc/self/status"), 10).map_err(|e| e.to_string()),
            Err("11 bytes are too many; the limit is 10".into())
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
