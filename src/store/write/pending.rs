//! What waits for the disk, in the order it came.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::store::{Batch, Change};

/// Most changes of a commit; one batch alone may have more.
const COMMIT_CHANGES_MAX: usize = 4096;
/// Most bytes of a commit; one batch alone may have more.
const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Batches, in order.
#[derive(Default)]
pub(in crate::store) struct Pending {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Default)]
struct Waiting {
    batches: VecDeque<(Batch, usize)>,
    closed: bool,
    /// Whether the writer sleeps until something comes: a futile wake-up costs those who submit more than the rest.
    sleeps: bool,
}

/// What the writer is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Commit what was taken.
    Commit,
    /// Nothing came in that time.
    Nothing,
    /// Nothing will come any more.
    End,
}

impl Pending {
    /// Adds a batch at the end; gives it back once nothing is taken any more.
    pub(in crate::store) fn push(&self, batch: Batch) -> Result<(), Batch> {
        let bytes = batch.changes.iter().map(size).sum();
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(batch);
        }
        waiting.batches.push_back((batch, bytes));
        let sleeps = std::mem::take(&mut waiting.sleeps);
        drop(waiting);
        if sleeps {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Nothing is added any more; what is there is still taken.
    pub(in crate::store) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
    }

    pub(in crate::store) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// How many batches wait.
    pub(in crate::store) fn len(&self) -> usize {
        self.lock().batches.len()
    }

    /// Takes as many batches as one commit has room for; waits for the first at most `patience`. What comes meanwhile
    /// shares the next commit: the flush itself is what batches are gathered by, and waiting for more beside it was a
    /// third slower.
    pub(super) fn take(&self, taken: &mut Vec<Batch>, patience: Duration) -> Next {
        let mut waiting = self.lock();
        waiting = self.sleep(waiting, patience, true);
        if waiting.batches.is_empty() {
            return if waiting.closed { Next::End } else { Next::Nothing };
        }
        let (mut changes, mut bytes) = (0, 0);
        while let Some((batch, size)) = waiting.batches.front() {
            let more = (changes + batch.changes.len(), bytes + size);
            if !taken.is_empty() && (more.0 > COMMIT_CHANGES_MAX || more.1 > COMMIT_BYTES_MAX) {
                break;
            }
            (changes, bytes) = more;
            taken.extend(waiting.batches.pop_front().map(|(batch, _)| batch));
        }
        Next::Commit
    }

    /// Pauses the writer, unless all is to end.
    pub(super) fn pause(&self, patience: Duration) {
        drop(self.sleep(self.lock(), patience, false));
    }

    /// Until something is there, if that is what it waits `for_something`, all is to end, or the time is over.
    fn sleep<'a>(
        &'a self,
        mut waiting: MutexGuard<'a, Waiting>,
        patience: Duration,
        for_something: bool,
    ) -> MutexGuard<'a, Waiting> {
        let begun = Instant::now();
        while !waiting.closed && (!for_something || waiting.batches.is_empty()) {
            let Some(left) = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else { break };
            waiting.sleeps = for_something;
            waiting = self.arrived.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        waiting.sleeps = false;
        waiting
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending").field("batches", &self.len()).finish_non_exhaustive()
    }
}

/// About what a change writes.
pub(super) fn size(change: &Change) -> usize {
    match change {
        Change::Put { bytes, rest, .. } | Change::Append { bytes, rest, .. } => *bytes as usize + rest.len(),
        Change::Progress { settled, .. } => settled.len(),
        _ => 16,
    }
}
