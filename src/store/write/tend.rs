//! The files: the write-ahead log goes into the database and stays short, free pages go back to the file system, and
//! room is looked after. All in small steps between commits, after those who wait have been answered.

use std::{
    path::PathBuf,
    sync::{PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use rusqlite::{Connection, wal::CheckpointMode};

use super::{Shared, is_busy};

/// Pages in the write-ahead log before it is moved into the database. Source: our measurements; with 8000 the slowest
/// commits take three times as long.
const CHECKPOINT_PAGES: i32 = 2000;
/// Pages from which on readers are asked to pause for a moment, so that the log can begin anew: 64 MiB.
const RESTART_PAGES: i32 = 8192;
/// Pages from which on it is said that something holds it: 256 MiB.
const ALARM_PAGES: i32 = 32_768;

/// Bytes of the log's file that are kept while nothing comes: what is there already is written faster than what is not.
const IDLE_LOG_BYTES: u64 = 8 << 20;

/// Pages that go back to the file system at once: a step takes some milliseconds.
const SHRINK_PAGES: u64 = 256;
/// As many free pages are kept for what comes next: 8 MiB.
const SHRINK_FREE_MIN: u64 = 1024;
/// One of so many pages may be free.
const SHRINK_SHARE: u64 = 4;
/// How often a step is made while messages keep coming.
const SHRINK_EVERY: Duration = Duration::from_millis(100);

/// What is known of the files.
#[derive(Debug)]
pub(in crate::store) struct Files {
    database: PathBuf,
    /// Pages in the write-ahead log after the last look.
    log: i32,
    /// How many of them are in the database as well.
    moved: i32,
    alarmed: bool,
    shrinks: bool,
    shrunk: Instant,
}

impl Files {
    pub(in crate::store) fn new(database: PathBuf) -> Self {
        Self { database, log: 0, moved: 0, alarmed: false, shrinks: false, shrunk: Instant::now() }
    }

    /// Whether there is something to do as soon as nothing else is.
    pub(in crate::store) fn has_work(&self) -> bool {
        self.shrinks
    }

    /// After a commit, or when nothing has come for a while.
    pub(in crate::store) fn tend(&mut self, shared: &Shared, idle: bool) {
        let is_due = idle || shared.space.is_stale();
        let done = shared.owner.with(|connection| -> rusqlite::Result<()> {
            self.checkpoint(connection, shared, idle)?;
            self.shrink(connection, shared)?;
            if is_due { self.measure(connection, shared) } else { Ok(()) }
        });
        if is_due && matches!(done, Some(Ok(()))) {
            shared.look();
        }
        if let Some(Err(cause)) = done {
            self.shrinks = false;
            shared.note_error(&cause);
        }
    }

    /// At the end: everything into the database, and the log is emptied.
    pub(super) fn finish(&mut self, shared: &Shared) {
        let emptied =
            shared.owner.with(|connection| connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::TRUNCATE));
        if let Some(Err(cause)) = emptied.filter(|result| result.as_ref().is_err_and(|cause| !is_busy(cause))) {
            // What was confirmed is in the log, and the next to open it reads it from there.
            shared.note_error(&cause);
        }
    }

    fn checkpoint(&mut self, connection: &Connection, shared: &Shared, idle: bool) -> rusqlite::Result<()> {
        let (log, _) = connection.wal_checkpoint_v2(None::<&str>, CheckpointMode::NOOP)?;
        if log < self.log {
            // It has begun anew.
            (self.moved, self.alarmed) = (0, false);
        }
        self.log = log;
        let is_due = log - self.moved >= if idle { 1 } else { CHECKPOINT_PAGES };
        if is_due && let Some((log, moved)) = checkpoint(connection, CheckpointMode::PASSIVE)? {
            (self.log, self.moved) = (log, moved);
        }
        if idle && self.log == self.moved && shared.state.wal_bytes.load(Ordering::Relaxed) > IDLE_LOG_BYTES {
            return self.alone(connection, shared, CheckpointMode::TRUNCATE).map(drop);
        }
        if !is_due || log < RESTART_PAGES {
            return Ok(());
        }
        let restarted = self.alone(connection, shared, CheckpointMode::RESTART)?;
        if restarted.is_none() && log > ALARM_PAGES && !self.alarmed {
            self.alarmed = true;
            let mib = i64::from(log) * 8 / 1024;
            tracing::warn!(mib, "the store's write-ahead log grows: another process has been reading it for long");
        }
        Ok(())
    }

    /// While no reader of ours is at work: those that follow each other without a gap would keep the log growing for ever,
    /// and each takes a moment only. Another process that reads is not waited for.
    fn alone(
        &self,
        connection: &Connection,
        shared: &Shared,
        mode: CheckpointMode,
    ) -> rusqlite::Result<Option<(i32, i32)>> {
        let _alone = shared.gate.write().unwrap_or_else(PoisonError::into_inner);
        connection.busy_timeout(Duration::ZERO)?;
        let done = checkpoint(connection, mode);
        connection.pragma_update(None, "busy_timeout", crate::store::open::BUSY_MS)?;
        done
    }

    /// Gives some free pages back, if there are many.
    fn shrink(&mut self, connection: &Connection, shared: &Shared) -> rusqlite::Result<()> {
        if !self.shrinks || shared.pending.len() > 0 && self.shrunk.elapsed() < SHRINK_EVERY {
            return Ok(());
        }
        // Each row that is asked for is a page.
        let mut vacuum = connection.prepare_cached(&format!("PRAGMA incremental_vacuum({SHRINK_PAGES})"))?;
        let mut rows = vacuum.query([])?;
        while rows.next()?.is_some() {}
        self.shrunk = Instant::now();
        drop(rows);
        drop(vacuum);
        self.measure(connection, shared)
    }

    fn measure(&mut self, connection: &Connection, shared: &Shared) -> rusqlite::Result<()> {
        let number =
            |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0).map(i64::unsigned_abs));
        let (pages, free, size) = (number("page_count")?, number("freelist_count")?, number("page_size")?);
        self.shrinks = free > SHRINK_FREE_MIN && free > pages / SHRINK_SHARE;
        let state = &shared.state;
        state.database_bytes.store(pages * size, Ordering::Relaxed);
        state.database_free_bytes.store(free * size, Ordering::Relaxed);
        let wal = self.database.with_extension("db-wal");
        state.wal_bytes.store(std::fs::metadata(wal).map_or(0, |wal| wal.len()), Ordering::Relaxed);
        shared.space.keeps((pages - free.min(pages)) * size);
        Ok(())
    }
}

/// `None`: somebody reads what is to be moved or overwritten.
fn checkpoint(connection: &Connection, mode: CheckpointMode) -> rusqlite::Result<Option<(i32, i32)>> {
    match connection.wal_checkpoint_v2(None::<&str>, mode) {
        Ok(done) => Ok(Some(done)),
        Err(cause) if is_busy(&cause) => Ok(None),
        Err(cause) => Err(cause),
    }
}
