//! A copy of a store while it runs: one file, of one moment, without what was free.

use std::{
    fs::{self, File},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::store::{StoreError, open, schema};

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backup {
    /// The copy. It becomes a store again as `store.db` in an empty directory.
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Blocking. Copies the store of a directory to a file that is not there yet; the file is whole, or is not there. The
/// write-ahead log of a running engine grows meanwhile.
///
/// # Errors
/// [`StoreError::Exists`]: choose another name. Otherwise the store cannot be read, or the copy not be written.
pub fn backup(directory: &Path, to: &Path) -> Result<Backup, StoreError> {
    let connection = open::reader(&open::existing(directory)?)?;
    // Reads something, so that a store that cannot be read says so before a file is made.
    schema::version(&connection).map_err(|cause| StoreError::sqlite("reading the store", cause))?;
    let folder = to.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = to.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let failed = |cause| open::failed(folder, "writing a backup to", cause);
    match fs::symlink_metadata(to) {
        Ok(_) => return Err(StoreError::Exists { path: to.to_owned() }),
        Err(cause) if cause.kind() == ErrorKind::NotFound => {}
        Err(cause) => return Err(failed(cause)),
    }
    // Gone again whatever happens: of two backups to one name each has its own.
    let part = tempfile::Builder::new().prefix(&format!(".{name}.")).suffix(".part").tempfile_in(folder);
    let part = part.map_err(failed)?;
    connection
        .execute("VACUUM INTO ?1", [part.path().to_string_lossy()])
        .map_err(|cause| StoreError::sqlite("copying the store", cause))?;
    // Opened anew: whatever SQLite wrote, this sees to it that it is on disk.
    let copy = File::open(part.path()).map_err(failed)?;
    copy.sync_all().map_err(failed)?;
    let bytes = copy.metadata().map_err(failed)?.len();
    part.persist_noclobber(to).map_err(|error| match error.error.kind() {
        ErrorKind::AlreadyExists => StoreError::Exists { path: to.to_owned() },
        _ => failed(error.error),
    })?;
    open::sync(folder).map_err(failed)?;
    Ok(Backup { file: to.to_owned(), bytes })
}
