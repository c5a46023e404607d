//! Notes as rows: the five columns that `attempt`, `retry` and `ledger` share.

use rusqlite::Row;

use super::{Note, StoreError};
use crate::message::{FailedAttempt, UnixMs};

/// The columns of a note, in the order that [`read`] takes them.
macro_rules! note_columns {
    () => {
        "attempt, out, crashes, due, failures"
    };
}
pub(super) use note_columns;

/// A time as the database has it. One beyond its range is as good as never.
pub(super) fn time(at: UnixMs) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

/// Failures as people and programs can read them; `None` where there are none.
pub(super) fn failures(of: &Note) -> Option<String> {
    if of.failures.is_empty() {
        return None;
    }
    serde_json::to_string(&of.failures).ok()
}

/// A note out of a row, whose columns begin there.
pub(super) fn read(row: &Row<'_>, first: usize) -> Result<Note, StoreError> {
    let from = |row: &Row<'_>| {
        Ok((row.get(first)?, row.get(first + 1)?, row.get(first + 2)?, row.get::<_, Option<i64>>(first + 3)?))
    };
    let (attempt, out, crashes, due) = from(row).map_err(|cause| StoreError::sqlite("reading a note", cause))?;
    let failures = row.get_ref(first + 4).map_err(|cause| StoreError::sqlite("reading a note", cause))?;
    let failures: Vec<FailedAttempt> = match failures.as_str_or_null() {
        Ok(Some(text)) => serde_json::from_str(text).map_err(|error| StoreError::Unreadable {
            what: format!("failures of a message cannot be read: {error}"),
        })?,
        Ok(None) => Vec::new(),
        Err(error) => {
            return Err(StoreError::Unreadable { what: format!("failures of a message are no text: {error}") });
        }
    };
    Ok(Note { attempt, out, crashes, due: due.map(|due| due.unsigned_abs()), failures })
}
