//! From a directory to a database that can be relied on. Everything that can be found out without touching anything is
//! found out first.
//!
//! Start at [`open`].

mod connection;
mod directory;
mod inspect;
pub(super) mod marker;
pub(super) mod verify;

use std::path::{Path, PathBuf};

use rusqlite::Connection;

pub use self::directory::lock;
pub(super) use self::{
    connection::{BUSY_MS, reader},
    directory::{Directory, sync},
    inspect::failed,
};
use super::{Settings, StoreError};

/// The database, in the store's directory. SQLite keeps `-wal` and `-shm` beside it.
const DATABASE: &str = "store.db";
/// Held locked by the process that has the store.
const LOCK: &str = "store.lock";
/// How it begins; the number of the process follows.
const LOCK_TEXT: &str = "helixmq store, in use by process ";

/// What an open store has.
pub(super) struct Opened {
    pub(super) directory: Directory,
    pub(super) database: PathBuf,
    pub(super) writer: Connection,
}

/// Takes a directory for this process, and makes a store of it or opens the one that is there.
pub(super) fn open(settings: &Settings) -> Result<Opened, StoreError> {
    inspect::inspect(&settings.directory)?;
    let directory = Directory::open(&settings.directory)?;
    let database = directory.database();
    // Once more: now nobody else makes one.
    if !inspect::database(&settings.directory)? {
        directory.make_database(connection::make)?;
    }
    let failed = |cause| inspect::failed(&settings.directory, "flushing the write-ahead log of", cause);
    verify::renew_log(&database).map_err(failed)?;
    let writer = connection::writer(&database, settings)?;
    verify::empty_log(&writer, &database)?;
    let failed = |cause| inspect::failed(&settings.directory, "looking at", cause);
    if let Some(what) = marker::find(&settings.directory).map_err(failed)? {
        tracing::warn!(%what, "the store failed the last time; it is verified before anything else");
        verify::pages(&writer)?;
        marker::remove(&settings.directory).map_err(failed)?;
        tracing::info!("the store was verified and is whole");
    }
    Ok(Opened { directory, database, writer })
}

/// The database of a directory that another process may have open.
pub(super) fn existing(directory: &Path) -> Result<PathBuf, StoreError> {
    if inspect::database(directory)? {
        return Ok(directory.join(DATABASE));
    }
    Err(StoreError::Foreign { path: directory.to_owned(), what: "holds no store".to_owned() })
}
