//! Whether what is on disk is what was written.

use std::{
    fs::OpenOptions,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
};

use rusqlite::{Connection, ErrorCode, wal::CheckpointMode};

use crate::store::StoreError;

/// Findings of SQLite that are told; the first says most.
const FINDINGS_MAX: usize = 20;

/// As much of the write-ahead log is in memory at once.
const COPY_BYTES: usize = 1024 * 1024;

/// Writes the write-ahead log of the last process anew, in its place and byte for byte, and flushes it. What a flush that
/// failed was to make safe the system holds for written, and gives back when it is read: moved into the database, a part
/// of it could reach the disk where the log itself never did. Source: Rebello et al., "Can Applications Recover from
/// fsync Failures?", USENIX ATC 2020.
pub(super) fn renew_log(database: &Path) -> io::Result<()> {
    let log = match OpenOptions::new().read(true).write(true).open(database.with_extension("db-wal")) {
        Ok(log) => log,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let length = log.metadata()?.len();
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < length {
        let left = usize::try_from(length - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let Some(part) = buffer.get_mut(..left) else { break };
        log.read_exact_at(part, at)?;
        log.write_all_at(part, at)?;
        at += left as u64;
    }
    if length > 0 { log.sync_all() } else { Ok(()) }
}

/// Moves what the last process left in the write-ahead log into the database, so that what is wrong with the disk shows
/// now. The log is bounded, so this does not take long; then the file must be as long as it says.
pub(super) fn empty_log(connection: &Connection, database: &Path) -> Result<(), StoreError> {
    let failed = |cause| StoreError::sqlite("emptying the write-ahead log", cause);
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(failed);
    match connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE) {
        Ok(_) => {}
        // Somebody reads it, or there is no room: then it stays, and the writer tries again.
        Err(error) if matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DiskFull)) => {
            return Ok(());
        }
        Err(error) => return Err(failed(error)),
    }
    let wanted = number("page_count")?.saturating_mul(number("page_size")?);
    let found = std::fs::metadata(database).map_err(|cause| StoreError::io("looking at the database", cause))?.len();
    if i64::try_from(found).unwrap_or(i64::MAX) < wanted {
        let what = format!("{} has {found} bytes of {wanted}", database.display());
        return Err(StoreError::Damaged { what });
    }
    Ok(())
}

/// Looks at every page.
pub(super) fn pages(connection: &Connection) -> Result<(), StoreError> {
    let findings = findings(connection).map_err(|cause| StoreError::sqlite("verifying the store", cause))?;
    if findings.is_empty() { Ok(()) } else { Err(StoreError::Damaged { what: findings.join("; ") }) }
}

/// What SQLite finds wrong. `quick_check` would be no faster: 1.9 GB take 2 s either way, as far as the disk keeps up,
/// since there is next to nothing in indexes.
pub(in crate::store) fn findings(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({FINDINGS_MAX})"))?;
    let rows = check.query_map([], |row| row.get::<_, String>(0))?;
    let mut findings: Vec<_> = rows.collect::<Result<_, _>>()?;
    findings.retain(|finding| finding != "ok");
    Ok(findings)
}
