//! Changes as rows. All changes of a commit are sorted by table first, so that each statement is prepared once and rows
//! are added in the order of their keys; sums are made in memory and written once.

use std::borrow::Cow;

use rusqlite::{CachedStatement, Connection, params};

use super::{TIME_OFFSETS, pending::size, sums::Sums};
use crate::{
    message::{Message, MessageId, UnixMs},
    store::{
        Batch, Change, GroupId, LedgerKey, LogKey, Mark, MarkKey, Note, Noted, PartitionId, QueueKey,
        note::{self, time},
    },
};

/// The changes of one commit, by what they touch. Only references: a commit that fails is made again without those that
/// may fail.
#[derive(Default)]
pub(super) struct Commit<'a> {
    puts: Vec<Put<'a>>,
    notes: Vec<(QueueKey, Cow<'a, Note>)>,
    /// Keys of messages that go, and of their notes.
    removed: Vec<i64>,
    removed_notes: Vec<i64>,
    appends: Vec<Append<'a>>,
    forgets: Vec<Forget<'a>>,
    unkept: Vec<LogKey>,
    retries: Vec<(GroupId, LogKey, Option<&'a Note>)>,
    attempts: Vec<(&'a LedgerKey, Option<&'a Note>)>,
    marks: Vec<(&'a MarkKey, Option<Mark>)>,
    sums: Sums<'a>,
    pub(super) changes: usize,
    /// About what is written.
    pub(super) bytes: u64,
}

struct Put<'a> {
    key: QueueKey,
    message: &'a Message,
    rest: &'a [u8],
    bytes: u32,
}

struct Append<'a> {
    key: LogKey,
    message: &'a Message,
    rest: &'a [u8],
    bytes: u32,
    appended: UnixMs,
}

struct Forget<'a> {
    partition: PartitionId,
    start: u64,
    end: u64,
    keep: &'a [u64],
}

impl<'a> Commit<'a> {
    pub(super) fn of(batches: &'a [Batch]) -> Self {
        let mut commit = Self::default();
        for change in batches.iter().flat_map(|batch| &batch.changes) {
            commit.add(change);
        }
        // Keys are never used twice, so what goes may go last, whatever came in between.
        commit.removed.sort_unstable();
        commit.puts.sort_unstable_by_key(|put| put.key);
        commit
    }

    fn add(&mut self, change: &'a Change) {
        self.changes += 1;
        self.bytes += size(change) as u64;
        match change {
            Change::Put { key, message, rest, bytes, due } => {
                self.puts.push(Put { key: *key, message, rest, bytes: *bytes });
                if due.is_some() {
                    self.notes.push((*key, Cow::Owned(Note { attempt: 1, due: *due, ..Note::default() })));
                }
                self.sums.put(*key, *bytes, due.is_some());
            }
            Change::Remove { key, bytes, noted } => {
                self.removed.push(key.as_i64());
                if *noted != Noted::Nothing {
                    self.removed_notes.push(key.as_i64());
                }
                self.sums.remove(*key, *bytes, *noted == Noted::Later);
            }
            Change::Note { key, note, noted } => {
                self.notes.push((*key, Cow::Borrowed(note)));
                self.sums.note(*key, *noted == Noted::Later, note.due.is_some());
            }
            Change::Handed(key) => self.sums.handed(*key),
            Change::Append { partition, offset, message, rest, bytes, appended } => {
                let key = LogKey::new(*partition, *offset);
                self.appends.push(Append { key, message, rest, bytes: *bytes, appended: *appended });
                self.sums.append(key, *bytes, *appended, message.timestamp);
            }
            Change::Forget { partition, start, end, bytes, keep } => {
                self.forgets.push(Forget { partition: *partition, start: *start, end: *end, keep });
                self.sums.forget(*partition, *end, *bytes);
            }
            Change::Unkeep { partition, offset } => self.unkept.push(LogKey::new(*partition, *offset)),
            Change::Progress { group, partition, handed, settled } => {
                self.sums.progress(*group, *partition, *handed, settled);
            }
            Change::Retry { group, partition, offset, note } => {
                self.retries.push((*group, LogKey::new(*partition, *offset), note.as_ref()));
            }
            Change::Attempts { of, note } => self.attempts.push((of, note.as_ref())),
            Change::Mark { of, mark } => self.marks.push((of, *mark)),
        }
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.changes == 0
    }

    /// Sums, for what the writer keeps across commits.
    pub(super) fn sums(&self) -> &Sums<'a> {
        &self.sums
    }

    /// Writes everything, inside a transaction of the caller's.
    pub(super) fn write(&self, connection: &Connection, now: UnixMs) -> rusqlite::Result<()> {
        self.write_queues(connection)?;
        self.write_topics(connection)?;
        self.write_ledger(connection, now)?;
        self.sums.write(connection)
    }

    fn write_queues(&self, connection: &Connection) -> rusqlite::Result<()> {
        if !self.puts.is_empty() {
            let sql = "INSERT INTO message (key, id, type, timestamp, bytes, rest, payload) \
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
            let mut insert = connection.prepare_cached(sql)?;
            for put in &self.puts {
                bind_id(&mut insert, 2, &put.message.id)?;
                insert.raw_bind_parameter(1, put.key.as_i64())?;
                insert.raw_bind_parameter(3, put.message.kind.as_str())?;
                insert.raw_bind_parameter(4, time(put.message.timestamp))?;
                insert.raw_bind_parameter(5, put.bytes)?;
                insert.raw_bind_parameter(6, put.rest)?;
                insert.raw_bind_parameter(7, &*put.message.payload)?;
                insert.raw_execute()?;
            }
        }
        if !self.notes.is_empty() {
            let mut insert = connection.prepare_cached(
                "INSERT OR REPLACE INTO attempt (key, attempt, out, crashes, due, failures) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?;
            for (key, note) in &self.notes {
                let (due, failures) = (note.due.map(time), note::failures(note));
                insert.execute(params![key.as_i64(), note.attempt, note.out, note.crashes, due, failures])?;
            }
        }
        if !self.removed_notes.is_empty() {
            let mut delete = connection.prepare_cached("DELETE FROM attempt WHERE key = ?1")?;
            for key in &self.removed_notes {
                delete.execute([key])?;
            }
        }
        delete_keys(connection, &self.removed)
    }

    fn write_topics(&self, connection: &Connection) -> rusqlite::Result<()> {
        if !self.appends.is_empty() {
            let mut insert = connection.prepare_cached(
                "INSERT INTO log (key, id, type, timestamp, appended, bytes, rest, payload) \
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?;
            for append in &self.appends {
                insert.raw_bind_parameter(1, append.key.as_i64())?;
                bind_id(&mut insert, 2, &append.message.id)?;
                insert.raw_bind_parameter(3, append.message.kind.as_str())?;
                insert.raw_bind_parameter(4, time(append.message.timestamp))?;
                insert.raw_bind_parameter(5, time(append.appended))?;
                insert.raw_bind_parameter(6, append.bytes)?;
                insert.raw_bind_parameter(7, append.rest)?;
                insert.raw_bind_parameter(8, &*append.message.payload)?;
                insert.raw_execute()?;
            }
        }
        for forget in &self.forgets {
            forget.write(connection)?;
        }
        for key in &self.unkept {
            connection.prepare_cached("DELETE FROM log WHERE key = ?1")?.execute([key.as_i64()])?;
        }
        for (group, key, note) in &self.retries {
            let (group, key) = (group.0, key.as_i64());
            match note {
                Some(note) => {
                    let (due, failures) = (note.due.map(time), note::failures(note));
                    let sql = "INSERT OR REPLACE INTO retry (consumer_group, key, attempt, out, crashes, due, failures) \
                               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
                    let values = params![group, key, note.attempt, note.out, note.crashes, due, failures];
                    connection.prepare_cached(sql)?.execute(values)?;
                }
                None => {
                    let sql = "DELETE FROM retry WHERE consumer_group = ?1 AND key = ?2";
                    connection.prepare_cached(sql)?.execute((group, key))?;
                }
            }
        }
        Ok(())
    }

    fn write_ledger(&self, connection: &Connection, now: UnixMs) -> rusqlite::Result<()> {
        for (of, note) in &self.attempts {
            match note {
                Some(note) => {
                    let (due, failures) = (note.due.map(time), note::failures(note));
                    let sql = "INSERT OR REPLACE INTO ledger \
                               (place, message, attempt, out, crashes, due, failures, changed) \
                               VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
                    let values =
                        params![&*of.place, of.message, note.attempt, note.out, note.crashes, due, failures, time(now)];
                    connection.prepare_cached(sql)?.execute(values)?;
                }
                None => {
                    let sql = "DELETE FROM ledger WHERE place = ?1 AND message = ?2";
                    connection.prepare_cached(sql)?.execute((&*of.place, &of.message))?;
                }
            }
        }
        for (of, mark) in &self.marks {
            let (place, topic) = (&*of.place, of.topic.as_deref().unwrap_or_default());
            match mark {
                Some(Mark { low, high }) => {
                    let sql = "INSERT OR REPLACE INTO mark (place, topic, partition, low, high) \
                               VALUES (?1, ?2, ?3, ?4, ?5)";
                    let values = params![place, topic, of.partition, offset(*low), offset(*high)];
                    connection.prepare_cached(sql)?.execute(values)?;
                }
                None => {
                    let sql = "DELETE FROM mark WHERE place = ?1 AND topic = ?2 AND partition = ?3";
                    connection.prepare_cached(sql)?.execute(params![place, topic, of.partition])?;
                }
            }
        }
        Ok(())
    }
}

/// An offset as the database has it: no broker counts further than 63 bits.
fn offset(of: u64) -> i64 {
    i64::try_from(of).unwrap_or(i64::MAX)
}

impl Forget<'_> {
    /// Ranges between those that are kept, and the times of segments that are gone as a whole.
    fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        let key = |offset| LogKey::new(self.partition, offset).as_i64();
        let mut delete = connection.prepare_cached("DELETE FROM log WHERE key >= ?1 AND key < ?2")?;
        let mut from = self.start;
        for &kept in self.keep.iter().filter(|kept| (self.start..self.end).contains(kept)) {
            delete.execute((key(from), key(kept)))?;
            from = kept + 1;
        }
        delete.execute((key(from), key(self.end)))?;
        let whole = self.end - self.end % TIME_OFFSETS;
        let mut delete = connection.prepare_cached("DELETE FROM log_time WHERE key >= ?1 AND key < ?2")?;
        delete.execute((key(0), key(whole)))?;
        Ok(())
    }
}

/// Deletes messages by their sorted keys: neighbours together, which is several times as fast as one by one. Only keys
/// that are named go.
fn delete_keys(connection: &Connection, keys: &[i64]) -> rusqlite::Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let mut one = connection.prepare_cached("DELETE FROM message WHERE key = ?1")?;
    let mut range = connection.prepare_cached("DELETE FROM message WHERE key BETWEEN ?1 AND ?2")?;
    for run in keys.chunk_by(|a, b| *b == a + 1) {
        match run {
            [key] => one.execute([key])?,
            [first, .., last] => range.execute((first, last))?,
            [] => 0,
        };
    }
    Ok(())
}

fn bind_id(statement: &mut CachedStatement<'_>, place: usize, id: &MessageId) -> rusqlite::Result<()> {
    match id {
        MessageId::Uuid(uuid) => statement.raw_bind_parameter(place, uuid.as_bytes().as_slice()),
        MessageId::Text(text) => statement.raw_bind_parameter(place, &**text),
    }
}
