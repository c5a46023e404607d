//! The disk: messages, what is noted of them and how far groups are, in one SQLite database, written by one thread that
//! commits what has come together. The only place that knows SQLite.
//!
//! In: [`Change`]s in [`Batch`]es, and what is to follow once they are safe. Out: pages of messages, and, when it is
//! opened, a [`Catalog`] to go on from. What changes mean is the broker's business: the store keeps rows.
//!
//! A batch waits in `write/pending.rs`, is made rows of in `write/commit.rs`, and is answered after the commit has
//! reached the disk. Nothing is read on that way. Start at [`Store`], then `write/mod.rs`.

mod admission;
mod bare;
mod catalog;
mod change;
mod error;
mod identity;
mod key;
mod note;
mod open;
mod places;
mod read;
pub mod record;
mod schema;
mod settings;
mod space;
mod state;
#[cfg(test)]
mod tests;
mod tools;
mod write;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock},
    thread::{self, JoinHandle},
};

use rusqlite::Connection;
use tokio::sync::oneshot;

pub use self::{
    admission::{Permit, Purpose},
    bare::bare,
    catalog::{Catalog, StoredGroup, StoredLane, StoredPartition, StoredQueue, StoredTopic},
    change::{Batch, Change, FORGET_MAX, LedgerKey, Mark, MarkKey, Need, Note, Noted, Then},
    error::StoreError,
    key::{GroupId, LANE_LATER, LaneId, LogKey, PARTITIONS_MAX, PLACES_MAX, PartitionId, PlaceId, QueueKey},
    open::lock,
    read::{Page, Reader, StoredMessage, StoredRecord},
    settings::{Settings, Synchronous},
    state::{StoreStats, StoreStatus},
    tools::{Backup, Checked, GroupFigures, QueueFigures, StoreFigures, TopicFigures, backup, check, stats},
};

use self::{
    admission::Admission,
    identity::Identity,
    open::Opened,
    read::Pool,
    space::Space,
    state::State,
    write::{Owner, Pending, Shared, Writer},
};

/// Threads that read: one can wait for the disk while the other answers.
const READERS: usize = 2;

/// A store that is open. Everything but opening, closing and making queues and topics can be called from async code.
pub struct Store {
    shared: Arc<Shared>,
    pool: Pool,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Blocking. Takes the directory for this process, makes or migrates the database, verifies it where the last
    /// process found the disk failing, and starts the threads. How long it takes does not depend on the backlog.
    ///
    /// # Errors
    /// Each says what to do. Nothing of what was there has been touched.
    pub fn open(settings: Settings) -> Result<Arc<Self>, StoreError> {
        let Opened { directory, database, writer } = open::open(&settings)?;
        let readers = (0..READERS).map(|_| open::reader(&database)).collect::<Result<_, _>>()?;
        let shared = Arc::new(Shared {
            directory: Mutex::new(Some(directory)),
            owner: Owner::new(writer),
            pending: Pending::default(),
            state: State::new(&settings.directory),
            space: Space::new(&settings),
            identity: Identity::of(&database),
            admission: Admission::new(),
            gate: RwLock::new(()),
            #[cfg(test)]
            faults: Mutex::default(),
        });
        let failed = |cause| StoreError::io("starting the store's threads", cause);
        let pool = Pool::new(readers, &shared).map_err(failed)?;
        let writer = Writer::new(Arc::clone(&shared), database);
        let writer = thread::Builder::new().name("store-write".to_owned()).spawn(move || writer.run());
        let writer = Mutex::new(Some(writer.map_err(failed)?));
        Ok(Arc::new(Self { shared, pool, writer }))
    }

    /// What is there. Blocking, and meant to be called once, before anything is submitted.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the database cannot be read.
    pub fn catalog(&self) -> Result<Catalog, StoreError> {
        self.with(|connection| places::catalog(connection))
    }

    /// Makes a queue; one of that name that is there stays as it is. Blocking until it is safe. May be called under a
    /// lock that is also taken where batches are answered.
    ///
    /// # Errors
    /// [`StoreError::Full`]: there are too many. Otherwise as for a publish.
    pub fn create_queue(&self, name: &str) -> Result<PlaceId, StoreError> {
        self.with(|connection| places::create_queue(connection, name))
    }

    /// Makes a topic, as [`Store::create_queue`] does; one of that name that is there gets the partitions that it lacks.
    /// The partitions come in their order.
    ///
    /// # Errors
    /// As [`Store::create_queue`].
    pub fn create_topic(&self, name: &str, partitions: u32) -> Result<(PlaceId, Vec<PartitionId>), StoreError> {
        self.with(|connection| places::create_topic(connection, name, partitions))
    }

    /// Makes a consumer group of a topic, as [`Store::create_queue`] does.
    ///
    /// # Errors
    /// As [`Store::create_queue`].
    pub fn create_group(&self, topic: PlaceId, name: &str) -> Result<GroupId, StoreError> {
        self.with(|connection| places::create_group(connection, topic, name))
    }

    fn with<T>(&self, job: impl FnOnce(&mut Connection) -> Result<T, places::PlaceError>) -> Result<T, StoreError> {
        let done = self.shared.owner.with(job).ok_or_else(|| self.gone())?;
        done.map_err(|error| match error {
            places::PlaceError::Store(error) => error,
            places::PlaceError::Database(cause) => {
                self.shared.note_error(&cause);
                self.shared.state.refused().unwrap_or_else(|| StoreError::sqlite("making a queue or topic", cause))
            }
        })
    }

    /// Why there is nothing to write with.
    fn gone(&self) -> StoreError {
        self.shared.state.failed().unwrap_or(StoreError::Closed)
    }

    /// Room for a publish: waits, in order, while too much waits for the disk.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`], [`StoreError::Failed`] and [`StoreError::Closed`], at once.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn admit(&self, messages: usize, bytes: usize, purpose: Purpose) -> Result<Permit, StoreError> {
        self.check(purpose)?;
        let permit = self.shared.admission.wait(messages, bytes).await.ok_or_else(|| self.gone())?;
        // It may have become otherwise meanwhile.
        self.check(purpose)?;
        Ok(permit)
    }

    fn check(&self, purpose: Purpose) -> Result<(), StoreError> {
        let space = &self.shared.space;
        if space.is_stale() {
            self.shared.look();
        }
        match self.shared.state.refused() {
            Some(StoreError::NoSpace { .. }) if purpose == Purpose::FollowUp && space.has_reserve() => Ok(()),
            refused => refused.map_or(Ok(()), Err),
        }
    }

    /// Hands changes to the writer, in the order of the calls. Never blocks. Once the store has been closed a batch is
    /// dropped, and what was to follow is not called: whoever waits for it sees its sender dropped, which means
    /// [`StoreError::Closed`].
    pub fn submit(&self, batch: Batch) {
        drop(self.shared.pending.push(batch));
    }

    /// Runs a question on a reader's thread, on one state of the database: whatever was answered before is in it.
    /// `then` is called there with what came of it. Never blocks. Those who ask see to it that few questions wait. Once the
    /// store has been closed both are dropped, as with [`Store::submit`].
    pub fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
        then: impl FnOnce(Result<T, StoreError>) + Send + 'static,
    ) {
        self.pool.run(job, then);
    }

    /// The same, awaited.
    ///
    /// # Errors
    /// Those of the question, and [`StoreError::Closed`].
    pub async fn read_async<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Reader<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (sender, receiver) = oneshot::channel();
        self.pool.run(job, move |result| drop(sender.send(result)));
        receiver.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Waits until everything submitted so far is safe, or has been refused.
    ///
    /// # Errors
    /// [`StoreError::Failed`] and [`StoreError::Closed`].
    pub async fn flush(&self) -> Result<(), StoreError> {
        let (sender, receiver) = oneshot::channel();
        let then: Then = Box::new(move |result| drop(sender.send(result)));
        self.submit(Batch { changes: Vec::new(), need: Need::MustHappen, permit: None, then: Some(then) });
        match receiver.await {
            Ok(result) => result.map_err(|error| StoreError::clone(&error)),
            Err(_) => Err(StoreError::Closed),
        }
    }

    /// Makes safe what was submitted, ends the threads and gives the directory back. Blocking: not to be called under a
    /// lock that is taken where batches are answered. Dropping the store does the same.
    pub fn close(&self) {
        self.shared.admission.close();
        self.shared.pending.close();
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.pool.close();
        match writer {
            // What follows a commit may be the last to have the store: then the thread ends after this, by itself.
            Some(writer) if writer.thread().id() == thread::current().id() => {}
            Some(writer) => {
                if writer.join().is_err() {
                    tracing::error!("the thread that writes the store panicked");
                }
                self.shared.end();
            }
            None => {}
        }
    }

    /// How it is.
    #[must_use]
    pub fn status(&self) -> StoreStatus {
        self.shared.state.status()
    }

    /// Numbers about it.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats { waiting: self.shared.pending.len() as u64, ..self.shared.state.stats() }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("pending", &self.shared.pending)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}
