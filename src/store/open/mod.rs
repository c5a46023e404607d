//! From a directory to a database that can be relied on. Everything that can be found out without touching anything is
//! found out first.

mod connection;
mod directory;

pub(super) use self::{
    connection::{reader, writer},
    directory::Directory,
};

/// The database, in the store's directory. SQLite keeps `-wal` and `-shm` beside it.
pub(super) const DATABASE: &str = "store.db";
