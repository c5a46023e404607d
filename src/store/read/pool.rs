//! The threads that read, each with a connection of its own that cannot write.

use std::{
    collections::VecDeque,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
};

use rusqlite::Connection;

use super::Reader;
use crate::store::{StoreError, write::Shared};

/// What a thread runs, and what it calls then, when it holds nothing any more; and what it found damaged.
type Job = Box<dyn FnOnce(Result<&Reader<'_>, StoreError>) -> (Then, Option<String>) + Send>;
type Then = Box<dyn FnOnce() + Send>;

/// Jobs in the order they came, and the threads that take them.
pub(in crate::store) struct Pool {
    jobs: Arc<Jobs>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Default)]
struct Jobs {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Pool {
    /// A thread for each connection. The gate is held for reading while a job runs, so that the writer can wait for a
    /// moment without any.
    pub(in crate::store) fn new(connections: Vec<Connection>, shared: &Arc<Shared>) -> std::io::Result<Self> {
        let pool = Self { jobs: Arc::default(), threads: Mutex::default() };
        for (place, connection) in connections.into_iter().enumerate() {
            let (jobs, shared) = (Arc::clone(&pool.jobs), Arc::clone(shared));
            let thread = thread::Builder::new()
                .name(format!("store-read-{place}"))
                .spawn(move || jobs.work(&connection, &shared))?;
            pool.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        Ok(pool)
    }

    /// Runs a job when a thread is free. `then` is called there.
    pub(in crate::store) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        let job: Job = Box::new(move |reader| {
            let result = match reader {
                // The job has nothing of ours to leave in disorder: it reads.
                Ok(reader) => catch_unwind(AssertUnwindSafe(|| job(reader))).unwrap_or_else(|_| {
                    Err(StoreError::Unreadable { what: "a reader panicked; the log says where".to_owned() })
                }),
                Err(error) => Err(error),
            };
            let damaged = match &result {
                Err(StoreError::Damaged { what }) => Some(what.clone()),
                _ => None,
            };
            let then = move || {
                if catch_unwind(AssertUnwindSafe(|| then(result))).is_err() {
                    tracing::error!("what was to happen with pages from disk panicked");
                }
            };
            (Box::new(then), damaged)
        });
        let mut queue = self.jobs.lock();
        // Dropped then, not called: the caller may hold a lock that is taken there.
        if !queue.closed {
            queue.jobs.push_back(job);
            drop(queue);
            self.jobs.arrived.notify_one();
        }
    }

    /// Ends the threads. Questions that were not begun are told there.
    pub(in crate::store) fn close(&self) {
        self.jobs.lock().closed = true;
        self.jobs.arrived.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            // A job may be what closes the store: it cannot wait for itself.
            if thread.thread().id() != thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread that reads the store panicked");
            }
        }
    }
}

impl Jobs {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next, and whether all is to end.
    fn next(&self) -> Option<(Job, bool)> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some((job, queue.closed));
            }
            if queue.closed {
                return None;
            }
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn work(&self, connection: &Connection, shared: &Shared) {
        while let Some((job, closed)) = self.next() {
            let (then, damaged) = if closed {
                job(Err(StoreError::Closed))
            } else {
                let _open = shared.gate.read().unwrap_or_else(PoisonError::into_inner);
                run(job, connection, shared)
            };
            if let Some(what) = damaged {
                // To write on could damage more.
                shared.fail(&what);
            }
            then();
        }
    }
}

/// One job, all of whose queries see the same state.
fn run(job: Job, connection: &Connection, shared: &Shared) -> (Then, Option<String>) {
    if let Some(error) = shared.state.failed() {
        return job(Err(error));
    }
    match connection.unchecked_transaction() {
        Ok(_ended_when_dropped) => job(Ok(&Reader::new(connection))),
        Err(cause) => job(Err(StoreError::sqlite("beginning to read", cause))),
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}
