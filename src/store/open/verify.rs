//! Whether what is on disk is what was written.

use std::path::Path;

use rusqlite::{Connection, ErrorCode, wal::CheckpointMode};

use crate::store::StoreError;

/// Findings of SQLite that are told; the first says most.
const FINDINGS_MAX: usize = 20;

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
