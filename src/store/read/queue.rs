//! Messages of queues, with what is noted of them.

use rusqlite::{OptionalExtension, Row, Rows};

use super::{Reader, StoredMessage, message};
use crate::{
    message::UnixMs,
    store::{LaneId, Note, PlaceId, QueueKey, StoreError, note, note::note_columns},
};

/// Columns of [`stored`].
const MESSAGE: &str = "SELECT key, bytes, id, type, timestamp, rest, payload FROM message";
const NOTES: &str = concat!("SELECT key, ", note_columns!(), " FROM attempt");

/// What was read of a queue.
#[derive(Debug, Default)]
pub struct Page {
    /// In order.
    pub messages: Vec<StoredMessage>,
    /// Those whose rows cannot be read: they stay where they are, for a person to look at, and hold up nobody.
    pub unreadable: Vec<QueueKey>,
}

impl Page {
    fn len(&self) -> usize {
        self.messages.len() + self.unreadable.len()
    }

    /// Adds what one row came to.
    fn put(
        &mut self,
        key: QueueKey,
        found: Result<StoredMessage, StoreError>,
    ) -> Result<Option<&StoredMessage>, StoreError> {
        match found {
            Ok(stored) => {
                self.messages.push(stored);
                Ok(self.messages.last())
            }
            Err(error @ StoreError::Unreadable { .. }) => {
                tracing::error!(?key, "passed over a message on disk: {error}");
                self.unreadable.push(key);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl Reader<'_> {
    /// Messages of a lane with a sequence above `after`, in order, without those that wait for a time: at most `limit`,
    /// and no more once they come to `bytes_max`; at least one, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the database cannot be read.
    pub fn queue_page(&self, lane: LaneId, after: u64, limit: usize, bytes_max: usize) -> Result<Page, StoreError> {
        let failed = |cause| StoreError::sqlite("reading a queue", cause);
        let range = (lane.key(after).as_i64(), lane.key(u64::MAX).as_i64());
        let sql = format!("{MESSAGE} WHERE key > ?1 AND key <= ?2 ORDER BY key");
        let mut messages = self.connection.prepare_cached(&sql).map_err(failed)?;
        let mut messages = messages.query(range).map_err(failed)?;
        // Both in the order of keys, side by side: almost no message has a note, and a join would look for each.
        let sql = format!("{NOTES} WHERE key > ?1 AND key <= ?2 ORDER BY key");
        let mut notes = self.connection.prepare_cached(&sql).map_err(failed)?;
        let mut notes = Notes::new(notes.query(range).map_err(failed)?)?;
        let (mut page, mut bytes) = (Page::default(), 0);
        while page.len() < limit && (page.messages.is_empty() || bytes < bytes_max) {
            let Some(row) = messages.next().map_err(failed)? else { break };
            let key: i64 = row.get(0).map_err(failed)?;
            let note = notes.of(key)?;
            if note.as_ref().is_some_and(|note| note.due.is_some()) {
                continue;
            }
            if let Some(stored) = page.put(QueueKey::from_i64(key), stored(row, note))? {
                bytes += stored.bytes as usize;
            }
        }
        Ok(page)
    }

    /// What waits in a queue, earliest first: the first `limit` behind `after`.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn queue_later(
        &self,
        queue: PlaceId,
        after: Option<(UnixMs, QueueKey)>,
        limit: usize,
    ) -> Result<Vec<(UnixMs, QueueKey)>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading what waits in a queue", cause);
        let (due, key) = after.map_or((-1, -1), |(due, key)| (note::time(due), key.as_i64()));
        let sql = "SELECT due, key FROM attempt INDEXED BY attempt_due \
                   WHERE key >> 51 = ?1 AND due IS NOT NULL AND (due, key) > (?2, ?3) ORDER BY due, key LIMIT ?4";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let pair = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?.unsigned_abs(), QueueKey::from_i64(row.get(1)?)));
        let rows = statement.query_map((queue.0, due, key, bounded(limit)), pair).map_err(failed)?;
        rows.collect::<Result<_, _>>().map_err(failed)
    }

    /// These messages, as far as they are there, in the order asked for.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the database cannot be read.
    pub fn queue_messages(&self, keys: &[QueueKey]) -> Result<Page, StoreError> {
        let mut page = Page::default();
        for key in keys {
            if let Some(found) = self.queue_message(*key).transpose() {
                page.put(*key, found)?;
            }
        }
        Ok(page)
    }

    /// Messages of all lanes together by sequence, above `after`: for people, who see what waits as well.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the database cannot be read.
    pub fn queue_browse(&self, queue: PlaceId, after: u64, limit: usize) -> Result<Vec<StoredMessage>, StoreError> {
        let failed = |cause| StoreError::sqlite("browsing a queue", cause);
        let mut statement = self
            .connection
            .prepare_cached("SELECT key FROM message WHERE key > ?1 AND key <= ?2 ORDER BY key LIMIT ?3")
            .map_err(failed)?;
        // The first of each lane, of which the first by sequence are wanted.
        let mut keys = Vec::new();
        for lane in (0..16).map(|lane| LaneId::new(queue, lane)) {
            let range = (lane.key(after).as_i64(), lane.key(u64::MAX).as_i64(), bounded(limit));
            let rows = statement.query_map(range, |row| Ok(QueueKey::from_i64(row.get(0)?))).map_err(failed)?;
            for key in rows {
                keys.push(key.map_err(failed)?);
            }
        }
        keys.sort_unstable_by_key(|key| key.sequence());
        keys.truncate(limit);
        Ok(self.queue_messages(&keys)?.messages)
    }

    fn queue_message(&self, key: QueueKey) -> Result<Option<StoredMessage>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading a queue", cause);
        let mut statement = self.connection.prepare_cached(concat_note("WHERE key = ?1").as_str()).map_err(failed)?;
        let note = statement.query_row([key.as_i64()], |row| Ok(note::read(row, 1))).optional().map_err(failed)?;
        let note = note.transpose()?;
        let sql = format!("{MESSAGE} WHERE key = ?1");
        let mut statement = self.connection.prepare_cached(&sql).map_err(failed)?;
        let found = statement.query_row([key.as_i64()], |row| Ok(stored(row, note))).optional().map_err(failed)?;
        found.transpose()
    }
}

fn concat_note(condition: &str) -> String {
    format!("{NOTES} {condition}")
}

/// As a parameter of SQL.
pub(super) fn bounded(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

fn stored(row: &Row<'_>, note: Option<Note>) -> Result<StoredMessage, StoreError> {
    let numbers = || -> rusqlite::Result<_> { Ok((QueueKey::from_i64(row.get(0)?), row.get(1)?)) };
    let (key, bytes) = numbers().map_err(|cause| StoreError::sqlite("reading a queue", cause))?;
    Ok(StoredMessage { key, message: message(row, 2)?, bytes, note })
}

/// Notes in the order of keys, one of which has been read already.
struct Notes<'a> {
    rows: Rows<'a>,
    next: Option<(i64, Note)>,
}

impl<'a> Notes<'a> {
    fn new(rows: Rows<'a>) -> Result<Self, StoreError> {
        let mut notes = Self { rows, next: None };
        notes.advance()?;
        Ok(notes)
    }

    /// The note of a message; asked for in the order of keys.
    fn of(&mut self, key: i64) -> Result<Option<Note>, StoreError> {
        while let Some((at, note)) = self.next.take() {
            if at > key {
                self.next = Some((at, note));
                return Ok(None);
            }
            self.advance()?;
            if at == key {
                return Ok(Some(note));
            }
        }
        Ok(None)
    }

    fn advance(&mut self) -> Result<(), StoreError> {
        let failed = |cause| StoreError::sqlite("reading notes", cause);
        self.next = match self.rows.next().map_err(failed)? {
            Some(row) => Some((row.get(0).map_err(failed)?, note::read(row, 1)?)),
            None => None,
        };
        Ok(())
    }
}
