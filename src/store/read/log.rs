//! Messages of topics.

use rusqlite::{OptionalExtension, Row};

use super::{Reader, StoredRecord, message, queue::bounded};
use crate::{
    message::UnixMs,
    store::{LogKey, PartitionId, StoreError, note, write::TIME_OFFSETS},
};

impl Reader<'_> {
    /// Messages of a partition from an offset on, in order, all below `end`: at most `limit`, and no more once they come
    /// to `bytes_max`; at least one, if there is one. Those that outlived retention are among them.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the database cannot be read.
    pub fn log_page(
        &self,
        partition: PartitionId,
        from: u64,
        end: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading a topic", cause);
        let sql = "SELECT key, bytes, appended, id, type, timestamp, rest, payload FROM log \
                   WHERE key >= ?1 AND key < ?2 ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let mut rows = statement.query(range(partition, from, end)).map_err(failed)?;
        let (mut page, mut bytes) = (Vec::with_capacity(limit.min(1024)), 0);
        while page.len() < limit && (page.is_empty() || bytes < bytes_max) {
            let Some(row) = rows.next().map_err(failed)? else { break };
            match record(row) {
                Ok(record) => {
                    bytes += record.bytes as usize;
                    page.push(record);
                }
                // It stays where it is, for a person to look at, and holds up nobody.
                Err(error @ StoreError::Unreadable { .. }) => {
                    tracing::error!(partition = partition.0, "passed over a message on disk: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(page)
    }

    /// The first offset from `start` on whose timestamp is not before `at`; `None`: there is none. Timestamps are the
    /// publishers' and follow no order, so later ones may be older.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn log_since(&self, partition: PartitionId, start: u64, at: UnixMs) -> Result<Option<u64>, StoreError> {
        let failed = |cause| StoreError::sqlite("looking for a time in a topic", cause);
        let mut segments = self
            .connection
            .prepare_cached("SELECT key FROM log_time WHERE key >= ?1 AND key < ?2 AND timestamp >= ?3 ORDER BY key")
            .map_err(failed)?;
        let mut messages = self
            .connection
            .prepare_cached("SELECT key FROM log WHERE key >= ?1 AND key < ?2 AND timestamp >= ?3 ORDER BY key LIMIT 1")
            .map_err(failed)?;
        let at = note::time(at);
        let (from, to) = range(partition, start - start % TIME_OFFSETS, u64::MAX);
        let mut segments = segments.query((from, to, at)).map_err(failed)?;
        while let Some(segment) = segments.next().map_err(failed)? {
            let first = LogKey::from_i64(segment.get(0).map_err(failed)?).offset();
            // A segment can be chosen for a message that retention has taken since.
            let (from, to) = range(partition, first.max(start), first + TIME_OFFSETS);
            let found = messages.query_row((from, to, at), |row| row.get(0)).optional().map_err(failed)?;
            if let Some(key) = found {
                return Ok(Some(LogKey::from_i64(key).offset()));
            }
        }
        Ok(None)
    }

    /// Offset and size of the oldest messages from `start` on that were appended before `before`, at most `limit`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn log_aged(
        &self,
        partition: PartitionId,
        start: u64,
        before: UnixMs,
        limit: usize,
    ) -> Result<Vec<(u64, u32)>, StoreError> {
        let mut oldest = self.oldest(partition, start, limit)?;
        let kept = oldest.iter().position(|(_, _, appended)| *appended >= note::time(before));
        oldest.truncate(kept.unwrap_or(oldest.len()));
        Ok(oldest.into_iter().map(|(offset, bytes, _)| (offset, bytes)).collect())
    }

    /// Offset and size of the oldest messages from `start` on, at most `limit`: what to give up for size.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn log_sizes(&self, partition: PartitionId, start: u64, limit: usize) -> Result<Vec<(u64, u32)>, StoreError> {
        let oldest = self.oldest(partition, start, limit)?;
        Ok(oldest.into_iter().map(|(offset, bytes, _)| (offset, bytes)).collect())
    }

    fn oldest(&self, partition: PartitionId, start: u64, limit: usize) -> Result<Vec<(u64, u32, i64)>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading the age of a topic", cause);
        let sql = "SELECT key, bytes, appended FROM log WHERE key >= ?1 AND key <= ?2 ORDER BY key LIMIT ?3";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let (from, to) = range(partition, start, u64::MAX);
        let one = |row: &Row<'_>| Ok((LogKey::from_i64(row.get(0)?).offset(), row.get(1)?, row.get(2)?));
        let rows = statement.query_map((from, to, bounded(limit)), one).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }
}

/// Keys of a partition from an offset to before another.
fn range(partition: PartitionId, from: u64, end: u64) -> (i64, i64) {
    (LogKey::new(partition, from).as_i64(), LogKey::new(partition, end).as_i64())
}

fn record(row: &Row<'_>) -> Result<StoredRecord, StoreError> {
    let numbers = || -> rusqlite::Result<_> {
        Ok((LogKey::from_i64(row.get(0)?).offset(), row.get(1)?, row.get::<_, i64>(2)?.unsigned_abs()))
    };
    let (offset, bytes, appended) = numbers().map_err(|cause| StoreError::sqlite("reading a topic", cause))?;
    Ok(StoredRecord { offset, message: message(row, 3)?, bytes, appended })
}
