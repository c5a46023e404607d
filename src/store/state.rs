//! Whether a store can be relied on: ready, without room, or failed for good.

use std::path::{Path, PathBuf};
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use super::{StoreError, open::marker};

/// How a store is, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreStatus {
    /// All is well.
    Ready,
    /// Publishers are refused; settlements go on. Ends by itself once there is room.
    NoSpace {
        /// Which limit, with its numbers and what to do.
        limit: Arc<str>,
    },
    /// Nothing is confirmed until the store has been opened anew.
    Failed {
        /// What failed.
        what: Arc<str>,
    },
}

/// Numbers about a store, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Commits since it was opened.
    pub commits: u64,
    /// Changes in them.
    pub changes: u64,
    /// Size of the database, in bytes.
    pub database_bytes: u64,
    /// How much of that is free for reuse.
    pub database_free_bytes: u64,
    /// Size of the write-ahead log, in bytes.
    pub wal_bytes: u64,
    /// How long the last commit took, from its first change to the end of its flush, in nanoseconds.
    pub commit_last_ns: u64,
    /// Batches that wait for the disk.
    pub waiting: u64,
}

/// What the writer knows and the others ask.
#[derive(Debug)]
pub(super) struct State {
    directory: PathBuf,
    status: Mutex<StoreStatus>,
    pub(super) commits: AtomicU64,
    pub(super) changes: AtomicU64,
    pub(super) database_bytes: AtomicU64,
    pub(super) database_free_bytes: AtomicU64,
    pub(super) wal_bytes: AtomicU64,
    pub(super) commit_last_ns: AtomicU64,
}

impl State {
    pub(super) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            status: Mutex::new(StoreStatus::Ready),
            commits: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            database_bytes: AtomicU64::new(0),
            database_free_bytes: AtomicU64::new(0),
            wal_bytes: AtomicU64::new(0),
            commit_last_ns: AtomicU64::new(0),
        }
    }

    pub(super) fn status(&self) -> StoreStatus {
        self.lock().clone()
    }

    /// Why publishers are refused, if they are.
    pub(super) fn refused(&self) -> Option<StoreError> {
        match &*self.lock() {
            StoreStatus::Ready => None,
            StoreStatus::NoSpace { limit } => Some(StoreError::NoSpace { limit: Arc::clone(limit) }),
            StoreStatus::Failed { what } => Some(StoreError::Failed { what: Arc::clone(what) }),
        }
    }

    /// Why nothing is confirmed any more, if so.
    pub(super) fn failed(&self) -> Option<StoreError> {
        self.refused().filter(|error| matches!(error, StoreError::Failed { .. }))
    }

    /// What has failed stays so. Says whether this is news.
    pub(super) fn set(&self, status: StoreStatus) -> bool {
        let mut current = self.lock();
        if matches!(*current, StoreStatus::Failed { .. }) || *current == status {
            return false;
        }
        let kind = std::mem::discriminant(&*current) != std::mem::discriminant(&status);
        *current = status;
        kind
    }

    /// Nothing is confirmed from here on, and whoever opens the store next verifies it.
    pub(super) fn fail(&self, what: &str) {
        if self.set(StoreStatus::Failed { what: what.into() }) {
            tracing::error!(what, "the store has failed: nothing is confirmed any more");
            marker::leave(&self.directory, what);
        }
    }

    pub(super) fn stats(&self) -> StoreStats {
        let of = |number: &AtomicU64| number.load(Ordering::Relaxed);
        StoreStats {
            commits: of(&self.commits),
            changes: of(&self.changes),
            database_bytes: of(&self.database_bytes),
            database_free_bytes: of(&self.database_free_bytes),
            wal_bytes: of(&self.wal_bytes),
            commit_last_ns: of(&self.commit_last_ns),
            waiting: 0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, StoreStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
