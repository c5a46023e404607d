//! Questions to the database, each answered from one state of it. A page has a bound on messages and on bytes, so that
//! no answer takes long or much memory, and no reader holds the write-ahead log for long.

mod log;
mod pool;
mod queue;

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, Row, types::ValueRef};
use uuid::Uuid;

pub(super) use self::pool::Pool;
pub use self::queue::Page;
use super::{
    LedgerKey, Mark, MarkKey, Note, QueueKey, StoreError, note,
    note::note_columns,
    record::{self, Columns},
};
use crate::message::{Message, MessageId, UnixMs};

/// One state of the database.
#[derive(Debug)]
pub struct Reader<'a> {
    connection: &'a Connection,
}

/// A message of a queue, as it lies on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredMessage {
    /// Where.
    pub key: QueueKey,
    /// What.
    pub message: Arc<Message>,
    /// What it counts towards limits.
    pub bytes: u32,
    /// What is noted of it.
    pub note: Option<Note>,
}

/// A message of a topic, as it lies on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    /// Where in its partition.
    pub offset: u64,
    /// What.
    pub message: Arc<Message>,
    /// What it counts towards limits.
    pub bytes: u32,
    /// When it was appended.
    pub appended: UnixMs,
}

impl<'a> Reader<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        Self { connection }
    }

    /// What is noted of a message of another broker.
    ///
    /// # Errors
    /// [`StoreError::Unreadable`], [`StoreError::Damaged`], or the database cannot be read.
    pub fn attempts(&self, of: &LedgerKey) -> Result<Option<Note>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading the attempt ledger", cause);
        const SQL: &str = concat!("SELECT ", note_columns!(), " FROM ledger WHERE place = ?1 AND message = ?2");
        let mut statement = self.connection.prepare_cached(SQL).map_err(failed)?;
        let found = statement.query_row((&*of.place, &of.message), |row| Ok(note::read(row, 0)));
        found.optional().map_err(failed)?.transpose()
    }

    /// All attempts that are noted at a place of another broker, by the names of its messages there.
    ///
    /// # Errors
    /// As the other questions.
    pub fn ledger(&self, place: &str) -> Result<Vec<(String, Note)>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading the attempt ledger", cause);
        const SQL: &str = concat!("SELECT message, ", note_columns!(), " FROM ledger WHERE place = ?1");
        let mut statement = self.connection.prepare_cached(SQL).map_err(failed)?;
        let rows = statement.query_map([place], |row| Ok((row.get(0)?, note::read(row, 1)))).map_err(failed)?;
        rows.map(|row| {
            let (message, note) = row.map_err(failed)?;
            Ok((message, note?))
        })
        .collect()
    }

    /// The marks of all partitions at a place of another broker.
    ///
    /// # Errors
    /// As the other questions.
    pub fn marks(&self, place: &str) -> Result<Vec<(MarkKey, Mark)>, StoreError> {
        let failed = |cause| StoreError::sqlite("reading the marks", cause);
        let sql = "SELECT topic, partition, low, high FROM mark WHERE place = ?1 ORDER BY topic, partition";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed)?;
        let place: Arc<str> = place.into();
        let rows = statement.query_map([&*place], |row| {
            let topic: String = row.get(0)?;
            let topic = (!topic.is_empty()).then(|| topic.into());
            let (low, high) = (row.get::<_, i64>(2)?.unsigned_abs(), row.get::<_, i64>(3)?.unsigned_abs());
            Ok((MarkKey { place: Arc::clone(&place), topic, partition: row.get(1)? }, Mark { low, high }))
        });
        rows.map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
    }
}

/// A message out of the columns `id, type, timestamp, rest, payload`, which begin there.
pub(super) fn message(row: &Row<'_>, first: usize) -> Result<Arc<Message>, StoreError> {
    let columns = || -> rusqlite::Result<_> {
        let id = match row.get_ref(first)? {
            ValueRef::Blob(bytes) => MessageId::Uuid(Uuid::from_slice(bytes).unwrap_or_default()),
            other => MessageId::Text(other.as_str()?.into()),
        };
        let timestamp = row.get::<_, i64>(first + 2)?.unsigned_abs();
        let payload = Bytes::copy_from_slice(row.get_ref(first + 4)?.as_blob()?);
        Ok(Columns { id, kind: row.get_ref(first + 1)?.as_str()?.into(), timestamp, payload })
    };
    let columns = columns().map_err(|cause| StoreError::sqlite("reading a message", cause))?;
    let rest = row.get_ref(first + 3).map_err(|cause| StoreError::sqlite("reading a message", cause))?;
    let rest = rest.as_blob().map_err(|cause| StoreError::sqlite("reading a message", cause.into()))?;
    let id = columns.id.to_string();
    record::decode(columns, rest)
        .map(Arc::new)
        .map_err(|error| StoreError::Unreadable { what: format!("the message {id} cannot be read: {error}") })
}
