//! The one thread that writes: takes what has come together, commits it, and then says so.
//!
//! Start at [`Writer::run`].

mod commit;
mod pending;
mod sums;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode};
use rustc_hash::FxHashMap;

pub(super) use self::pending::Pending;
use self::{commit::Commit, pending::Next};
use super::{Batch, Need, PlaceId, StoreError, StoreStatus, Then, state::State};
use crate::message::now_ms;

/// Offsets that share one row of `log_time`.
pub(super) const TIME_OFFSETS: u64 = 1024;
/// How long a commit waits for more, where the last one had some.
const LINGER: Duration = Duration::from_millis(1);
/// Changes from which on a commit counts as one of many.
const LINGER_CHANGES_MIN: usize = 32;
/// How often the writer looks around where nothing comes.
const IDLE: Duration = Duration::from_secs(1);
/// Before a commit that found no room is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// The connection that writes, shared with whoever makes a queue or topic. `None` once it must not be used any more.
#[derive(Debug)]
pub(super) struct Owner {
    connection: Mutex<Option<Connection>>,
    /// Taken before the connection, so that the writer cannot keep the others out.
    turn: Mutex<()>,
}

/// What the thread has.
pub(super) struct Writer {
    pub(super) owner: Arc<Owner>,
    pub(super) pending: Arc<Pending>,
    pub(super) state: Arc<State>,
    /// Sequences below are reserved, by queue.
    reserved: FxHashMap<PlaceId, u64>,
}

impl Owner {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection: Mutex::new(Some(connection)), turn: Mutex::new(()) }
    }

    /// Does something with the connection, in turn.
    pub(super) fn with<T>(&self, job: impl FnOnce(&mut Connection) -> T) -> Result<T, StoreError> {
        let turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        drop(turn);
        connection.as_mut().map(job).ok_or(StoreError::Closed)
    }

    /// Lets go of it.
    pub(super) fn end(&self) {
        drop(self.connection.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Writer {
    pub(super) fn new(owner: Arc<Owner>, pending: Arc<Pending>, state: Arc<State>) -> Self {
        Self { owner, pending, state, reserved: FxHashMap::default() }
    }

    /// Until nothing comes any more.
    pub(super) fn run(mut self) {
        let (mut batches, mut linger) = (Vec::new(), Duration::ZERO);
        loop {
            match self.pending.take(&mut batches, IDLE, linger) {
                Next::Commit => {}
                Next::Nothing => continue,
                Next::End => break,
            }
            let changes = self.commit(&mut batches);
            linger = if changes > LINGER_CHANGES_MIN { LINGER } else { Duration::ZERO };
        }
    }

    /// Makes batches safe, or refuses them. Says how many changes there were.
    fn commit(&mut self, batches: &mut Vec<Batch>) -> usize {
        loop {
            if let Some(error) = self.state.failed() {
                answer(batches.drain(..), &Err(Arc::new(error)));
                return 0;
            }
            match self.write(batches) {
                Ok(changes) => {
                    answer(batches.drain(..), &Ok(()));
                    return changes;
                }
                Err(cause) if is_full(&cause) => self.no_room(batches, &cause),
                Err(cause) => {
                    let what: Arc<str> = cause.to_string().into();
                    tracing::error!(%what, "the store has failed: nothing is confirmed any more");
                    self.state.set(StoreStatus::Failed { what });
                    self.owner.end();
                }
            }
            if batches.is_empty() {
                return 0;
            }
        }
    }

    /// One transaction.
    fn write(&mut self, batches: &[Batch]) -> rusqlite::Result<usize> {
        let commit = Commit::of(batches);
        if commit.is_empty() {
            return Ok(0);
        }
        let begun = Instant::now();
        let reserved = &self.reserved;
        let written = self.owner.with(|connection| {
            let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
            commit.write(&transaction, now_ms())?;
            let raised = commit.sums().reserve(&transaction, reserved)?;
            transaction.commit()?;
            Ok(raised)
        });
        let raised = written.unwrap_or(Err(rusqlite::Error::InvalidQuery))?;
        self.reserved.extend(raised);
        let (commits, changes) = (&self.state.commits, &self.state.changes);
        commits.fetch_add(1, Ordering::Relaxed);
        changes.fetch_add(commit.changes as u64, Ordering::Relaxed);
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.state.commit_last_ns.store(took, Ordering::Relaxed);
        Ok(commit.changes)
    }

    /// Refuses what may be refused; the rest waits a moment.
    fn no_room(&self, batches: &mut Vec<Batch>, cause: &rusqlite::Error) {
        let limit: Arc<str> = format!("the disk is full ({cause}); free some space").into();
        self.state.set(StoreStatus::NoSpace { limit: Arc::clone(&limit) });
        let ends = self.pending.is_closed();
        let (kept, refused): (Vec<_>, Vec<_>) =
            batches.drain(..).partition(|batch| batch.need == Need::MustHappen && !ends);
        let none = refused.is_empty();
        *batches = kept;
        answer(refused, &Err(Arc::new(StoreError::NoSpace { limit })));
        if none {
            self.pending.pause(RETRY);
        }
    }
}

/// Says what became of batches, in their order.
fn answer(batches: impl IntoIterator<Item = Batch>, result: &Result<(), Arc<StoreError>>) {
    for batch in batches {
        drop(batch.permit);
        let Some(then) = batch.then else { continue };
        let result = result.clone();
        let call = |then: Then| then(result);
        if catch_unwind(AssertUnwindSafe(|| call(then))).is_err() {
            tracing::error!("what follows a commit panicked; the commit stands");
        }
    }
}

/// Whether room is all that is missing.
fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("pending", &self.pending).finish_non_exhaustive()
    }
}
