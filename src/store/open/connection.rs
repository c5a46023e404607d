//! Connections with everything set that safety and speed depend on, and read back.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::store::{Settings, StoreError, Synchronous, schema};

/// Source: SQLite, "WAL-reset bug", fixed in 3.51.3.
const SQLITE_MIN: i32 = 3_051_003;

/// The connection that writes.
pub(in crate::store) fn writer(path: &Path, settings: &Settings) -> Result<Connection, StoreError> {
    let failed = |cause| StoreError::sqlite("opening the store", cause);
    if rusqlite::version_number() < SQLITE_MIN {
        let found = rusqlite::version();
        return Err(StoreError::Damaged {
            what: format!("this program was built with SQLite {found}, which is too old"),
        });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    let set = |name: &str, value: i64| connection.pragma_update(None, name, value).map_err(failed);
    set("page_size", 8192)?;
    set("auto_vacuum", 2)?;
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    set("synchronous", if settings.synchronous == Synchronous::Full { 2 } else { 1 })?;
    set("wal_autocheckpoint", 2000)?;
    set("journal_size_limit", 64 * 1024 * 1024)?;
    set("cache_size", -65_536)?;
    set("busy_timeout", 10_000)?;
    set("application_id", schema::APPLICATION_ID)?;
    schema::migrate(&mut connection, schema::MIGRATIONS).map_err(failed)?;
    Ok(connection)
}

/// One that reads.
pub(in crate::store) fn reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |cause| StoreError::sqlite("opening the store to read", cause);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -8192).map_err(failed)?;
    connection.pragma_update(None, "busy_timeout", 10_000).map_err(failed)?;
    Ok(connection)
}
