//! What can be found out about a directory without touching anything.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, StatVfsMountFlags};

use super::{DATABASE, LOCK, LOCK_TEXT};
use crate::store::{StoreError, schema};

/// How a database of SQLite begins. Source: SQLite, "Database File Format", 1.3.
const MAGIC: &[u8] = b"SQLite format 3\0";
/// Room that a new store takes at once, with some to spare.
const NEW_BYTES: u64 = 4 * 1024 * 1024;

#[cfg(target_os = "linux")]
/// File systems where locks or flushes mean little. FUSE is not among them: local ones are, and nothing here tells them
/// from the others. Source: Linux, `include/uapi/linux/magic.h`, and statfs(2).
const NETWORK: &[(u32, &str)] = &[
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB2"),
    (0x5346_414f, "AFS"),
    (0x7375_7245, "Coda"),
    (0x00c3_6400, "Ceph"),
    (0x0102_1997, "9p"),
    (0x0bd0_0bd0, "Lustre"),
    (0x564c, "NCP"),
];

/// Refuses what cannot be a store, or cannot be used. Says whether there is one.
pub(super) fn inspect(directory: &Path) -> Result<bool, StoreError> {
    let there = existing(directory);
    let failed = |cause: io::Error| failed(directory, "looking at", cause);
    if !fs::metadata(&there).map_err(failed)?.is_dir() {
        return Err(StoreError::Foreign { path: there, what: "is no directory".to_owned() });
    }
    if let Some(kind) = network(&there).map_err(failed)? {
        return Err(StoreError::NetworkFileSystem { directory: directory.to_owned(), kind });
    }
    if is_fuse(&there) {
        tracing::warn!("the store is on a FUSE file system: what it confirms is as safe as the program behind that");
    }
    let volume = rustix::fs::statvfs(&there).map_err(|error| failed(error.into()))?;
    if volume.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(StoreError::ReadOnly { directory: directory.to_owned() });
    }
    rustix::fs::access(&there, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| failed(error.into()))?;
    lock_file(&directory.join(LOCK)).map_err(failed)??;
    let found = database(directory)?;
    if found {
        usable(directory, |path| Ok(rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK)?))?;
    }
    let free = volume.f_bavail.saturating_mul(volume.f_frsize);
    if !found && free < NEW_BYTES {
        let limit = format!(
            "a new store needs {} KiB and the file system of {} has {} KiB free; free some, or choose another directory",
            NEW_BYTES / 1024,
            directory.display(),
            free / 1024
        );
        return Err(StoreError::NoSpace { limit: limit.into() });
    }
    Ok(found)
}

/// The directory, or the nearest above it that is there.
fn existing(directory: &Path) -> PathBuf {
    let mut ancestors = directory.ancestors().filter(|path| !path.as_os_str().is_empty());
    ancestors.find(|path| path.exists()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(target_os = "linux")]
fn network(path: &Path) -> io::Result<Option<&'static str>> {
    Ok(network_name(rustix::fs::statfs(path)?.f_type as u32))
}

#[cfg(target_os = "linux")]
fn network_name(number: u32) -> Option<&'static str> {
    NETWORK.iter().find(|(kind, _)| *kind == number).map(|(_, name)| *name)
}

#[cfg(target_os = "linux")]
fn is_fuse(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type as u32 == 0x6573_5546)
}

#[cfg(not(target_os = "linux"))]
fn is_fuse(_path: &Path) -> bool {
    false
}

/// Elsewhere the system has no numbers for them, and SQLite's own locks are what there is.
#[cfg(not(target_os = "linux"))]
fn network(_path: &Path) -> io::Result<Option<&'static str>> {
    Ok(None)
}

/// Refuses files that this user cannot read and write: SQLite would open some of them to read only, and the first
/// message would find out. Asked by name, as opening a file and closing it would give back SQLite's locks on it.
fn usable(directory: &Path, access: impl Fn(&Path) -> io::Result<()>) -> Result<(), StoreError> {
    for name in [DATABASE, &format!("{DATABASE}-wal"), &format!("{DATABASE}-shm")] {
        let path = directory.join(name);
        match access(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(&path, "looking at", error)),
            _ => {}
        }
    }
    Ok(())
}

/// A file of that name that we did not write is somebody else's.
fn lock_file(path: &Path) -> io::Result<Result<(), StoreError>> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(64).read_to_end(&mut text)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Ok(())),
        Err(error) => return Err(error),
    };
    // It is never synced: a power loss may leave its length, and none or the end of its text.
    let ours = text.first().is_none_or(|first| *first == 0) || text.starts_with(LOCK_TEXT.as_bytes());
    let foreign = || StoreError::Foreign { path: path.to_owned(), what: "was not written by helixmq".to_owned() };
    Ok(if ours { Ok(()) } else { Err(foreign()) })
}

/// Whether there is a database, and it is ours.
pub(super) fn database(directory: &Path) -> Result<bool, StoreError> {
    let path = directory.join(DATABASE);
    let foreign = |what: &str| Err(StoreError::Foreign { path: path.clone(), what: what.to_owned() });
    let damaged = |what: &str| Err(StoreError::Damaged { what: format!("{} {what}", path.display()) });
    match fs::symlink_metadata(&path) {
        Ok(found) if !found.is_file() => return foreign("is no file"),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            // SQLite would throw it away.
            let wal = directory.join(format!("{DATABASE}-wal"));
            let left = fs::metadata(wal).is_ok_and(|wal| wal.len() > 0);
            return if left { damaged("is missing, and its write-ahead log is there") } else { Ok(false) };
        }
        Err(error) => return Err(failed(directory, "looking at", error)),
    }
    let mut header = Vec::new();
    let read = File::open(&path).and_then(|file| file.take(100).read_to_end(&mut header));
    read.map_err(|error| failed(directory, "reading", error))?;
    if header.is_empty() {
        return damaged("is empty");
    }
    if !header.starts_with(MAGIC) {
        return foreign("is no database");
    }
    let number = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(|bytes| i64::from(u32::from_be_bytes(bytes)))
    };
    let (Some(version), Some(application)) = (number(60), number(68)) else { return damaged("is cut off") };
    if application != schema::APPLICATION_ID {
        return foreign("is a database of another program");
    }
    if version > schema::VERSION {
        return Err(StoreError::Newer { directory: directory.to_owned(), found: version, known: schema::VERSION });
    }
    Ok(true)
}

/// An error of the file system, by what is to be done about it.
pub(in crate::store) fn failed(directory: &Path, what: &str, cause: io::Error) -> StoreError {
    let path = directory.to_owned();
    match cause.kind() {
        ErrorKind::PermissionDenied => StoreError::NoPermission { path, cause: std::sync::Arc::new(cause) },
        ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { directory: path },
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::NoSpace {
            limit: format!("there is no space left for the store {}; free some", directory.display()).into(),
        },
        _ => StoreError::io(format!("{what} {}", directory.display()), cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn network_file_systems_are_known_by_their_numbers() {
        let numbers = [(0x6969, Some("NFS")), (0xff53_4d42, Some("CIFS")), (0xef53, None), (0x0102_1994, None)];
        numbers.into_iter().for_each(|(number, name)| assert_eq!(network_name(number), name, "{number:x}"));
    }

    /// Root may write everything, so who may not is played.
    #[test]
    fn a_file_that_may_not_be_written_is_named() {
        let directory = Path::new("/data");
        let denied = |denied: &str| {
            let denied = directory.join(denied);
            let access = |path: &Path| {
                let kind = if path == denied { ErrorKind::PermissionDenied } else { ErrorKind::NotFound };
                Err(kind.into())
            };
            usable(directory, access)
        };
        for name in ["store.db", "store.db-wal", "store.db-shm"] {
            let error = denied(name).unwrap_err();
            assert!(
                matches!(&error, StoreError::NoPermission { path, .. } if *path == directory.join(name)),
                "{error}"
            );
        }
        denied("another").unwrap();
    }

    #[test]
    fn what_the_system_says_becomes_what_to_do() {
        let text = |kind: ErrorKind| failed(Path::new("/data"), "making", kind.into()).to_string();
        assert!(
            text(ErrorKind::PermissionDenied).contains("may not be written by this user; give the directory to it")
        );
        assert!(text(ErrorKind::ReadOnlyFilesystem).contains("is mounted read-only; mount it writable"));
        assert!(text(ErrorKind::StorageFull).contains("no space left for the store /data; free some"));
        assert_eq!(text(ErrorKind::Other), "making /data failed");
    }
}
