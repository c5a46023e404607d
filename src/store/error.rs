//! What can go wrong with the disk, cut by what the caller does next.

use std::{io, path::PathBuf, sync::Arc};

/// What a library or the system said.
type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// The store did not do what was asked. Cheap to clone: one failure answers all who wait.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it: stop that one, or use another directory.
    #[error("the store {} is in use by {holder}; stop it, or give this engine another directory", .directory.display())]
    Locked {
        /// Where.
        directory: PathBuf,
        /// Who has it, as far as the lock file says.
        holder: String,
    },
    /// A later version made it: use that version.
    #[error(
        "the store {} was made by a newer helixmq (layout {found}, this one knows {known}); start that version, or \
         give this one another directory", .directory.display()
    )]
    Newer {
        /// Where.
        directory: PathBuf,
        /// Its layout.
        found: i64,
        /// The latest that is known here.
        known: i64,
    },
    /// Something of somebody else's: use another directory.
    #[error("{} {what}; give the store a directory of its own", .path.display())]
    Foreign {
        /// What is not ours.
        path: PathBuf,
        /// How that shows.
        what: String,
    },
    /// Locks and flushes cannot be relied on there: use a local disk.
    #[error("the store {} is on a network file system ({kind}), which can lose what is confirmed; use a local disk", .directory.display())]
    NetworkFileSystem {
        /// Where.
        directory: PathBuf,
        /// Which one.
        kind: &'static str,
    },
    /// This user may not write there.
    #[error("the store {} may not be written by this user; give the directory to it, with all files in it, or choose another", .path.display())]
    NoPermission {
        /// The directory, or the file in it.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: Cause,
    },
    /// Nobody may write there.
    #[error("the store {} is on a file system that is mounted read-only; mount it writable, or choose another directory", .directory.display())]
    ReadOnly {
        /// Where.
        directory: PathBuf,
    },
    /// There is too little room: nothing of what was asked is there. Trying again helps once there is more.
    #[error("{limit}")]
    NoSpace {
        /// Which limit, with its numbers and what to do.
        limit: Arc<str>,
    },
    /// What is on disk is not what was written: see `helixmq doctor`, restore a backup.
    #[error("the store is damaged: {what}; restore a backup (helixmq doctor says more)")]
    Damaged {
        /// What is wrong.
        what: String,
    },
    /// One row cannot be understood, or whoever asked for it has a bug; everything else can be read.
    #[error("a row of the store cannot be read: {what}")]
    Unreadable {
        /// Which, and why.
        what: String,
    },
    /// A write or a flush failed. Nothing is confirmed any more until the store has been opened anew, which verifies it.
    #[error("the store has failed: {what}; see to the disk and start the engine again, which verifies the store first")]
    Failed {
        /// What failed.
        what: Arc<str>,
    },
    /// It has been closed: stop.
    #[error("the store has been closed")]
    Closed,
    /// There is a file of that name already, and it stays as it is.
    #[error("{} is there already; give the backup another name", .path.display())]
    Exists {
        /// Which.
        path: PathBuf,
    },
    /// No number is left for another queue, topic, partition or group.
    #[error(
        "the store has no room for another {what} ({max} is the most); remove it and begin anew, or use a second store"
    )]
    Full {
        /// Of what.
        what: &'static str,
        /// How many there can be.
        max: u64,
    },
    /// The file system said no.
    #[error("{what} failed")]
    Io {
        /// What was done, to what.
        what: String,
        /// What the system said.
        #[source]
        cause: Cause,
    },
    /// SQLite said no.
    #[error("{what} failed in the database")]
    Sqlite {
        /// What was done.
        what: &'static str,
        /// What it said.
        #[source]
        cause: Cause,
    },
}

impl StoreError {
    /// Of the file system.
    pub(super) fn io(what: impl Into<String>, cause: io::Error) -> Self {
        Self::Io { what: what.into(), cause: Arc::new(cause) }
    }

    /// Of SQLite, in words: what is damaged says so.
    pub(super) fn sqlite(what: &'static str, cause: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode::{DatabaseCorrupt, DiskFull, NotADatabase};
        match cause.sqlite_error_code() {
            Some(DiskFull) => Self::NoSpace { limit: format!("{what}: there is no space left; free some").into() },
            Some(DatabaseCorrupt | NotADatabase) => Self::Damaged { what: format!("{what}: {cause}") },
            _ => Self::Sqlite { what, cause: Arc::new(cause) },
        }
    }
}
