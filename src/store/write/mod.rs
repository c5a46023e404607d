//! The one thread that writes: takes what has come together, commits it, says so, and keeps the files in order.
//!
//! Start at [`Writer::run`].

mod commit;
mod owner;
mod pending;
mod sums;
mod tend;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::Ordering},
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, ffi};
use rustc_hash::FxHashMap;

use self::{commit::Commit, pending::Next};
pub(super) use self::{owner::Owner, pending::Pending, tend::Files};
use super::{
    Batch, Need, PlaceId, StoreError, Then, admission::Admission, identity::Identity, open::Directory, space::Space,
    state::State,
};
use crate::message::now_ms;

/// Offsets that share one row of `log_time`.
pub(super) const TIME_OFFSETS: u64 = 1024;
/// How often the writer looks around where nothing comes.
const IDLE: Duration = Duration::from_secs(1);
/// Before a commit that found no room is tried again.
const RETRY: Duration = Duration::from_millis(100);

/// What the thread and those who call it share.
#[derive(Debug)]
pub(super) struct Shared {
    /// Held for this process until the end.
    pub(super) directory: Mutex<Option<Directory>>,
    pub(super) owner: Owner,
    pub(super) pending: Pending,
    pub(super) state: State,
    pub(super) space: Space,
    pub(super) identity: Identity,
    pub(super) admission: Admission,
    /// Held for reading by whoever reads, for a moment for writing by who needs the write-ahead log for itself.
    pub(super) gate: RwLock<()>,
    /// What the next commits come to, in tests: disks do not fail when asked to.
    #[cfg(test)]
    pub(super) faults: Mutex<Vec<i32>>,
}

/// What the thread has.
#[derive(Debug)]
pub(super) struct Writer {
    shared: Arc<Shared>,
    files: Files,
    /// Sequences below are reserved, by queue.
    reserved: FxHashMap<PlaceId, u64>,
}

impl Shared {
    /// Nothing is confirmed from here on, and the connection is not used again.
    pub(super) fn fail(&self, what: &str) {
        self.state.fail(what);
        self.owner.end();
        self.admission.close();
    }

    /// Looks whether there is room, and whether the files are still there.
    pub(super) fn look(&self) {
        self.space.look(&self.state);
        self.check_files();
    }

    /// What goes into files that nobody can find any more is not safe. Not to be called with the connection.
    fn check_files(&self) {
        if let Some(what) = self.identity.lost() {
            self.fail(&what);
        }
    }

    /// Lets go of the files, and then of the directory.
    pub(super) fn end(&self) {
        self.owner.end();
        drop(self.directory.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What an error of the database means for the store as a whole.
    pub(super) fn note_error(&self, cause: &rusqlite::Error) {
        if is_full(cause) {
            self.space.ran_out(&self.state, &cause.to_string());
        } else if !is_busy(cause) {
            self.fail(&cause.to_string());
        }
    }
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, database: std::path::PathBuf) -> Self {
        let mut files = Files::new(database);
        // What there is room for is known before anybody publishes.
        files.tend(&shared, true);
        Self { shared, files, reserved: FxHashMap::default() }
    }

    /// Until nothing comes any more. A bug here must not leave those waiting who wait for the disk.
    pub(super) fn run(mut self) {
        while catch_unwind(AssertUnwindSafe(|| self.work())).is_err() {
            self.shared.fail("the thread that writes panicked; the log says where");
        }
        self.files.finish(&self.shared);
        self.shared.end();
    }

    fn work(&mut self) {
        let mut batches = Vec::new();
        loop {
            let patience = if self.files.has_work() { Duration::ZERO } else { IDLE };
            let idle = match self.shared.pending.take(&mut batches, patience) {
                Next::Commit => false,
                Next::Nothing => true,
                Next::End => return,
            };
            self.commit(&mut batches);
            self.files.tend(&self.shared, idle);
        }
    }

    /// Makes batches safe, or refuses them.
    fn commit(&mut self, batches: &mut Vec<Batch>) {
        while !batches.is_empty() {
            if let Some(error) = self.shared.state.failed() {
                answer(batches.drain(..), &Err(Arc::new(error)));
                break;
            }
            match self.write(batches) {
                Ok(true) => {
                    // A moment's look, beside the flush: whoever is told now can rely on it.
                    self.shared.check_files();
                    let result = self.shared.state.failed().map_or(Ok(()), |error| Err(Arc::new(error)));
                    return answer(batches.drain(..), &result);
                }
                // Failed meanwhile, by whoever made a queue or read a page; or there is a bug, and nothing is confirmed.
                Ok(false) => self.shared.fail("there is no connection to write with"),
                Err(cause) if is_full(&cause) => self.no_room(batches, &cause),
                Err(cause) if is_busy(&cause) && !self.shared.pending.is_closed() => {
                    tracing::warn!("another process holds the store's database; everything waits for it");
                    self.shared.pending.pause(RETRY);
                }
                Err(cause) => self.shared.fail(&cause.to_string()),
            }
        }
    }

    /// One transaction. `false`: there was nothing to write with.
    fn write(&mut self, batches: &[Batch]) -> rusqlite::Result<bool> {
        let commit = Commit::of(batches);
        if commit.is_empty() {
            return Ok(true);
        }
        let begun = Instant::now();
        let reserved = &self.reserved;
        let write = |connection: &mut Connection| -> rusqlite::Result<_> {
            let transaction = connection.transaction()?;
            commit.write(&transaction, now_ms())?;
            let raised = commit.sums().reserve(&transaction, reserved)?;
            #[cfg(test)]
            if let Some(code) = self.shared.faults.lock().ok().and_then(|mut faults| faults.pop()) {
                return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None));
            }
            transaction.commit()?;
            Ok(raised)
        };
        let Some(raised) = self.shared.owner.with(write) else { return Ok(false) };
        self.reserved.extend(raised?);
        let state = &self.shared.state;
        state.commits.fetch_add(1, Ordering::Relaxed);
        state.changes.fetch_add(commit.changes as u64, Ordering::Relaxed);
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        state.commit_last_ns.store(took, Ordering::Relaxed);
        self.shared.space.wrote(commit.bytes);
        Ok(true)
    }

    /// Refuses what may be refused; the rest waits a moment, or for ever if all is to end.
    fn no_room(&self, batches: &mut Vec<Batch>, cause: &rusqlite::Error) {
        self.shared.space.ran_out(&self.shared.state, &cause.to_string());
        let ends = self.shared.pending.is_closed();
        let (kept, refused): (Vec<_>, Vec<_>) =
            batches.drain(..).partition(|batch| batch.need == Need::MustHappen && !ends);
        let none = refused.is_empty();
        *batches = kept;
        if let Some(error) = self.shared.state.refused() {
            answer(refused, &Err(Arc::new(error)));
        }
        if none {
            self.shared.pending.pause(RETRY);
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
        // What follows is the broker's: the commit stands, and others wait for theirs.
        if catch_unwind(AssertUnwindSafe(|| call(then))).is_err() {
            tracing::error!("what follows a commit panicked; the commit stands");
        }
    }
}

/// Whether room is all that is missing. The shared memory beside the write-ahead log needs some as well.
fn is_full(error: &rusqlite::Error) -> bool {
    let shared = error.sqlite_error().is_some_and(|error| error.extended_code == ffi::SQLITE_IOERR_SHMSIZE);
    shared || error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

/// Whether another process is in the way.
fn is_busy(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
}
