//! Queues, topics and groups: made once, found again by name.

use std::sync::Arc;

use rusqlite::{Connection, Row, Transaction, TransactionBehavior};

use super::{
    Catalog, GroupId, LaneId, LogKey, Note, PARTITIONS_MAX, PLACES_MAX, PartitionId, PlaceId, StoreError, StoredGroup,
    StoredLane, StoredPartition, StoredQueue, StoredTopic,
    note::{self, note_columns, time},
};
use crate::message::now_ms;

/// Why a queue or topic was not made. An error of the database concerns the store as a whole.
#[derive(Debug)]
pub(super) enum PlaceError {
    Store(StoreError),
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for PlaceError {
    fn from(cause: rusqlite::Error) -> Self {
        Self::Database(cause)
    }
}

impl From<StoreError> for PlaceError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Makes a queue; one of that name that is there stays as it is.
pub(super) fn create_queue(connection: &mut Connection, name: &str) -> Result<PlaceId, PlaceError> {
    create(connection, |transaction| place(transaction, "queue", name))
}

/// Makes a topic; one of that name that is there gets the partitions that it lacks.
pub(super) fn create_topic(
    connection: &mut Connection,
    name: &str,
    partitions: u32,
) -> Result<(PlaceId, Vec<PartitionId>), PlaceError> {
    create(connection, |transaction| {
        let Some(topic) = place(transaction, "topic", name)? else { return Ok(None) };
        let mut ids = Vec::new();
        for number in 0..partitions {
            let sql = "INSERT INTO partition (place, number) VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            transaction.prepare_cached(sql)?.execute((topic.0, number))?;
            let sql = "SELECT partition FROM partition WHERE place = ?1 AND number = ?2";
            let id = transaction.prepare_cached(sql)?.query_row((topic.0, number), |row| row.get(0))?;
            if id > PARTITIONS_MAX {
                return Ok(None);
            }
            ids.push(PartitionId(id));
        }
        Ok(Some((topic, ids)))
    })
}

/// Makes a group of a topic; one of that name that is there stays as it is.
pub(super) fn create_group(connection: &mut Connection, topic: PlaceId, name: &str) -> Result<GroupId, PlaceError> {
    create(connection, |transaction| {
        let sql = "INSERT INTO consumer_group (place, name, created) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
        transaction.execute(sql, (topic.0, name, time(now_ms())))?;
        let sql = "SELECT consumer_group FROM consumer_group WHERE place = ?1 AND name = ?2";
        transaction.query_row(sql, (topic.0, name), |row| row.get(0)).map(|id| Some(GroupId(id)))
    })
}

/// All or nothing; `None` from the job: there is no room for another.
fn create<T>(
    connection: &mut Connection,
    job: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Option<T>>,
) -> Result<T, PlaceError> {
    let transaction = connection.transaction()?;
    let full = || StoreError::Full { what: "queue, topic or partition", max: u64::from(PLACES_MAX) };
    let made = job(&transaction)?.ok_or_else(full)?;
    transaction.commit()?;
    Ok(made)
}

fn place(transaction: &Transaction<'_>, kind: &str, name: &str) -> rusqlite::Result<Option<PlaceId>> {
    let sql = "INSERT INTO place (kind, name, created) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
    transaction.execute(sql, (kind, name, time(now_ms())))?;
    let sql = "SELECT place FROM place WHERE kind = ?1 AND name = ?2";
    let id = transaction.query_row(sql, (kind, name), |row| number(row, 0))?;
    Ok(u16::try_from(id).ok().filter(|id| *id <= PLACES_MAX).map(PlaceId))
}

/// What is there.
pub(super) fn catalog(connection: &Connection) -> Result<Catalog, PlaceError> {
    // One state for all of it.
    let connection = rusqlite::Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let groups = groups(&connection)?;
    let (queues, topics) = (queues(&connection)?, topics(&connection)?);
    Ok(Catalog { queues, topics, groups })
}

fn queues(connection: &Connection) -> rusqlite::Result<Vec<StoredQueue>> {
    let sql = "SELECT place, name, sequence_next FROM place WHERE kind = 'queue' ORDER BY place";
    let mut places = connection.prepare(sql)?;
    let sql = "SELECT lane, count, bytes, waiting, handed FROM lane WHERE lane >> 4 = ?1 ORDER BY lane";
    let mut lanes = connection.prepare(sql)?;
    let mut rows = places.query([])?;
    let mut queues = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, name, sequence_next) = (PlaceId(row.get(0)?), name(row, 1)?, number(row, 2)?);
        let lanes = lanes.query_map([id.0], |row| {
            let lane = LaneId::from_i64(row.get(0)?);
            let (count, bytes, waiting, handed) = (number(row, 1)?, number(row, 2)?, number(row, 3)?, number(row, 4)?);
            Ok(StoredLane { lane, count, bytes, waiting, handed })
        })?;
        queues.push(StoredQueue { id, name, sequence_next, lanes: lanes.collect::<Result<_, _>>()? });
    }
    Ok(queues)
}

fn topics(connection: &Connection) -> rusqlite::Result<Vec<StoredTopic>> {
    let mut places = connection.prepare("SELECT place, name FROM place WHERE kind = 'topic' ORDER BY place")?;
    let sql = "SELECT partition, start, next, bytes, appended FROM partition WHERE place = ?1 ORDER BY number";
    let mut partitions = connection.prepare(sql)?;
    let mut rows = places.query([])?;
    let mut topics = Vec::new();
    while let Some(row) = rows.next()? {
        let (id, name) = (PlaceId(row.get(0)?), name(row, 1)?);
        let partitions = partitions.query_map([id.0], |row| {
            let (start, end, bytes, appended_last) =
                (number(row, 1)?, number(row, 2)?, number(row, 3)?, number(row, 4)?);
            Ok(StoredPartition { id: PartitionId(row.get(0)?), start, end, bytes, appended_last })
        })?;
        topics.push(StoredTopic { id, name, partitions: partitions.collect::<Result<_, _>>()? });
    }
    Ok(topics)
}

fn groups(connection: &Connection) -> Result<Vec<StoredGroup>, StoreError> {
    let failed = |cause| StoreError::sqlite("reading what the store holds", cause);
    let mut groups =
        connection.prepare("SELECT consumer_group, place, name FROM consumer_group ORDER BY 1").map_err(failed)?;
    let found = groups.query_map([], |row| Ok((GroupId(row.get(0)?), PlaceId(row.get(1)?), name(row, 2)?)));
    let found = found.and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(failed)?;
    let mut groups = Vec::with_capacity(found.len());
    for (id, topic, name) in found {
        groups.push(StoredGroup {
            id,
            topic,
            name,
            progress: progress(connection, id)?,
            retries: retries(connection, id)?,
        });
    }
    Ok(groups)
}

fn progress(connection: &Connection, group: GroupId) -> Result<Vec<(PartitionId, u64, Vec<u8>)>, StoreError> {
    let failed = |cause| StoreError::sqlite("reading how far groups are", cause);
    let sql = "SELECT partition, handed, settled FROM progress WHERE consumer_group = ?1 ORDER BY partition";
    let mut statement = connection.prepare_cached(sql).map_err(failed)?;
    let rows = statement.query_map([group.0], |row| Ok((PartitionId(row.get(0)?), number(row, 1)?, row.get(2)?)));
    rows.and_then(Iterator::collect).map_err(failed)
}

fn retries(connection: &Connection, group: GroupId) -> Result<Vec<(PartitionId, u64, Note)>, StoreError> {
    let failed = |cause| StoreError::sqlite("reading what groups try again", cause);
    const SQL: &str = concat!("SELECT key, ", note_columns!(), " FROM retry WHERE consumer_group = ?1 ORDER BY key");
    let mut statement = connection.prepare_cached(SQL).map_err(failed)?;
    let mut rows = statement.query([group.0]).map_err(failed)?;
    let mut retries = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let key = LogKey::from_i64(row.get(0).map_err(failed)?);
        retries.push((key.partition(), key.offset(), note::read(row, 1)?));
    }
    Ok(retries)
}

/// Counts and offsets. None is negative; one that were would be found by `check`, and must not keep the store closed.
fn number(row: &Row<'_>, place: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(place).map(|number| number.max(0).unsigned_abs())
}

fn name(row: &Row<'_>, place: usize) -> rusqlite::Result<Arc<str>> {
    Ok(row.get_ref(place)?.as_str()?.into())
}
