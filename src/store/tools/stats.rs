//! What a store holds, in numbers: from its sums, so that it takes no longer with millions of messages.

use std::{fs, path::Path};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior};
use serde::Serialize;

use crate::{
    message::UnixMs,
    store::{StoreError, open, schema},
};

/// A store in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoreFigures {
    /// Which layout the database has.
    pub layout: i64,
    /// Size of the database, in bytes.
    pub database_bytes: u64,
    /// How much of that is free for reuse.
    pub database_free_bytes: u64,
    /// Size of the write-ahead log, in bytes.
    pub wal_bytes: u64,
    /// That the disk failed in an earlier run; the next start verifies the store.
    pub failed: Option<String>,
    /// By name.
    pub queues: Vec<QueueFigures>,
    /// By name.
    pub topics: Vec<TopicFigures>,
}

/// A queue in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueFigures {
    /// Its name.
    pub name: String,
    /// Messages in it, those that are out included.
    pub messages: u64,
    /// What they count towards limits.
    pub bytes: u64,
    /// How many of them wait for a time.
    pub waiting: u64,
    /// When the first of them was published.
    pub oldest: Option<UnixMs>,
}

/// A topic in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TopicFigures {
    /// Its name.
    pub name: String,
    /// How many it has.
    pub partitions: u64,
    /// Messages in it.
    pub messages: u64,
    /// What they count towards limits.
    pub bytes: u64,
    /// When the first of them was published.
    pub oldest: Option<UnixMs>,
    /// By name.
    pub groups: Vec<GroupFigures>,
}

/// A consumer group in numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupFigures {
    /// Its name.
    pub name: String,
    /// Messages that were never handed over to it.
    pub lag: u64,
    /// Messages that it tries again.
    pub retries: u64,
}

/// Blocking, and quick.
///
/// # Errors
/// The store cannot be read.
pub fn stats(directory: &Path) -> Result<StoreFigures, StoreError> {
    let database = open::existing(directory)?;
    let failed = open::marker::find(directory).map_err(|cause| open::failed(directory, "looking at", cause))?;
    let wal_bytes = fs::metadata(database.with_extension("db-wal")).map_or(0, |wal| wal.len());
    let connection = open::reader(&database)?;
    let figures = || -> rusqlite::Result<StoreFigures> {
        let connection = Transaction::new_unchecked(&connection, TransactionBehavior::Deferred)?;
        let page = pragma(&connection, "page_size")?;
        Ok(StoreFigures {
            layout: schema::version(&connection)?,
            database_bytes: pragma(&connection, "page_count")? * page,
            database_free_bytes: pragma(&connection, "freelist_count")? * page,
            wal_bytes,
            failed,
            queues: queues(&connection)?,
            topics: topics(&connection)?,
        })
    };
    figures().map_err(|cause| StoreError::sqlite("reading the store", cause))
}

fn queues(connection: &Connection) -> rusqlite::Result<Vec<QueueFigures>> {
    let mut lanes = connection.prepare("SELECT lane FROM lane WHERE lane >> 4 = ?1 AND count > 0")?;
    let mut queues = connection.prepare("SELECT place, queue, messages, bytes, waiting FROM queues ORDER BY queue")?;
    let queues = queues.query_map([], |row| {
        let place: i64 = row.get(0)?;
        let mut oldest = None;
        for lane in lanes.query_map([place], |row| row.get::<_, i64>(0))? {
            oldest = earlier(oldest, first(connection, "message", lane? << 47, 47)?);
        }
        let (messages, bytes, waiting) = (number(row, 2)?, number(row, 3)?, number(row, 4)?);
        Ok(QueueFigures { name: row.get(1)?, messages, bytes, waiting, oldest })
    })?;
    queues.collect()
}

fn topics(connection: &Connection) -> rusqlite::Result<Vec<TopicFigures>> {
    let sql = "SELECT topic, count(*), sum(messages), sum(bytes) FROM topics GROUP BY topic ORDER BY topic";
    let mut topics = connection.prepare(sql)?;
    let mut partitions = connection.prepare("SELECT partition_key, start FROM topics WHERE topic = ?1")?;
    let sql = "SELECT consumer_group, sum(lag), sum(retries) FROM groups WHERE topic = ?1 GROUP BY 1 ORDER BY 1";
    let mut groups = connection.prepare(sql)?;
    let topics = topics.query_map([], |row| {
        let name: String = row.get(0)?;
        let mut oldest = None;
        for start in partitions.query_map([&name], |row| Ok(row.get::<_, i64>(0)? << 43 | row.get::<_, i64>(1)?))? {
            oldest = earlier(oldest, first(connection, "log", start?, 43)?);
        }
        let groups = groups.query_map([&name], |row| {
            Ok(GroupFigures { name: row.get(0)?, lag: number(row, 1)?, retries: number(row, 2)? })
        })?;
        let (partitions, messages, bytes) = (number(row, 1)?, number(row, 2)?, number(row, 3)?);
        Ok(TopicFigures { name, partitions, messages, bytes, oldest, groups: groups.collect::<Result<_, _>>()? })
    })?;
    topics.collect()
}

/// When the first message from a key on was published, within what shares its upper bits.
fn first(connection: &Connection, table: &str, key: i64, bits: u32) -> rusqlite::Result<Option<UnixMs>> {
    let last = key | ((1 << bits) - 1);
    let sql = format!("SELECT timestamp FROM {table} WHERE key BETWEEN ?1 AND ?2 ORDER BY key LIMIT 1");
    connection.prepare_cached(&sql)?.query_row((key, last), |row| number(row, 0)).optional()
}

fn earlier(a: Option<UnixMs>, b: Option<UnixMs>) -> Option<UnixMs> {
    a.into_iter().chain(b).min()
}

fn number(row: &Row<'_>, place: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(place).map(|number| number.max(0).unsigned_abs())
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, name, |row| number(row, 0))
}
