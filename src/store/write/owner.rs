//! The connection that writes, and whose turn it is.

use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

/// Shared by the writer and whoever makes a queue or topic: those are made by their callers, so that a caller may hold a
/// lock that the writer takes when it answers.
#[derive(Debug)]
pub(in crate::store) struct Owner {
    /// `None` once it must not be used any more.
    connection: Mutex<Option<Connection>>,
    /// Taken before the connection, so that a writer with much to do cannot keep the others out.
    turn: Mutex<()>,
}

impl Owner {
    pub(in crate::store) fn new(connection: Connection) -> Self {
        Self { connection: Mutex::new(Some(connection)), turn: Mutex::new(()) }
    }

    /// Does something with the connection; `None` if there is none any more.
    pub(in crate::store) fn with<T>(&self, job: impl FnOnce(&mut Connection) -> T) -> Option<T> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        drop(turn);
        connection.as_mut().map(job)
    }

    /// Lets go of it.
    pub(in crate::store) fn end(&self) {
        drop(self.connection.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}
