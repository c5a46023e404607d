//! Connections with everything set that safety and speed depend on, and read back.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};

use crate::{
    message::now_ms,
    store::{Settings, StoreError, Synchronous, note::time, schema},
};

/// Two connections could damage the write-ahead log before. Source: SQLite, release notes of 3.51.3.
const SQLITE_MIN: i32 = 3_051_003;
/// Source: our measurements; the default of 4096 is slower with messages of some hundred bytes.
const PAGE_BYTES: i64 = 8192;
/// What the write-ahead log is cut to once it has been longer.
const WAL_BYTES: i64 = 64 * 1024 * 1024;
/// How long another process may hold the database, an operator with `sqlite3` for example.
pub(in crate::store) const BUSY_MS: i64 = 5000;

const OPENING: &str = "opening the store";

/// Makes an empty store of a new file.
pub(super) fn make(path: &Path) -> Result<(), StoreError> {
    let made = || -> rusqlite::Result<()> {
        let mut connection = Connection::open_with_flags(path, read_write())?;
        // Both only before the first table.
        connection.pragma_update(None, "page_size", PAGE_BYTES)?;
        connection.pragma_update(None, "auto_vacuum", 2)?;
        connection.pragma_update(None, "application_id", schema::APPLICATION_ID)?;
        schema::migrate(&mut connection, schema::MIGRATIONS)?;
        let insert = "INSERT INTO meta (name, value) VALUES ('created', ?1), ('version', ?2)";
        connection.execute(insert, (time(now_ms()), env!("CARGO_PKG_VERSION")))?;
        Ok(())
    };
    made().map_err(|cause| StoreError::sqlite("making the store", cause))
}

/// The connection that writes. Nothing has been written when it says that the store is newer.
pub(super) fn writer(path: &Path, settings: &Settings) -> Result<Connection, StoreError> {
    let failed = |cause| StoreError::sqlite(OPENING, cause);
    if rusqlite::version_number() < SQLITE_MIN {
        let what = format!("this program was built with SQLite {}, which can damage it", rusqlite::version());
        return Err(StoreError::Damaged { what });
    }
    let mut connection = Connection::open_with_flags(path, read_write()).map_err(failed)?;
    connection.pragma_update(None, "busy_timeout", BUSY_MS).map_err(failed)?;
    let found = schema::version(&connection).map_err(failed)?;
    if found > schema::VERSION {
        return Err(StoreError::Newer { directory: settings.directory.clone(), found, known: schema::VERSION });
    }
    // What was not flushed must not be taken for safe, so only `close` and the writer move the log into the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(failed)?;
    let synchronous = if settings.synchronous == Synchronous::Full { 2 } else { 1 };
    set(&connection, "journal_mode", "wal".to_owned())?;
    set(&connection, "synchronous", synchronous)?;
    // The writer does it itself, after it has answered, and sees what goes wrong with it: SQLite would not say.
    set(&connection, "wal_autocheckpoint", 0)?;
    set(&connection, "journal_size_limit", WAL_BYTES)?;
    set(&connection, "cache_size", -65_536)?;
    let (pages, vacuum) = (get(&connection, "page_size")?, get(&connection, "auto_vacuum")?);
    if (pages, vacuum) != (PAGE_BYTES, 2) {
        let what = format!("it has pages of {pages} bytes and auto_vacuum {vacuum}, which no version of ours makes");
        return Err(StoreError::Damaged { what });
    }
    schema::migrate(&mut connection, schema::MIGRATIONS).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    connection.set_transaction_behavior(TransactionBehavior::Immediate);
    Ok(connection)
}

/// One that reads, and cannot write.
pub(in crate::store) fn reader(path: &Path) -> Result<Connection, StoreError> {
    let failed = |cause| StoreError::sqlite("opening the store to read", cause);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.pragma_update(None, "busy_timeout", BUSY_MS).map_err(failed)?;
    connection.pragma_update(None, "cache_size", -8192).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn read_write() -> OpenFlags {
    OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX
}

/// Sets, and reads back: SQLite says nothing about what it does not take.
fn set<T>(connection: &Connection, name: &'static str, value: T) -> Result<(), StoreError>
where
    T: rusqlite::ToSql + rusqlite::types::FromSql + PartialEq + std::fmt::Display,
{
    let failed = |cause| StoreError::sqlite(OPENING, cause);
    connection.pragma_update(None, name, &value).map_err(failed)?;
    let found: T = connection.pragma_query_value(None, name, |row| row.get(0)).map_err(failed)?;
    if found == value {
        return Ok(());
    }
    Err(StoreError::Damaged { what: format!("SQLite keeps {name} at {found} where {value} is needed") })
}

fn get(connection: &Connection, name: &str) -> Result<i64, StoreError> {
    connection.pragma_query_value(None, name, |row| row.get(0)).map_err(|cause| StoreError::sqlite(OPENING, cause))
}
