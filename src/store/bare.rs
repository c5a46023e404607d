//! What SQLite alone does on this machine with the store's settings: the yardstick of `bench disk`. No broker, no
//! threads, no notes; rows of one table in and out, as many a commit as the store's writer takes.

use std::{path::Path, time::Instant};

use rusqlite::params;

use super::{Settings, StoreError, open};

/// Rows of a commit: half of them come, half of them go.
const ROWS: u64 = 2048;

/// Puts so many messages of `size` bytes into a database in that directory, each out again with the commit after;
/// messages a second.
///
/// # Errors
/// The directory cannot be used.
pub fn bare(directory: &Path, messages: u64, size: usize) -> Result<f64, StoreError> {
    let failed = |cause| StoreError::sqlite("measuring", cause);
    let settings = Settings::new(directory);
    let open::Opened { directory: _kept, writer: connection, .. } = open::open(&settings)?;
    connection.execute_batch("CREATE TABLE bare (k INTEGER PRIMARY KEY, v BLOB NOT NULL) STRICT").map_err(failed)?;
    let value = vec![b'x'; size];
    let from = Instant::now();
    {
        let mut put = connection.prepare("INSERT INTO bare VALUES (?1, ?2)").map_err(failed)?;
        let mut take = connection.prepare("DELETE FROM bare WHERE k = ?1").map_err(failed)?;
        for first in (0..messages).step_by(ROWS as usize) {
            connection.execute_batch("BEGIN IMMEDIATE").map_err(failed)?;
            for key in first..(first + ROWS).min(messages) {
                put.execute(params![key.cast_signed(), value]).map_err(failed)?;
            }
            for key in first.saturating_sub(ROWS)..first {
                take.execute([key.cast_signed()]).map_err(failed)?;
            }
            connection.execute_batch("COMMIT").map_err(failed)?;
        }
    }
    Ok(messages as f64 / from.elapsed().as_secs_f64())
}
